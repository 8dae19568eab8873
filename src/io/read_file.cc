#include "io/read_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "aft/error.h"

namespace aft {

FileDescriptor open_to_read(const std::filesystem::path& path) {
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw_errno(path.string() + ": cannot be read", errno);
  return file;
}

std::vector<uint8_t> read_file(const std::filesystem::path& path, size_t most) {
  constexpr size_t kBlock = 1 << 16;
  const FileDescriptor file = open_to_read(path);
  const std::string name = path.string();
  std::vector<uint8_t> bytes;
  while (true) {
    const size_t size = bytes.size();
    bytes.resize(size + kBlock);
    const size_t got = read_some(file.get(), name, std::span(bytes).subspan(size));
    bytes.resize(size + got);
    if (got == 0) return bytes;
    if (bytes.size() > most) throw Error(name + ": expected a file of at most " + std::to_string(most) + " bytes");
  }
}

size_t read_some(int file, const std::string& name, std::span<uint8_t> block) {
  while (true) {
    const ssize_t got = ::read(file, block.data(), block.size());
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) throw_errno(name + ": cannot be read", errno);
  }
}

ssize_t read_at(int file, uint64_t offset, size_t bytes, void* to) {
  auto* const out = static_cast<char*>(to);
  size_t done = 0;
  while (done < bytes) {
    const ssize_t got =
        ::pread(file, out + done, std::min(bytes - done, size_t{1} << 30), static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return -1;
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return static_cast<ssize_t>(done);
}

}  // namespace aft

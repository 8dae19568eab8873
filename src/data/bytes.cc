#include <fcntl.h>
#include <lzma.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "aft/data.h"
#include "aft/error.h"
#include "runtime/read_bytes.h"

namespace aft {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& what) {
  throw Error("data: cannot read " + path.string() + ": " + what);
}

class FileDescriptor {
 public:
  explicit FileDescriptor(const fs::path& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) fail(path, std::strerror(errno));
  }
  ~FileDescriptor() { close(fd_); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

struct Mapping {
  void* data = nullptr;
  size_t bytes = 0;
  Mapping(const fs::path& path, int fd, size_t size) : bytes(size) {
    data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) fail(path, std::strerror(errno));
  }
  ~Mapping() { munmap(data, bytes); }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
};

bool is_plain(const fs::path& path, int file) {
  uint8_t head[kPackingBytes];
  const ssize_t got = pread(file, head, sizeof head, 0);
  if (got < 0) throw_errno("data: " + path.string() + ": cannot be read", errno);
  return packing_of(path, {head, static_cast<size_t>(got)}) == Packing::kPlain;
}

void append_file(const fs::path& path, std::vector<uint8_t>& out) {
  const FileDescriptor file(path);
  append_bytes(file.get(), path, out);
}

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().starts_with('.')) {
      if (it->is_directory()) it.disable_recursion_pending();
      continue;
    }
    if (it->is_regular_file()) files.push_back(it->path());
  }
  if (error) fail(folder, error.message());
  std::sort(files.begin(), files.end(),
            [](const fs::path& a, const fs::path& b) { return a.generic_string() < b.generic_string(); });
  return files;
}

}  // namespace

Bytes Bytes::load(const fs::path& path) {
  std::error_code error;
  const auto status = fs::status(path, error);
  if (!fs::exists(status)) fail(path, "no such file or folder");
  Bytes bytes;
  if (fs::is_regular_file(status)) {
    const FileDescriptor file(path);
    if (is_plain(path, file.get())) {
      struct stat info {};
      if (fstat(file.get(), &info) != 0) fail(path, std::strerror(errno));
      if (info.st_size == 0) return bytes;
      auto mapping = std::make_shared<Mapping>(path, file.get(), static_cast<size_t>(info.st_size));
      bytes.view_ = {static_cast<const uint8_t*>(mapping->data), mapping->bytes};
      bytes.owner_ = std::move(mapping);
      return bytes;
    }
  }
  auto buffer = std::make_shared<std::vector<uint8_t>>();
  if (fs::is_directory(status)) {
    for (const auto& file : files_in(path)) append_file(file, *buffer);
  } else {
    append_file(path, *buffer);
  }
  bytes.view_ = {buffer->data(), buffer->size()};
  bytes.owner_ = std::move(buffer);
  return bytes;
}

uint64_t checksum(std::span<const uint8_t> bytes) { return lzma_crc64(bytes.data(), bytes.size(), 0); }

}  // namespace aft

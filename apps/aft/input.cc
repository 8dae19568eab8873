#include "input.h"

#include <fcntl.h>
#include <lzma.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "aft/error.h"

namespace aft::app {
namespace {

constexpr uint64_t kXzMemory = uint64_t{1} << 30;

std::vector<uint8_t> read_all(int file, const std::string& name) {
  std::vector<uint8_t> bytes;
  struct stat status = {};
  const int64_t expected = ::fstat(file, &status) == 0 && S_ISREG(status.st_mode) ? status.st_size : 0;
  size_t used = 0;
  bytes.resize(static_cast<size_t>(expected) + 1);  // one more: the read that finds the end needs room
  while (true) {
    const ssize_t got = ::read(file, bytes.data() + used, bytes.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw Error(name + ": cannot be read: " + std::strerror(errno));
    if (got == 0) break;
    used += static_cast<size_t>(got);
    if (used == bytes.size()) bytes.resize(bytes.size() + std::max<size_t>(bytes.size(), 1 << 16));
  }
  bytes.resize(used);
  return bytes;
}

std::vector<uint8_t> decode_xz(const std::vector<uint8_t>& packed, const std::string& name) {
  lzma_stream stream = LZMA_STREAM_INIT;
  if (lzma_stream_decoder(&stream, kXzMemory, LZMA_CONCATENATED) != LZMA_OK) throw std::bad_alloc();
  struct End {
    lzma_stream* of;
    ~End() { lzma_end(of); }
  } const end{&stream};
  std::vector<uint8_t> text(packed.size() * 4 + (1 << 16));
  stream.next_in = packed.data();
  stream.avail_in = packed.size();
  while (true) {
    stream.next_out = text.data() + stream.total_out;
    stream.avail_out = text.size() - stream.total_out;
    const lzma_ret result = lzma_code(&stream, LZMA_FINISH);
    if (result == LZMA_STREAM_END) break;
    if (result == LZMA_MEM_ERROR) throw std::bad_alloc();
    if (result == LZMA_FORMAT_ERROR) throw Error(name + ": not an .xz file, although its name says so");
    if (result == LZMA_MEMLIMIT_ERROR) throw Error(name + ": decoding it takes more than 1 GiB of memory");
    if (result != LZMA_OK) throw Error(name + ": the .xz file is truncated or corrupted");
    if (stream.avail_out == 0) text.resize(text.size() * 2);
  }
  text.resize(stream.total_out);
  return text;
}

}  // namespace

std::vector<uint8_t> read_text(const std::filesystem::path& path) {
  const std::string name = path.string();
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw Error(name + ": cannot be opened: " + std::strerror(errno));
  struct Close {
    int file;
    ~Close() { ::close(file); }
  } const close{file};
  std::vector<uint8_t> bytes = read_all(file, name);
  return path.extension() == ".xz" ? decode_xz(bytes, name) : bytes;
}

std::vector<uint8_t> read_standard_input() { return read_all(STDIN_FILENO, "standard input"); }

bool standard_input_is_piped() {
  struct stat status = {};
  return ::fstat(STDIN_FILENO, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISREG(status.st_mode));
}

}  // namespace aft::app

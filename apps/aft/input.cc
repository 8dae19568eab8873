#include "input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "aft/error.h"
#include "io/file_descriptor.h"
#include "io/read_bytes.h"
#include "io/read_file.h"

namespace aft::app {

std::vector<uint8_t> read_text(const std::filesystem::path& path) {
  std::vector<uint8_t> bytes;
  if (path == "-") {
    append_bytes(STDIN_FILENO, "standard input", bytes);
    return bytes;
  }
  const FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (file.get() < 0) throw_errno(path.string() + ": cannot be opened", errno);
  append_bytes(file.get(), path, bytes);
  return bytes;
}

void read_standard_input(const std::function<void(std::span<const uint8_t>)>& take) {
  std::vector<uint8_t> block(1 << 16);
  while (const size_t got = read_some(STDIN_FILENO, "standard input", block)) take({block.data(), got});
}

bool standard_input_is_piped() {
  struct stat status = {};
  return ::fstat(STDIN_FILENO, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISREG(status.st_mode));
}

}  // namespace aft::app

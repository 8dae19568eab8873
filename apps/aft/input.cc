#include "input.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "aft/error.h"
#include "runtime/read_bytes.h"

namespace aft::app {
namespace {

std::vector<uint8_t> read_all(int file, const std::string& name, bool packed) {
  std::vector<uint8_t> bytes;
  const std::string problem = packed ? append_xz(file, bytes) : append_plain(file, bytes);
  if (!problem.empty()) throw Error(name + ": cannot be read: " + problem);
  return bytes;
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
  return read_all(file, name, path.extension() == ".xz");
}

std::vector<uint8_t> read_standard_input() { return read_all(STDIN_FILENO, "standard input", false); }

bool standard_input_is_piped() {
  struct stat status = {};
  return ::fstat(STDIN_FILENO, &status) == 0 && (S_ISFIFO(status.st_mode) || S_ISREG(status.st_mode));
}

}  // namespace aft::app

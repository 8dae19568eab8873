#include "common/output.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <system_error>

#include "aft/error.h"

namespace aft::app {
namespace {

[[noreturn]] void fail(int error) {
  if (error == EPIPE) throw ClosedPipe();
  throw SystemError("standard output: cannot be written: " + std::generic_category().message(error));
}

}  // namespace

void write_out(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      fail(errno);
    }
  }
}

void finish_output() {
  errno = 0;
  const bool lost = std::ferror(stdout) != 0;
  if (std::fflush(stdout) != 0 || lost) fail(errno == 0 ? EIO : errno);
}

}  // namespace aft::app

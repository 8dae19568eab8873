#include "common/output.h"

#include <sys/stat.h>
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

void require_new(const std::string& option, const std::filesystem::path& path, bool force) {
  std::error_code error;
  if (!force && std::filesystem::is_regular_file(path, error)) {
    throw Error(option + ": " + path.string() + " exists; replace it with --force, or give another name");
  }
  if (std::filesystem::is_directory(path, error)) {
    throw Error(option + ": " + path.string() + ": expected the name of a file, got a folder");
  }
  const std::filesystem::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (!std::filesystem::is_directory(folder, error)) {
    throw Error(option + ": " + path.string() + ": expected a name in a folder that is there, got one in " +
                folder.string() + "; make it first");
  }
}

bool is_standard_output(const std::filesystem::path& path) {
  struct stat file {};
  struct stat output {};
  return ::stat(path.c_str(), &file) == 0 && ::fstat(STDOUT_FILENO, &output) == 0 && file.st_dev == output.st_dev &&
         file.st_ino == output.st_ino;
}

void say_written(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_regular_file(path, error) && !is_standard_output(path)) write_out(path.string() + "\n");
}

}  // namespace aft::app

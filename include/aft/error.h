#pragma once

#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

namespace aft {

/// Thrown by every layer for bad input: names the argument, what was expected, what came and the remedy.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An Error that other input would not have helped: the system failed, by a full disk, a broken device, a limit, no
/// memory. The programs exit with 1 for it, and with 2 for any other Error.
class SystemError : public Error {
 public:
  using Error::Error;
};

/// Throws "`what`: the text of `error`", an errno. Where the system refuses the name that it was given (it is missing,
/// a folder, not permitted, ...) that is bad input, an Error; all else is a SystemError.
[[noreturn]] inline void throw_errno(const std::string& what, int error) {
  const std::string text = what + ": " + std::generic_category().message(error);
  switch (error) {
    case EACCES:
    case EEXIST:
    case EINVAL:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case ENOENT:
    case ENOTDIR:
    case ENOTEMPTY:
    case ENXIO:
    case EPERM:
    case EROFS:
    case ETXTBSY:
      throw Error(text);
    default:
      throw SystemError(text);
  }
}

}  // namespace aft

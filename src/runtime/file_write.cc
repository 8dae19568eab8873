#include "runtime/file_write.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "aft/error.h"
#include "aft/runtime/safetensors.h"

namespace aft {
namespace {

/// The temporary file of a write. It has one fixed name, so that killed processes do not leave many of them; a lock
/// keeps two writers apart. Removed on destruction unless it was renamed.
class Temporary {
 public:
  explicit Temporary(const std::filesystem::path& target) : target_(target), path_(target.string() + ".tmp") {
    while (true) {
      fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
      if (fd_ < 0) fail("cannot be created");
      if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) {
        const int error = errno;
        ::close(fd_);
        errno = error;
        fail("another process may be writing it");
      }
      // The writer before us may have renamed or removed the file between our open and our lock.
      struct stat ours = {};
      struct stat named = {};
      if (::fstat(fd_, &ours) == 0 && ::stat(path_.c_str(), &named) == 0 && ours.st_ino == named.st_ino &&
          ours.st_dev == named.st_dev) {
        break;
      }
      ::close(fd_);
    }
    owned_ = true;
    if (::ftruncate(fd_, 0) != 0) abandon("cannot be emptied");
  }
  ~Temporary() { discard(); }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  void write(const FilePart& part) {
    const auto* from = static_cast<const char*>(part.data);
    size_t left = part.bytes;
    while (left > 0) {
      const ssize_t written = ::write(fd_, from, std::min(left, size_t{1} << 30));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) abandon("cannot be written");
      from += written;
      left -= static_cast<size_t>(written);
    }
  }

  void finish() {
    if (::fsync(fd_) != 0) abandon("cannot be synced");
    if (::rename(path_.c_str(), target_.c_str()) != 0) abandon("cannot be renamed to " + target_.string());
    owned_ = false;
    ::close(fd_);
    fd_ = -1;
    const std::filesystem::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
    const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = directory >= 0 && ::fsync(directory) == 0;
    const int error = errno;
    if (directory >= 0) ::close(directory);
    // Some file systems cannot sync a folder (EINVAL): there the rename is as durable as it gets.
    if (!synced && error != EINVAL) throw Error(folder.string() + ": cannot be synced: " + std::strerror(error));
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(path_.string() + ": " + what + ": " + std::strerror(errno));
  }
  [[noreturn]] void abandon(const std::string& what) {  // a constructor that throws gets no destructor
    const int error = errno;
    discard();
    errno = error;
    fail(what);
  }
  void discard() {
    if (owned_) ::unlink(path_.c_str());
    if (fd_ >= 0) ::close(fd_);
    owned_ = false;
    fd_ = -1;
  }

  std::filesystem::path target_;
  std::filesystem::path path_;
  int fd_ = -1;
  bool owned_ = false;
};

}  // namespace

void write_parts_atomically(const std::filesystem::path& path, const std::vector<FilePart>& parts) {
  Temporary file(path);
  for (const FilePart& part : parts) file.write(part);
  file.finish();
}

void write_file_atomically(const std::filesystem::path& path, const void* data, size_t bytes) {
  write_parts_atomically(path, {{data, bytes}});
}

}  // namespace aft

#include "io/write_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <string>

#include "aft/error.h"
#include "io/file_descriptor.h"

namespace aft {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& what) {
  throw_errno(path.string() + ": " + what, errno);
}

void write_all(int fd, const fs::path& path, const std::vector<FilePart>& parts) {
  for (const FilePart& part : parts) {
    const auto* from = static_cast<const char*>(part.data);
    size_t left = part.bytes;
    while (left > 0) {
      const ssize_t written = ::write(fd, from, std::min(left, size_t{1} << 30));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail(path, "cannot be written");
      from += written;
      left -= static_cast<size_t>(written);
    }
  }
}

/// What a name leads to.
struct Target {
  fs::path path;        // symbolic links followed
  int descriptor = -1;  // >= 0: a file that this process has open, as /dev/stdout names one
  bool exists = false;  // what `status` holds
  struct stat status = {};
};

/// Follows symbolic links as opening would, and those that dangle to where they point.
Target find_target(const fs::path& name) {
  constexpr int kMostLinks = 40;  // as the kernel
  const fs::path own_files = "/proc/" + std::to_string(::getpid()) + "/fd";
  Target target;
  target.path = name;
  for (int links = 0; links <= kMostLinks; ++links) {
    const fs::path folder = target.path.has_parent_path() ? target.path.parent_path() : ".";
    std::error_code error;
    const std::string file = target.path.filename().string();
    if (fs::canonical(folder, error) == own_files && !error) {
      target.descriptor = std::atoi(file.c_str());
      return target;
    }
    if (::lstat(target.path.c_str(), &target.status) != 0) {
      if (errno != ENOENT) fail(name, "cannot be examined");
      return target;
    }
    if (!S_ISLNK(target.status.st_mode)) {
      target.exists = true;
      return target;
    }
    const fs::path link = fs::read_symlink(target.path, error);
    if (error) throw_errno(name.string() + ": its link cannot be read", error.value());
    target.path = folder / link;
  }
  throw_errno(name.string() + ": cannot be written", ELOOP);
}

/// The temporary file of a write. It has one fixed name, so that killed processes do not leave many of them; a lock
/// keeps two writers apart. Removed on destruction unless it was renamed.
class Temporary {
 public:
  explicit Temporary(const Target& target) : target_(target.path), path_(target.path.string() + ".tmp") {
    try {
      open();
      if (::ftruncate(fd_, 0) != 0) fail(path_, "cannot be emptied");
      if (target.exists) take_over(target.status);
    } catch (...) {  // a constructor that throws gets no destructor
      discard();
      throw;
    }
  }
  ~Temporary() { discard(); }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  void write(const std::vector<FilePart>& parts) { write_all(fd_, path_, parts); }

  void finish() {
    if (::fsync(fd_) != 0) fail(path_, "cannot be synced");
    if (::rename(path_.c_str(), target_.c_str()) != 0) fail(path_, "cannot be renamed to " + target_.string());
    owned_ = false;
    const fs::path folder = target_.has_parent_path() ? target_.parent_path() : ".";
    const int directory = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const bool synced = directory >= 0 && ::fsync(directory) == 0;
    const int error = errno;
    if (directory >= 0) ::close(directory);
    // Some file systems cannot sync a folder (EINVAL): there the rename is as durable as it gets.
    if (!synced && error != EINVAL) throw_errno(folder.string() + ": cannot be synced", error);
  }

 private:
  void open() {
    while (true) {
      // Not to wait for the reader of a FIFO that has our name.
      fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0666);
      if (fd_ < 0) fail(path_, "cannot be created");
      struct stat ours = {};
      struct stat named = {};
      if (::fstat(fd_, &ours) != 0) fail(path_, "cannot be examined");
      if (!S_ISREG(ours.st_mode)) {
        throw Error(path_.string() + ": in the way of a temporary file, and not a regular file; remove it");
      }
      if (::flock(fd_, LOCK_EX | LOCK_NB) != 0) fail(path_, "another process may be writing it");
      // The writer before us may have renamed or removed the file between our open and our lock.
      owned_ = ::stat(path_.c_str(), &named) == 0 && ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
      if (owned_) return;
      ::close(fd_);
    }
  }
  /// The permissions of the file to be replaced, and its owner where we may give files away.
  void take_over(const struct stat& old) {
    static_cast<void>(::fchown(fd_, old.st_uid, old.st_gid) == 0);
    if (::fchmod(fd_, old.st_mode & 0777) != 0) fail(path_, "cannot be given the permissions of the old file");
  }
  void discard() {
    if (owned_) ::unlink(path_.c_str());
    if (fd_ >= 0) ::close(fd_);
    owned_ = false;
    fd_ = -1;
  }

  fs::path target_;
  fs::path path_;
  int fd_ = -1;
  bool owned_ = false;
};

/// A FIFO, a device, an open file: what is written cannot be taken back, and nothing is put in its place.
void write_stream(const Target& target, const std::vector<FilePart>& parts) {
  const FileDescriptor file(target.descriptor >= 0 ? ::fcntl(target.descriptor, F_DUPFD_CLOEXEC, 0)
                                                   : ::open(target.path.c_str(), O_WRONLY | O_CLOEXEC));
  if (file.get() < 0) fail(target.path, "cannot be opened for writing");
  write_all(file.get(), target.path, parts);
}

}  // namespace

void write_parts_atomically(const fs::path& path, const std::vector<FilePart>& parts) {
  const Target target = find_target(path);
  if (target.descriptor < 0 && target.exists && S_ISDIR(target.status.st_mode)) {
    throw Error(path.string() + ": expected the name of a file, got a folder");
  }
  if (target.descriptor >= 0 || (target.exists && !S_ISREG(target.status.st_mode))) return write_stream(target, parts);
  Temporary file(target);
  file.write(parts);
  file.finish();
}

void write_file_atomically(const fs::path& path, const void* data, size_t bytes) {
  write_parts_atomically(path, {{data, bytes}});
}

}  // namespace aft

#pragma once

#include <unistd.h>

#include <utility>

namespace aft {

/// An open file, closed on destruction. Negative: none.
class FileDescriptor {
 public:
  explicit FileDescriptor(int file) : file_(file) {}
  ~FileDescriptor() {
    if (file_ >= 0) ::close(file_);
  }
  FileDescriptor(FileDescriptor&& other) noexcept : file_(std::exchange(other.file_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(file_, other.file_);
    return *this;
  }
  [[nodiscard]] int get() const { return file_; }

 private:
  int file_;
};

}  // namespace aft

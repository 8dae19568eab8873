#pragma once

#include <cstdint>

namespace aft::ops::cuda {

/// Cuts arrays off the workspace of a call, each aligned to 256 bytes. Without memory it only counts.
class Workspace {
 public:
  explicit Workspace(void* memory) : begin_(static_cast<char*>(memory)) {}

  template <typename T>
  T* take(int64_t count) {
    char* at = begin_ == nullptr ? nullptr : begin_ + bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  [[nodiscard]] int64_t bytes() const { return bytes_; }

 private:
  char* begin_;
  int64_t bytes_ = 0;
};

}  // namespace aft::ops::cuda

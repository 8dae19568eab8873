#pragma once

#include <cstddef>
#include <cstdint>

namespace aft::ops::window {

/// Hands out parts of memory of the caller's, aligned to 64 bytes.
class Room {
 public:
  explicit Room(std::byte* memory) : next_(memory) {}

  template <typename T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(next_);
    next_ += padded<T>(count);
    return p;
  }
  template <typename T>
  static size_t padded(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64 + 64;
  }

 private:
  std::byte* next_;
};

}  // namespace aft::ops::window

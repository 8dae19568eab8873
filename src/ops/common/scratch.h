#pragma once

#include <cstddef>
#include <cstdint>

namespace aft::ops {

/// Memory of one task, kept by its thread from call to call: fresh pages cost more than the operator itself.
/// Everything handed out is 64-byte aligned and uninitialised, and ends with the next Scratch of the thread.
class Scratch {
 public:
  explicit Scratch(size_t bytes);  // grows the thread's buffer if it must

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

/// For tests: buffers are filled with NaN whenever they are handed out.
void scratch_set_poison(bool enabled);

}  // namespace aft::ops

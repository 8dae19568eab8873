#pragma once

#include <cstddef>
#include <cstdint>

namespace aft::ops {

/// Memory of one task, kept by its thread from call to call: fresh pages cost more than the operator itself.
/// Everything handed out is 64-byte aligned and uninitialised, and ends with the next Scratch of the thread.
class Scratch {
 public:
  explicit Scratch(size_t bytes);  // grows the thread's buffer if it must
  /// Hands out memory of the caller's instead, aligned to 64 bytes.
  explicit Scratch(std::byte* memory) : next_(memory) {}

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

/// Memory that the tasks of one call share, kept by the calling thread from call to call up to 64 MiB. 64-byte aligned
/// and uninitialised.
class Workspace {
 public:
  explicit Workspace(size_t bytes);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  template <typename T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(next_);
    next_ += Scratch::padded<T>(count);
    return p;
  }

 private:
  std::byte* data_;
  size_t bytes_;
  std::byte* next_;
};

/// For tests: buffers are filled with NaN whenever they are handed out.
void scratch_set_poison(bool enabled);

}  // namespace aft::ops

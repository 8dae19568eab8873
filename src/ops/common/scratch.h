#pragma once

#include <cstddef>
#include <cstdint>

namespace aft::ops {

/// Memory of a call or of one of its tasks. Every thread keeps a stack of it from call to call: fresh pages cost more
/// than the operator itself. What a Scratch hands out is aligned to 64 bytes, uninitialised, and ends with it; it must
/// end on its thread, and after those that began later there (an outer one may serve tasks that have their own).
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <typename T>
  T* take(int64_t count) {
    return reinterpret_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  static std::byte* take_bytes(size_t bytes);

  size_t block_, used_;  // where the thread's stack stood
};

/// For tests: memory is filled with NaN whenever it is handed out.
void scratch_set_poison(bool enabled);

}  // namespace aft::ops

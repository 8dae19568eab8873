#pragma once

#include <cstdint>
#include <functional>

namespace aft::ops {

/// The caller's threads. `run(count, body)` calls body(i) once for every i in [0, count), in any order and on any
/// thread, and returns when all are done. `threads` is how many may run at once: operators use it to choose how finely
/// to split, never in a way that changes a bit of a result.
struct ParallelFor {
  int64_t threads = 1;
  std::function<void(int64_t count, const std::function<void(int64_t)>& body)> run =
      [](int64_t count, const std::function<void(int64_t)>& body) {
        for (int64_t i = 0; i < count; ++i) body(i);
      };
};

}  // namespace aft::ops

// Compiled with -fopenmp, alone: see CMakeLists.txt.

#include "torch_threads.h"

#include <ATen/Parallel.h>

#ifndef _OPENMP
#error "threads.cc needs -fopenmp: without it at::parallel_for runs on one thread"
#endif

namespace aft::dispatch {

ops::ParallelFor torch_threads() {
  return {at::get_num_threads(), [](int64_t count, const std::function<void(int64_t)>& body) {
            at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
              for (int64_t i = begin; i < end; ++i) body(i);
            });
          }};
}

ops::RedoCount& redo_counters() {
  static ops::RedoCount counters;
  return counters;
}

}  // namespace aft::dispatch

#pragma once

#include <cstdint>

namespace aft {

/// One step of AdamW (Loshchilov and Hutter 2019, algorithm 2).
struct AdamWStep {
  int64_t step = 1;  // counted from 1
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  double gradient_scale = 1;  // multiplies the gradient first: clipping without a pass of its own
};

/// Updates `count` weights and their moments in one pass over memory. Each element is independent of all others.
template <typename T>
void adamw_update(const AdamWStep& step, int64_t count, const T* gradient, T* weight, T* first_moment,
                  T* second_moment);

}  // namespace aft

#include <algorithm>

#include "aft/ops/local_bias.h"

namespace aft::ops {

template <typename T>
void local_bias_forward(const LocalBiasShape& s, const T* u, const T* v, T* band, const ParallelFor& parallel) {
  const int64_t span = s.left + 1 + s.right;
  parallel.run(s.heads * s.rows, [&](int64_t i) {
    const int64_t t = i % s.rows;
    for (int64_t j = 0; j < span; ++j) {
      const int64_t source = t - s.left + j;
      T sum = 0;
      if (source >= 0 && source < s.rows) {
        const T* a = u + i * s.width;
        const T* b = v + (i - t + source) * s.width;
        for (int64_t c = 0; c < s.width; ++c) sum += a[c] * b[c];
      }
      band[i * span + j] = sum;
    }
  });
}

template <typename T>
void local_bias_backward(const LocalBiasShape& s, const T* u, const T* v, const T* grad_band, T* grad_u, T* grad_v,
                         const ParallelFor& parallel) {
  const int64_t span = s.left + 1 + s.right;
  parallel.run(s.heads * s.rows, [&](int64_t i) {
    const int64_t t = i % s.rows;
    if (grad_u != nullptr) {
      std::fill_n(grad_u + i * s.width, s.width, T(0));
      for (int64_t j = 0; j < span; ++j) {
        const int64_t source = t - s.left + j;
        if (source < 0 || source >= s.rows) continue;
        const T g = grad_band[i * span + j];
        for (int64_t c = 0; c < s.width; ++c) grad_u[i * s.width + c] += g * v[(i - t + source) * s.width + c];
      }
    }
    if (grad_v != nullptr) {  // t is the source here: targets t - right .. t + left saw it
      std::fill_n(grad_v + i * s.width, s.width, T(0));
      for (int64_t target = std::max<int64_t>(0, t - s.right); target <= std::min(s.rows - 1, t + s.left); ++target) {
        const T g = grad_band[(i - t + target) * span + t - target + s.left];
        for (int64_t c = 0; c < s.width; ++c) grad_v[i * s.width + c] += g * u[(i - t + target) * s.width + c];
      }
    }
  });
}

#define AFT_INSTANTIATE(T)                                                                                          \
  template void local_bias_forward<T>(const LocalBiasShape&, const T*, const T*, T*, const ParallelFor&);           \
  template void local_bias_backward<T>(const LocalBiasShape&, const T*, const T*, const T*, T*, T*, const ParallelFor&);
AFT_INSTANTIATE(float)
AFT_INSTANTIATE(double)

}  // namespace aft::ops

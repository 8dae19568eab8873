#include <algorithm>

#include "aft/ops/local_bias.h"

namespace aft::ops {

template <typename T>
void local_bias_forward_reference(const LocalBiasShape& s, const T* u, const T* v, T* band) {
  const int64_t span = s.left + 1 + s.right;
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t t = 0; t < s.rows; ++t) {
      for (int64_t j = 0; j < span; ++j) {
        const int64_t source = t - s.left + j;
        T sum = 0;
        if (source >= 0 && source < s.rows) {
          for (int64_t i = 0; i < s.width; ++i) {
            sum += u[(h * s.rows + t) * s.width + i] * v[(h * s.rows + source) * s.width + i];
          }
        }
        band[(h * s.rows + t) * span + j] = sum;
      }
    }
  }
}

template <typename T>
void local_bias_backward_reference(const LocalBiasShape& s, const T* u, const T* v, const T* grad_band, T* grad_u,
                                   T* grad_v) {
  const int64_t span = s.left + 1 + s.right;
  const int64_t size = s.heads * s.rows * s.width;
  if (grad_u != nullptr) std::fill(grad_u, grad_u + size, T(0));
  if (grad_v != nullptr) std::fill(grad_v, grad_v + size, T(0));
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t t = 0; t < s.rows; ++t) {
      for (int64_t j = 0; j < span; ++j) {
        const int64_t source = t - s.left + j;
        if (source < 0 || source >= s.rows) continue;
        const T g = grad_band[(h * s.rows + t) * span + j];
        for (int64_t i = 0; i < s.width; ++i) {
          const int64_t at_t = (h * s.rows + t) * s.width + i;
          const int64_t at_source = (h * s.rows + source) * s.width + i;
          if (grad_u != nullptr) grad_u[at_t] += g * v[at_source];
          if (grad_v != nullptr) grad_v[at_source] += g * u[at_t];
        }
      }
    }
  }
}

template void local_bias_forward_reference<double>(const LocalBiasShape&, const double*, const double*, double*);
template void local_bias_forward_reference<long double>(const LocalBiasShape&, const long double*, const long double*,
                                                        long double*);
template void local_bias_backward_reference<double>(const LocalBiasShape&, const double*, const double*, const double*,
                                                    double*, double*);
template void local_bias_backward_reference<long double>(const LocalBiasShape&, const long double*, const long double*,
                                                         const long double*, long double*, long double*);

}  // namespace aft::ops

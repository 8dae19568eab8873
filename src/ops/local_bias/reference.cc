#include <algorithm>

#include "aft/ops/local_bias.h"

namespace aft::ops {

template <typename T>
void local_bias_forward_reference(const LocalBiasForward<T>& p) {
  const LocalBiasShape& s = p.in.shape;
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t t = 0; t < s.rows; ++t) {
      for (int64_t j = 0; j < s.columns(); ++j) {
        const int64_t source = t - s.left + j;
        T sum = 0;
        if (source >= 0 && source < s.rows) {
          for (int64_t i = 0; i < s.width; ++i) {
            sum += p.in.u[(h * s.rows + t) * s.width + i] * p.in.v[(h * s.rows + source) * s.width + i];
          }
        }
        p.band[(h * s.rows + t) * s.columns() + j] = sum;
      }
    }
  }
}

template <typename T>
void local_bias_backward_reference(const LocalBiasBackward<T>& p) {
  const LocalBiasShape& s = p.in.shape;
  const int64_t size = s.heads * s.rows * s.width;
  if (p.grad_u != nullptr) std::fill_n(p.grad_u, size, T(0));
  if (p.grad_v != nullptr) std::fill_n(p.grad_v, size, T(0));
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t t = 0; t < s.rows; ++t) {
      for (int64_t j = 0; j < s.columns(); ++j) {
        const int64_t source = t - s.left + j;
        if (source < 0 || source >= s.rows) continue;
        const T g = p.grad_band[(h * s.rows + t) * s.columns() + j];
        for (int64_t i = 0; i < s.width; ++i) {
          const int64_t at_t = (h * s.rows + t) * s.width + i;
          const int64_t at_source = (h * s.rows + source) * s.width + i;
          if (p.grad_u != nullptr) p.grad_u[at_t] += g * p.in.v[at_source];
          if (p.grad_v != nullptr) p.grad_v[at_source] += g * p.in.u[at_t];
        }
      }
    }
  }
}

template void local_bias_forward_reference<double>(const LocalBiasForward<double>&);
template void local_bias_forward_reference<long double>(const LocalBiasForward<long double>&);
template void local_bias_backward_reference<double>(const LocalBiasBackward<double>&);
template void local_bias_backward_reference<long double>(const LocalBiasBackward<long double>&);

}  // namespace aft::ops

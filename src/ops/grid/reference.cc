// The grid operator straight from the equation: one target, one channel, one source at a time. Slow on purpose; the
// kernels are tested against it, so it shares nothing with them.

#include "ops/common/reference.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <vector>

#include "aft/ops/grid.h"

namespace aft::ops {
namespace {

template <typename T>
T read(const Rows<const T>& rows, int64_t b, int64_t t, int64_t c) {
  return rows.data[b * rows.batch_stride + t * rows.time_stride + c];
}

template <typename T>
T& write(const Rows<T>& rows, int64_t b, int64_t t, int64_t c) {
  return rows.data[b * rows.batch_stride + t * rows.time_stride + c];
}

template <typename T>
struct Image {
  const GridInputs<T>& in;
  const GridShape& shape;
  int64_t b;

  int64_t head(int64_t c) const { return c / (shape.channels / shape.heads); }
  int64_t key_channel(int64_t c) const { return shape.key_channels == shape.channels ? c : head(c); }
  // Element of the kernel for target t and source s, or -1 outside it.
  int64_t kernel_index(int64_t t, int64_t s, int64_t c) const {
    const int64_t reach = (shape.kernel - 1) / 2;
    const int64_t dy = s / shape.width - t / shape.width;
    const int64_t dx = s % shape.width - t % shape.width;
    if (std::abs(dy) > reach || std::abs(dx) > reach) return -1;
    return (head(c) * shape.kernel + reach + dy) * shape.kernel + reach + dx;
  }
  // k + w; -inf: nothing to see.
  T exponent(int64_t t, int64_t s, int64_t c) const {
    const KeyMask& mask = in.key_mask;
    if (mask.data != nullptr && !mask.data[b * mask.batch_stride + s]) return -std::numeric_limits<T>::infinity();
    const int64_t index = kernel_index(t, s, c);
    return read(in.k, b, s, key_channel(c)) + (index < 0 ? T(0) : in.kernel[index]);
  }
  // Under the row maximum of the exponents: D, N, and what every source weighs, one that is absent -inf. Nothing to
  // see: D = 0.
  struct Sums {
    T den = 0, num = 0;
    std::vector<T> sources;
  };
  Sums row_sums(int64_t t, int64_t c) const {
    const T absent = -std::numeric_limits<T>::infinity();
    Sums sums;
    T max = absent;
    for (int64_t s = 0; s < shape.time(); ++s) {
      const T x = exponent(t, s, c);
      if (x > max || std::isnan(x)) max = x;
      sums.sources.push_back(x);
    }
    if (max == absent) return sums;
    for (int64_t s = 0; s < shape.time(); ++s) {
      T& e = sums.sources[s];
      if (e == absent) continue;
      e = exp_of(e - max);
      sums.den += e;
      sums.num += e * read(in.v, b, s, c);
    }
    return sums;
  }
};

}  // namespace

template <typename T>
void grid_forward_reference(const GridForward<T>& p) {
  const GridShape& s = p.in.shape;
  for (int64_t b = 0; b < s.batch; ++b) {
    const Image<T> image{p.in, s, b};
    for (int64_t t = 0; t < s.time(); ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const auto sums = image.row_sums(t, c);
        const T gate = s.gate == Gate::kNone ? T(1) : gate_value(s.gate, read(p.in.q, b, t, c));
        write(p.y, b, t, c) = sums.den == 0 ? T(0) : gate * (sums.num / sums.den);
      }
    }
  }
}

template <typename T>
void grid_backward_reference(const GridBackward<T>& p) {
  const GridShape& s = p.in.shape;
  if (p.grad_kernel != nullptr) std::fill_n(p.grad_kernel, s.heads * s.kernel * s.kernel, T(0));
  for (int64_t b = 0; b < s.batch; ++b) {
    const Image<T> image{p.in, s, b};
    for (int64_t t = 0; t < s.time(); ++t) {
      for (int64_t c = 0; c < s.key_channels; ++c) write(p.grad_k, b, t, c) = 0;
      for (int64_t c = 0; c < s.channels; ++c) write(p.grad_v, b, t, c) = 0;
    }
    for (int64_t t = 0; t < s.time(); ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const auto sums = image.row_sums(t, c);
        const bool empty = sums.den == 0;
        const T ratio = empty ? T(0) : sums.num / sums.den;
        T gated = read(p.grad_y, b, t, c);
        if (s.gate != Gate::kNone) {
          const T q = read(p.in.q, b, t, c);
          write(p.grad_q, b, t, c) = empty ? T(0) : gated * ratio * gate_slope(s.gate, q);
          gated *= gate_value(s.gate, q);
        }
        if (empty) continue;
        for (int64_t source = 0; source < s.time(); ++source) {
          const T e = sums.sources[source];
          if (e == -std::numeric_limits<T>::infinity()) continue;
          const T a = e / sums.den;
          const T grad = a * gated * (read(p.in.v, b, source, c) - ratio);
          write(p.grad_v, b, source, c) += a * gated;
          write(p.grad_k, b, source, image.key_channel(c)) += grad;
          const int64_t index = image.kernel_index(t, source, c);
          if (index >= 0 && p.grad_kernel != nullptr) p.grad_kernel[index] += grad;
        }
      }
    }
  }
}

#define AFT_INSTANTIATE(T)                                        \
  template void grid_forward_reference<T>(const GridForward<T>&); \
  template void grid_backward_reference<T>(const GridBackward<T>&);
AFT_INSTANTIATE(double)
AFT_INSTANTIATE(long double)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

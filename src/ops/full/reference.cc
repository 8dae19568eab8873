// The dense operator straight from the equation (Zhai et al. 2021, Eq. 2-3): one row, one channel, one source at a
// time. Slow on purpose; the kernels are tested against it, so it shares nothing with them.

#include "ops/common/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "aft/ops/full.h"

namespace aft::ops {
namespace {

template <typename T>
constexpr T kAbsent = -std::numeric_limits<T>::infinity();

// One batch row or packed sequence, sources and targets by absolute position.
template <typename T>
struct Row {
  const FullInputs<T>& in;
  int64_t b, batch, token = 0, first = 0, targets, sources;

  Row(const FullInputs<T>& inputs, int64_t index) : in(inputs), b(index), batch(index) {
    targets = in.shape.targets;
    sources = in.shape.sources;
    if (in.cu_seqlens != nullptr) {
      batch = 0;
      token = in.cu_seqlens[b];
      targets = sources = in.cu_seqlens[b + 1] - token;
    }
    if (in.initial_state.position != nullptr) first = in.initial_state.position[b];
    if (in.shape.causal) sources = first + targets;
  }

  int64_t head(int64_t c) const { return c / (in.shape.channels / in.shape.heads); }
  int64_t key_channel(int64_t c) const { return in.shape.key_channels == in.shape.channels ? c : head(c); }
  int64_t ring(int64_t s, int64_t c, int64_t width) const { return (batch * in.shape.capacity + s) * width + c; }
  int64_t row(int64_t position) const { return token + position - first; }
  template <typename Element>
  Element& at(const Rows<Element>& rows, int64_t position, int64_t c) const {
    return rows.data[batch * rows.batch_stride + row(position) * rows.time_stride + c];
  }
  T k(int64_t s, int64_t c) const {
    if (s < first) return in.initial_state.ring_key[ring(s, key_channel(c), in.shape.key_channels)];
    return masked(s) ? kAbsent<T> : at(in.k, s, key_channel(c));
  }
  T v(int64_t s, int64_t c) const {
    if (s < first) return in.initial_state.ring_value[ring(s, c, in.shape.channels)];
    return masked(s) ? T(0) : at(in.v, s, c);
  }
  bool masked(int64_t s) const {
    return s >= first && in.key_mask.data != nullptr && !in.key_mask.data[batch * in.key_mask.batch_stride + row(s)];
  }
  int64_t table_index(int64_t t, int64_t s, int64_t c) const {
    const auto& w = in.weights;
    return (in.cu_seqlens == nullptr ? b : 0) * w.batch_stride + head(c) * w.head_stride + t * w.row_stride + s;
  }
  int64_t u_index(int64_t t, int64_t c) const { return head(c) * in.weights.u_head_stride + t * in.weights.width; }
  int64_t v_index(int64_t s, int64_t c) const { return head(c) * in.weights.v_head_stride + s * in.weights.width; }
  T weight(int64_t t, int64_t s, int64_t c) const {
    const auto& w = in.weights;
    if (w.u == nullptr) return w.table[table_index(t, s, c)];
    T sum = 0;
    for (int64_t i = 0; i < w.width; ++i) sum += w.u[u_index(t, c) + i] * w.v[v_index(s, c) + i];
    return sum;
  }
  int64_t seen(int64_t t) const { return in.shape.causal ? t + 1 : sources; }
  T exponent(int64_t t, int64_t s, int64_t c) const {
    const T w = weight(t, s, c);
    const T key = k(s, c);
    return w == kAbsent<T> || key == kAbsent<T> ? kAbsent<T> : key + w;
  }

  // Under the row maximum of the exponents: D, N, and what every source weighs, one that is absent -inf. Nothing to
  // see: D = 0.
  struct Sums {
    T den = 0, num = 0;
    std::vector<T> sources;
  };
  Sums sums(int64_t t, int64_t c) const {
    Sums r;
    T max = kAbsent<T>;
    for (int64_t s = 0; s < seen(t); ++s) {
      const T x = exponent(t, s, c);
      if (x > max || std::isnan(x)) max = x;
      r.sources.push_back(x);
    }
    if (max == kAbsent<T>) return r;
    for (int64_t s = 0; s < seen(t); ++s) {
      T& e = r.sources[s];
      if (e == kAbsent<T>) continue;
      e = exp_of(e - max);
      r.den += e;
      r.num += e * v(s, c);
    }
    return r;
  }
  T gate(int64_t t, int64_t c) const {
    return in.shape.gate == Gate::kNone ? T(1) : gate_value(in.shape.gate, T(at(in.q, t, c)));
  }
};

template <typename T>
void fill(T* data, int64_t size) {
  if (data != nullptr) std::fill_n(data, size, T(0));
}

template <typename T>
void clear_weights(const PairWeights<T>& g, const FullShape& s) {
  if (g.table != nullptr) {
    for (int64_t b = 0; b < (g.batch_stride == 0 ? 1 : s.batch); ++b) {
      for (int64_t h = 0; h < (g.head_stride == 0 ? 1 : s.heads); ++h) {
        for (int64_t t = 0; t < g.rows; ++t) {
          fill(g.table + b * g.batch_stride + h * g.head_stride + t * g.row_stride, g.columns);
        }
      }
    }
  }
  fill(g.u, (g.u_head_stride == 0 ? 1 : s.heads) * g.rows * g.width);
  fill(g.v, (g.v_head_stride == 0 ? 1 : s.heads) * g.columns * g.width);
}

}  // namespace

template <typename T>
void full_forward_reference(const FullForward<T>& p) {
  const FullShape& s = p.in.shape;
  for (int64_t b = 0; b < s.batch; ++b) {
    const Row<T> row(p.in, b);
    for (int64_t t = row.first; t < row.first + row.targets; ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const auto sums = row.sums(t, c);
        row.at(p.y, t, c) = sums.den == 0 ? T(0) : row.gate(t, c) * (sums.num / sums.den);
      }
    }
    const State<T>& to = p.final_state;
    if (to.position == nullptr) continue;
    for (int64_t i = 0; i < row.sources; ++i) {
      for (int64_t c = 0; c < s.channels; ++c) {
        to.ring_key[row.ring(i, row.key_channel(c), s.key_channels)] = row.k(i, c);
        to.ring_value[row.ring(i, c, s.channels)] = row.v(i, c);
      }
    }
    std::fill_n(to.max + b * s.key_channels, s.key_channels, std::numeric_limits<T>::lowest());
    fill(to.den + b * s.key_channels, s.key_channels);
    fill(to.num + b * s.channels, s.channels);
    to.position[b] = row.first + row.targets;
  }
}

template <typename T>
void full_backward_reference(const FullBackward<T>& p) {
  const FullShape& s = p.in.shape;
  const PairWeights<T>& g_w = p.grad_weights;
  clear_weights(g_w, s);
  fill(p.grad_initial_state.den, s.batch * s.key_channels);
  fill(p.grad_initial_state.num, s.batch * s.channels);
  fill(p.grad_initial_state.ring_key, s.batch * s.capacity * s.key_channels);
  fill(p.grad_initial_state.ring_value, s.batch * s.capacity * s.channels);
  for (int64_t b = 0; b < s.batch; ++b) {
    const Row<T> row(p.in, b);
    std::vector<T> grad_k(row.sources * s.key_channels, T(0));
    std::vector<T> grad_v(row.sources * s.channels, T(0));
    for (int64_t t = row.first; t < row.first + row.targets; ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const auto sums = row.sums(t, c);
        const bool empty = sums.den == 0;
        const T ratio = empty ? T(0) : sums.num / sums.den;
        const T gy = row.at(p.grad_y, t, c);
        const T gated = gy * row.gate(t, c);
        if (s.gate != Gate::kNone) {
          row.at(p.grad_q, t, c) = empty ? T(0) : gy * ratio * gate_slope(s.gate, T(row.at(p.in.q, t, c)));
        }
        if (empty) continue;
        for (int64_t i = 0; i < row.seen(t); ++i) {
          const T e = sums.sources[i];
          if (e == kAbsent<T>) continue;
          const T a = e / sums.den;
          const T g = a * gated * (row.v(i, c) - ratio);
          grad_v[i * s.channels + c] += a * gated;
          grad_k[i * s.key_channels + row.key_channel(c)] += g;
          if (g_w.table != nullptr) g_w.table[row.table_index(t, i, c)] += g;
          for (int64_t f = 0; f < g_w.width && g_w.u != nullptr; ++f) {
            g_w.u[row.u_index(t, c) + f] += g * p.in.weights.v[row.v_index(i, c) + f];
            g_w.v[row.v_index(i, c) + f] += g * p.in.weights.u[row.u_index(t, c) + f];
          }
        }
      }
    }
    // The ring of the final state is a copy.
    const auto write = [&](std::vector<T>& grad, const T* final_ring, T* initial_ring, const Rows<T>& rows,
                           int64_t width) {
      for (int64_t i = 0; i < row.sources; ++i) {
        for (int64_t c = 0; c < width; ++c) {
          T g = grad[i * width + c];
          if (final_ring != nullptr) g += final_ring[row.ring(i, c, width)];
          if (row.masked(i)) g = 0;
          if (i >= row.first) {
            row.at(rows, i, c) = g;
          } else if (initial_ring != nullptr) {
            initial_ring[row.ring(i, c, width)] = g;
          }
        }
      }
    };
    write(grad_k, p.grad_final_state.ring_key, p.grad_initial_state.ring_key, p.grad_k, s.key_channels);
    write(grad_v, p.grad_final_state.ring_value, p.grad_initial_state.ring_value, p.grad_v, s.channels);
  }
}

template void full_forward_reference<double>(const FullForward<double>&);
template void full_forward_reference<long double>(const FullForward<long double>&);
template void full_backward_reference<double>(const FullBackward<double>&);
template void full_backward_reference<long double>(const FullBackward<long double>&);

}  // namespace aft::ops

// The windowed operator straight from the equation (Zhai et al. 2021, Eq. 2, 4-6): one row, one channel, one source at
// a time. Slow on purpose; the kernels are tested against it, so it shares nothing with them.

#include "ops/common/reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "aft/ops/window.h"

namespace aft::ops {
namespace {

template <typename T>
constexpr T kLowest = std::numeric_limits<T>::lowest();

// One batch row: its sources are s in [first, T), local indices; s < 0 lie in the ring of the initial state.
template <typename T>
struct Row {
  const WindowShape& shape;
  Rows<const T> k_rows, v_rows;
  Band<const T> band;
  KeyMask mask;
  State<const T> initial;
  int64_t b;
  int64_t position = 0;
  int64_t first = 0;

  Row(const WindowInputs<T>& in, int64_t batch)
      : shape(in.shape),
        k_rows(in.k),
        v_rows(in.v),
        band(in.band),
        mask(in.key_mask),
        initial(in.initial_state),
        b(batch) {
    if (initial.position != nullptr) position = initial.position[b];
    first = -std::min(position, shape.left);
  }
  int64_t head(int64_t c) const { return c / (shape.channels / shape.heads); }
  int64_t key_channel(int64_t c) const { return shape.key_channels == shape.channels ? c : head(c); }
  int64_t slot(int64_t s) const { return (position + s) % shape.left; }
  int64_t ring_key(int64_t s, int64_t c) const {
    return (b * shape.left + slot(s)) * shape.key_channels + key_channel(c);
  }
  int64_t ring_value(int64_t s, int64_t c) const { return (b * shape.left + slot(s)) * shape.channels + c; }
  bool masked(int64_t s) const { return s >= 0 && mask.data != nullptr && !mask.data[b * mask.batch_stride + s]; }
  T k(int64_t s, int64_t c) const {
    if (masked(s)) return -std::numeric_limits<T>::infinity();
    return s < 0 ? initial.ring_key[ring_key(s, c)]
                 : k_rows.data[b * k_rows.batch_stride + s * k_rows.time_stride + key_channel(c)];
  }
  T v(int64_t s, int64_t c) const {
    return s < 0 ? initial.ring_value[ring_value(s, c)]
                 : v_rows.data[b * v_rows.batch_stride + s * v_rows.time_stride + c];
  }
  bool inside(int64_t t, int64_t s) const { return shape.has_band && s >= t - shape.left && s <= t + shape.right; }
  int64_t band_index(int64_t t, int64_t s, int64_t c) const {
    return head(c) * band.head_stride + (position + t) * band.row_stride + s - t + shape.left;
  }
  T x(int64_t t, int64_t s, int64_t c) const {
    return k(s, c) + (inside(t, s) ? band.data[band_index(t, s, c)] : T(0));
  }
  int64_t end(int64_t t) const { return shape.causal ? t + 1 : shape.time; }
  bool has_sums(int64_t c) const {
    return initial.position != nullptr && initial.max[b * shape.key_channels + key_channel(c)] != kLowest<T>;
  }
  T sums_exponent(int64_t c) const {
    return initial.max[b * shape.key_channels + key_channel(c)] * std::numbers::ln2_v<T>;
  }
  T den0(int64_t c) const { return initial.den[b * shape.key_channels + key_channel(c)]; }
  T num0(int64_t c) const { return initial.num[b * shape.channels + c]; }

  // Under the row maximum of the exponents: D, N, and what the state's sums and every source weigh, a source that is
  // absent -inf. Nothing to see: D = 0.
  struct Sums {
    T den = 0, num = 0, initial = 0;
    std::vector<T> sources;  // from `first` on
  };
  Sums row_sums(int64_t t, int64_t c) const {
    const T absent = -std::numeric_limits<T>::infinity();
    Sums sums;
    T max = has_sums(c) ? sums_exponent(c) : absent;
    for (int64_t s = first; s < end(t); ++s) {
      const T exponent = x(t, s, c);
      if (exponent > max || std::isnan(exponent)) max = exponent;
      sums.sources.push_back(exponent);
    }
    if (max == absent) return sums;
    if (has_sums(c)) {
      sums.initial = std::exp(sums_exponent(c) - max);
      sums.den += sums.initial * den0(c);
      sums.num += sums.initial * num0(c);
    }
    for (int64_t s = first; s < end(t); ++s) {
      T& e = sums.sources[s - first];
      if (e == absent) continue;
      e = exp_of(e - max);
      sums.den += e;
      sums.num += e * v(s, c);
    }
    return sums;
  }
};

template <typename T>
T exponent_of(T k) {
  return k == -std::numeric_limits<T>::infinity() ? kLowest<T> : std::nearbyint(k * std::numbers::log2e_v<T>);
}

// Largest exponent among the sources that the final state sums.
template <typename T>
T final_max(const Row<T>& row, int64_t c) {
  T max = row.has_sums(c) ? row.initial.max[row.b * row.shape.key_channels + row.key_channel(c)] : kLowest<T>;
  for (int64_t s = row.first; s < row.shape.time - row.shape.left; ++s) max = std::max(max, exponent_of(row.k(s, c)));
  return max;
}

template <typename T>
T scaled_exp(T k, T max) {
  return k == -std::numeric_limits<T>::infinity() ? T(0) : std::exp(k - max * std::numbers::ln2_v<T>);
}

template <typename T>
void write_final_state(const Row<T>& row, State<T> out) {
  const WindowShape& s = row.shape;
  // Read everything before writing: the final state may be the initial one.
  std::vector<T> max(s.key_channels), den(s.key_channels), num(s.channels);
  std::vector<T> ring_key(s.left * s.key_channels), ring_value(s.left * s.channels);
  const int64_t end = row.position + s.time;
  for (int64_t c = 0; c < s.channels; ++c) {
    const T m = final_max(row, c);
    T d = 0;
    T n = 0;
    if (row.has_sums(c)) {
      const T e = std::exp(row.sums_exponent(c) - m * std::numbers::ln2_v<T>);
      d += e * row.den0(c);
      n += e * row.num0(c);
    }
    for (int64_t t = row.first; t < s.time - s.left; ++t) {
      const T e = scaled_exp(row.k(t, c), m);
      d += e;
      n += e == 0 ? T(0) : e * row.v(t, c);
    }
    max[row.key_channel(c)] = m;
    den[row.key_channel(c)] = d;
    num[c] = n;
    for (int64_t t = std::max(row.first, s.time - s.left); t < s.time; ++t) {
      ring_key[row.slot(t) * s.key_channels + row.key_channel(c)] = row.k(t, c);
      ring_value[row.slot(t) * s.channels + c] = row.masked(t) ? T(0) : row.v(t, c);
    }
  }
  out.position[row.b] = end;
  std::copy(max.begin(), max.end(), out.max + row.b * s.key_channels);
  std::copy(den.begin(), den.end(), out.den + row.b * s.key_channels);
  std::copy(num.begin(), num.end(), out.num + row.b * s.channels);
  if (s.left > 0) {
    std::copy(ring_key.begin(), ring_key.end(), out.ring_key + row.b * s.left * s.key_channels);
    std::copy(ring_value.begin(), ring_value.end(), out.ring_value + row.b * s.left * s.channels);
  }
}

template <typename T>
void fill(T* data, int64_t size) {
  if (data != nullptr) std::fill(data, data + size, T(0));
}

// Sequence b of packed ones, alone.
template <class P>
P one_of(const P& p, int64_t b) {
  P one = p;
  one.in.cu_seqlens = nullptr;
  one.in.shape.packed = false;
  one.in.shape.batch = 1;
  one.in.shape.time = p.in.cu_seqlens[b + 1] - p.in.cu_seqlens[b];
  const auto cut = [&](auto& rows) {
    if (rows.data != nullptr) rows.data += p.in.cu_seqlens[b] * rows.time_stride;
  };
  cut(one.in.q);
  cut(one.in.k);
  cut(one.in.v);
  if (one.in.key_mask.data != nullptr) one.in.key_mask.data += p.in.cu_seqlens[b];
  const WindowShape& s = p.in.shape;
  const auto pick = [&](auto& state) {
    if constexpr (requires { state.position; }) {
      if (state.position == nullptr) return;
      state.position += b;
      state.max += b * s.key_channels;
    }
    const auto move = [&](auto*& data, int64_t size) {
      if (data != nullptr) data += b * size;
    };
    move(state.den, s.key_channels);
    move(state.num, s.channels);
    move(state.ring_key, s.left * s.key_channels);
    move(state.ring_value, s.left * s.channels);
  };
  pick(one.in.initial_state);
  if constexpr (requires { one.final_state; }) {
    cut(one.y);
    pick(one.final_state);
  } else {
    cut(one.grad_y);
    cut(one.grad_q);
    cut(one.grad_k);
    cut(one.grad_v);
    pick(one.grad_final_state);
    pick(one.grad_initial_state);
  }
  return one;
}

}  // namespace

template <typename T>
void window_forward_reference(const WindowForward<T>& p) {
  const WindowShape& s = p.in.shape;
  if (p.in.cu_seqlens != nullptr) {
    for (int64_t b = 0; b < s.batch; ++b) window_forward_reference(one_of(p, b));
    return;
  }
  for (int64_t b = 0; b < s.batch; ++b) {
    const Row<T> row(p.in, b);
    for (int64_t t = 0; t < s.time; ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const auto sums = row.row_sums(t, c);
        const T gate = s.gate == Gate::kNone
                           ? T(1)
                           : gate_value(s.gate, p.in.q.data[b * p.in.q.batch_stride + t * p.in.q.time_stride + c]);
        p.y.data[b * p.y.batch_stride + t * p.y.time_stride + c] = sums.den == 0 ? T(0) : gate * (sums.num / sums.den);
      }
    }
    if (p.final_state.position != nullptr) write_final_state(row, p.final_state);
  }
}

template <typename T>
void window_backward_reference(const WindowBackward<T>& p) {
  const WindowShape& s = p.in.shape;
  const int64_t span = s.left + 1 + s.right;
  if (p.in.cu_seqlens != nullptr) {
    std::vector<T> total;  // of grad_band, which every sequence overwrites
    const auto each_weight = [&](const auto& visit) {
      if (p.grad_band.data == nullptr) return;
      size_t i = 0;
      for (int64_t h = 0; h < s.heads; ++h) {
        for (int64_t t = 0; t < p.grad_band.rows; ++t) {
          T* row = p.grad_band.data + h * p.grad_band.head_stride + t * p.grad_band.row_stride;
          for (int64_t j = 0; j < span; ++j) visit(row[j], i++);
        }
      }
    };
    each_weight([&](T&, size_t) { total.push_back(0); });
    for (int64_t b = 0; b < s.batch; ++b) {
      window_backward_reference(one_of(p, b));
      each_weight([&](T g, size_t i) { total[i] += g; });
    }
    each_weight([&](T& g, size_t i) { g = total[i]; });
    return;
  }
  if (p.grad_band.data != nullptr) {
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t t = 0; t < p.grad_band.rows; ++t) {
        fill(p.grad_band.data + h * p.grad_band.head_stride + t * p.grad_band.row_stride, span);
      }
    }
  }
  fill(p.grad_initial_state.den, s.batch * s.key_channels);
  fill(p.grad_initial_state.num, s.batch * s.channels);
  fill(p.grad_initial_state.ring_key, s.batch * s.left * s.key_channels);
  fill(p.grad_initial_state.ring_value, s.batch * s.left * s.channels);

  for (int64_t b = 0; b < s.batch; ++b) {
    const Row<T> row(p.in, b);
    // Gradients of every source, ring included: index (s - first) * channels + c.
    const int64_t sources = s.time - row.first;
    std::vector<T> grad_k(sources * s.key_channels, T(0));
    std::vector<T> grad_v(sources * s.channels, T(0));
    const auto at_k = [&](int64_t t, int64_t c) -> T& {
      return grad_k[(t - row.first) * s.key_channels + row.key_channel(c)];
    };
    const auto at_v = [&](int64_t t, int64_t c) -> T& { return grad_v[(t - row.first) * s.channels + c]; };

    for (int64_t t = 0; t < s.time; ++t) {
      for (int64_t c = 0; c < s.channels; ++c) {
        const auto sums = row.row_sums(t, c);
        const bool empty = sums.den == 0;
        const T ratio = empty ? T(0) : sums.num / sums.den;
        const T gy = p.grad_y.data[b * p.grad_y.batch_stride + t * p.grad_y.time_stride + c];
        T gated = gy;
        if (s.gate != Gate::kNone) {
          const T q = p.in.q.data[b * p.in.q.batch_stride + t * p.in.q.time_stride + c];
          gated = gy * gate_value(s.gate, q);
          p.grad_q.data[b * p.grad_q.batch_stride + t * p.grad_q.time_stride + c] =
              empty ? T(0) : gy * ratio * gate_slope(s.gate, q);
        }
        if (empty) continue;
        if (row.has_sums(c)) {
          const T a = sums.initial / sums.den;
          if (p.grad_initial_state.num != nullptr) p.grad_initial_state.num[b * s.channels + c] += a * gated;
          if (p.grad_initial_state.den != nullptr) {
            p.grad_initial_state.den[b * s.key_channels + row.key_channel(c)] -= a * gated * ratio;
          }
        }
        for (int64_t source = row.first; source < row.end(t); ++source) {
          const T e = sums.sources[source - row.first];
          if (e == -std::numeric_limits<T>::infinity()) continue;
          const T a = e / sums.den;
          at_v(source, c) += a * gated;
          const T g = a * gated * (row.v(source, c) - ratio);
          at_k(source, c) += g;
          if (row.inside(t, source) && p.grad_band.data != nullptr) {
            p.grad_band.data[row.head(c) * p.grad_band.head_stride + (row.position + t) * p.grad_band.row_stride +
                             source - t + s.left] += g;
          }
        }
      }
    }

    // Through the final state; its max is a constant.
    for (int64_t c = 0; c < s.channels; ++c) {
      const T max = s.causal ? final_max(row, c) : T(0);
      // den is one per key channel: count it once for all channels of a head that shares its key.
      const bool first_of_key = s.key_channels == s.channels || c % (s.channels / s.heads) == 0;
      const T g_num = p.grad_final_state.num != nullptr ? p.grad_final_state.num[b * s.channels + c] : T(0);
      const T g_den = p.grad_final_state.den != nullptr && first_of_key
                          ? p.grad_final_state.den[b * s.key_channels + row.key_channel(c)]
                          : T(0);
      if (row.has_sums(c)) {
        const T e = std::exp(row.sums_exponent(c) - max * std::numbers::ln2_v<T>);
        if (p.grad_initial_state.num != nullptr) p.grad_initial_state.num[b * s.channels + c] += e * g_num;
        if (p.grad_initial_state.den != nullptr) {
          p.grad_initial_state.den[b * s.key_channels + row.key_channel(c)] += e * g_den;
        }
      }
      for (int64_t t = row.first; s.causal && t < s.time - s.left; ++t) {
        const T e = scaled_exp(row.k(t, c), max);
        if (e == 0) continue;
        at_v(t, c) += e * g_num;
        at_k(t, c) += e * (g_den + row.v(t, c) * g_num);
      }
      for (int64_t t = std::max(row.first, s.time - s.left); t < s.time; ++t) {
        if (p.grad_final_state.ring_key != nullptr && first_of_key) {
          at_k(t, c) += p.grad_final_state.ring_key[row.ring_key(t, c)];
        }
        if (p.grad_final_state.ring_value != nullptr) {
          at_v(t, c) += p.grad_final_state.ring_value[row.ring_value(t, c)];
        }
      }
    }

    for (int64_t t = row.first; t < s.time; ++t) {
      for (int64_t c = 0; c < s.key_channels; ++c) {
        const T g = row.masked(t) ? T(0) : grad_k[(t - row.first) * s.key_channels + c];
        if (t >= 0) {
          p.grad_k.data[b * p.grad_k.batch_stride + t * p.grad_k.time_stride + c] = g;
        } else if (p.grad_initial_state.ring_key != nullptr) {
          p.grad_initial_state.ring_key[(b * s.left + row.slot(t)) * s.key_channels + c] = g;
        }
      }
      for (int64_t c = 0; c < s.channels; ++c) {
        const T g = row.masked(t) ? T(0) : grad_v[(t - row.first) * s.channels + c];
        if (t >= 0) {
          p.grad_v.data[b * p.grad_v.batch_stride + t * p.grad_v.time_stride + c] = g;
        } else if (p.grad_initial_state.ring_value != nullptr) {
          p.grad_initial_state.ring_value[(b * s.left + row.slot(t)) * s.channels + c] = g;
        }
      }
    }
  }
}

template <typename T>
void window_step_reference(const WindowStep<T>& p) {
  WindowForward<T> forward;
  forward.in = p.in;
  forward.in.shape.time = 1;
  forward.in.shape.packed = false;
  forward.in.key_mask = {};
  forward.in.cu_seqlens = nullptr;
  forward.in.initial_state = p.state;
  forward.y = p.y;
  forward.final_state = p.state;
  window_forward_reference(forward);
}

template void window_forward_reference<double>(const WindowForward<double>&);
template void window_forward_reference<long double>(const WindowForward<long double>&);
template void window_backward_reference<double>(const WindowBackward<double>&);
template void window_backward_reference<long double>(const WindowBackward<long double>&);
template void window_step_reference<double>(const WindowStep<double>&);
template void window_step_reference<long double>(const WindowStep<long double>&);

}  // namespace aft::ops

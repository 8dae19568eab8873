#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/ops/element.h"
#include "tests/ops/full_run.h"
#include "tests/ops/window_plain.h"

namespace aft::ops::test {
namespace {

// u v^T of every head that has its own.
template <typename T>
std::vector<T> factor_products(const FullInputs<T>& in) {
  std::vector<T> products;
  for (int64_t h = 0; h < in.weight_heads(); ++h) {
    for (int64_t t = 0; t < in.rows; ++t) {
      for (int64_t i = 0; i < in.columns; ++i) {
        T sum = 0;
        for (int64_t f = 0; f < in.width; ++f) sum += in.u[in.u_index(h, t, f)] * in.w[in.w_index(h, i, f)];
        products.push_back(sum);
      }
    }
  }
  return products;
}

// Row b of the batch or packed sequence b: the sources are the ring's, then those of the call.
template <typename T>
struct PlainRow {
  const FullInputs<T>& in;
  const FullShape& s;
  int64_t b, first = 0, targets, sources, before_targets, before_sources;

  PlainRow(const FullInputs<T>& inputs, int64_t index) : in(inputs), s(inputs.shape), b(index) {
    const bool packed = !in.cu_seqlens.empty();
    if (!in.initial.position.empty()) first = in.initial.position[b];
    targets = packed ? in.cu_seqlens[b + 1] - in.cu_seqlens[b] : s.targets;
    sources = first + (packed || s.causal ? targets : s.sources);
    before_targets = packed ? in.cu_seqlens[b] : b * s.targets;
    before_sources = packed ? in.cu_seqlens[b] : b * s.sources;
  }
  int64_t seen(int64_t t) const { return s.causal ? first + t + 1 : sources; }
  // Of key or value i of `width` channels: in the ring before `first`, in the call's tensor from there.
  int64_t index(int64_t i, int64_t width, int64_t channel) const {
    return (i < first ? b * s.capacity + i : before_sources + i - first) * width + channel;
  }
  T key(int64_t i, int64_t kc) const {
    if (i < first) return in.initial.ring_key[index(i, s.key_channels, kc)];
    const bool masked = !in.mask.empty() && in.mask[before_sources + i - first] == 0;
    return masked ? -std::numeric_limits<T>::infinity() : in.k[index(i, s.key_channels, kc)];
  }
  T value(int64_t i, int64_t c) const { return (i < first ? in.initial.ring_value : in.v)[index(i, s.channels, c)]; }
};

}  // namespace

template <typename E>
FullPlain<E> run_full_plain(const FullInputs<Accumulate<E>>& in) {
  using T = Accumulate<E>;
  const FullShape& s = in.shape;
  const T absent = -std::numeric_limits<T>::infinity();
  const bool gated = s.gate != Gate::kNone;
  const bool factors = in.has_factors();
  const std::vector<T> products = factors ? factor_products(in) : std::vector<T>();
  const std::vector<T>& w = factors ? products : in.table;
  FullPlain<E> plain;
  auto& out = plain.outputs.of;
  auto& big = plain.largest_summand;
  const auto size = [&](FullOutput o, size_t n) {
    out[o].assign(n, T(0));
    big[o].assign(n, 0.0);
  };
  const auto accumulate = [&](FullOutput o, int64_t i, T summand) { add(out[o][i], big[o][i], summand); };
  const int64_t ring = in.initial.position.empty() ? 0 : s.batch * s.capacity;
  size(kFullY, in.tensor_rows() * s.targets * s.channels);
  size(kFullGradQ, gated ? out[kFullY].size() : 0);
  size(kFullGradK, in.k.size());
  size(kFullGradV, in.v.size());
  size(kFullGradTable, w.size());
  size(kFullGradU, in.u.size());
  size(kFullGradW, in.w.size());
  size(kFullGradRingKey, ring * s.key_channels);
  size(kFullGradRingValue, ring * s.channels);

  std::vector<T> e;
  for (int64_t b = 0; b < s.batch; ++b) {
    const PlainRow<T> row(in, b);
    e.resize(row.sources);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t h = c / (s.channels / s.heads);
      const int64_t kc = s.key_channels == s.channels ? c : h;
      const auto grad_k = [&](int64_t i, T g) {
        accumulate(i < row.first ? kFullGradRingKey : kFullGradK, row.index(i, s.key_channels, kc), g);
      };
      const auto grad_v = [&](int64_t i, T g) {
        accumulate(i < row.first ? kFullGradRingValue : kFullGradV, row.index(i, s.channels, c), g);
      };
      for (int64_t t = 0; t < row.targets; ++t) {
        const int64_t end = row.seen(t);
        T max = absent;
        for (int64_t i = 0; i < end; ++i) {
          e[i] = row.key(i, kc) + w[in.table_index(b, h, row.first + t, i)];
          max = std::max(max, e[i]);
        }
        if (max == absent) continue;  // nothing to see: 0 and no gradient
        T den = 0, num = 0;
        double big_den = 0, big_num = 0;
        for (int64_t i = 0; i < end; ++i) {
          e[i] = e[i] == absent ? T(0) : std::exp(e[i] - max);
          if (e[i] == 0) continue;
          add(den, big_den, e[i]);
          add(num, big_num, e[i] * row.value(i, c));
        }
        const int64_t at = (row.before_targets + t) * s.channels + c;
        const T ratio = num / den;
        const T gate = gated ? plain_gate(s.gate, in.q[at]) : T(1);
        out[kFullY][at] = gate * ratio;
        big[kFullY][at] = std::abs(gate) * big_num / den;
        T grad = in.grad_y[at];
        if (gated) {
          const T slope = plain_slope(s.gate, in.q[at]);
          out[kFullGradQ][at] = grad * ratio * slope;
          big[kFullGradQ][at] = std::abs(double(grad) * slope) * big_num / den;
          grad *= gate;
        }
        const T grad_num = grad / den;
        const T grad_den = -grad_num * ratio;
        for (int64_t i = 0; i < end; ++i) {
          if (e[i] == 0) continue;
          grad_v(i, e[i] * grad_num);
          for (const T through : {e[i] * grad_num * row.value(i, c), e[i] * grad_den}) {
            grad_k(i, through);
            accumulate(kFullGradTable, in.table_index(b, h, row.first + t, i), through);
          }
        }
      }
      // The gradient of the final ring is one more summand.
      const bool first_of_key = s.key_channels == s.channels || c % (s.channels / s.heads) == 0;
      for (int64_t i = 0; i < row.sources && in.has_final; ++i) {
        const int64_t slot = b * s.capacity + i;
        if (first_of_key) grad_k(i, in.grad_final.ring_key[slot * s.key_channels + kc]);
        grad_v(i, in.grad_final.ring_value[slot * s.channels + c]);
      }
    }
  }
  if (factors) {
    for (int64_t h = 0; h < in.weight_heads(); ++h) {
      for (int64_t t = 0; t < in.rows; ++t) {
        for (int64_t i = 0; i < in.columns; ++i) {
          const int64_t at = in.table_index(0, h, t, i);
          const auto through = [&](FullOutput o, int64_t index, T factor) {
            out[o][index] += out[kFullGradTable][at] * factor;
            big[o][index] = std::max(big[o][index], big[kFullGradTable][at] * std::abs(double(factor)));
          };
          for (int64_t f = 0; f < in.width; ++f) {
            const int64_t at_u = in.u_index(h, t, f), at_w = in.w_index(h, i, f);
            through(kFullGradU, at_u, in.w[at_w]);
            through(kFullGradW, at_w, in.u[at_u]);
          }
        }
      }
    }
    size(kFullGradTable, 0);
  }
  for (const FullOutput o : {kFullY, kFullGradQ, kFullGradK, kFullGradV}) {
    for (T& x : out[o]) x = rounded<E>(x);
  }
  return plain;
}

template FullPlain<float> run_full_plain<float>(const FullInputs<float>&);
template FullPlain<double> run_full_plain<double>(const FullInputs<double>&);
template FullPlain<BFloat16> run_full_plain<BFloat16>(const FullInputs<float>&);
template FullPlain<Float16> run_full_plain<Float16>(const FullInputs<float>&);

}  // namespace aft::ops::test

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/ops/element.h"
#include "tests/ops/full_run.h"
#include "tests/ops/plain_number.h"

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
    return masked(i) ? -std::numeric_limits<T>::infinity() : in.k[index(i, s.key_channels, kc)];
  }
  bool masked(int64_t i) const { return i >= first && !in.mask.empty() && in.mask[before_sources + i - first] == 0; }
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
  using Number = PlainNumber<T>;
  std::array<std::vector<Number>, kFullOutputs> out;
  const auto size = [&](FullOutput o, size_t n) { out[o].assign(n, Number()); };
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

  std::vector<T> exponent;
  std::vector<Number> e;
  for (int64_t b = 0; b < s.batch; ++b) {
    const PlainRow<T> row(in, b);
    exponent.resize(row.sources), e.resize(row.sources);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t h = c / (s.channels / s.heads);
      const int64_t kc = s.key_channels == s.channels ? c : h;
      const auto grad_k = [&](int64_t i, Number g) {
        out[i < row.first ? kFullGradRingKey : kFullGradK][row.index(i, s.key_channels, kc)] += g;
      };
      const auto grad_v = [&](int64_t i, Number g) {
        out[i < row.first ? kFullGradRingValue : kFullGradV][row.index(i, s.channels, c)] += g;
      };
      for (int64_t t = 0; t < row.targets; ++t) {
        const int64_t end = row.seen(t);
        T max = absent;
        for (int64_t i = 0; i < end; ++i) {
          exponent[i] = row.key(i, kc) + w[in.table_index(b, h, row.first + t, i)];
          max = std::max(max, exponent[i]);
        }
        if (max == absent) continue;  // nothing to see: 0 and no gradient
        Number den, num;
        for (int64_t i = 0; i < end; ++i) {
          e[i] = exponent[i] == absent ? Number() : Number::exp(exponent[i] - max);
          if (e[i].value() == 0) continue;
          den += e[i];
          num += e[i] * row.value(i, c);
        }
        const int64_t at = (row.before_targets + t) * s.channels + c;
        const Number ratio = num / den;
        out[kFullY][at] = ratio;
        Number grad = in.grad_y[at];
        if (gated) {
          const Number gate = plain_gate(s.gate, in.q[at]);
          out[kFullY][at] = gate * ratio;
          out[kFullGradQ][at] = grad * ratio * plain_slope(s.gate, in.q[at]);
          grad = grad * gate;
        }
        const Number grad_num = grad / den;
        const Number grad_den = -grad_num * ratio;
        for (int64_t i = 0; i < end; ++i) {
          if (e[i].value() == 0) continue;
          grad_v(i, e[i] * grad_num);
          for (const Number& through : {e[i] * grad_num * row.value(i, c), e[i] * grad_den}) {
            grad_k(i, through);
            out[kFullGradTable][in.table_index(b, h, row.first + t, i)] += through;
          }
        }
      }
      // The gradient of the final ring is one more summand, but the ring knows nothing of what was masked.
      const bool first_of_key = s.key_channels == s.channels || c % (s.channels / s.heads) == 0;
      for (int64_t i = 0; i < row.sources && in.has_final; ++i) {
        if (row.masked(i)) continue;
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
          for (int64_t f = 0; f < in.width; ++f) {
            const int64_t at_u = in.u_index(h, t, f), at_w = in.w_index(h, i, f);
            out[kFullGradU][at_u] += out[kFullGradTable][at] * in.w[at_w];
            out[kFullGradW][at_w] += out[kFullGradTable][at] * in.u[at_u];
          }
        }
      }
    }
    size(kFullGradTable, 0);
  }
  FullPlain<E> plain;
  for (int o = 0; o < kFullOutputs; ++o) {
    if (is_tensor(FullOutput(o))) {
      store_plain<E>(out[o], plain.outputs.of[o], plain.scale[o]);
    } else {
      store_plain<T>(out[o], plain.outputs.of[o], plain.scale[o]);
    }
  }
  return plain;
}

template FullPlain<float> run_full_plain<float>(const FullInputs<float>&);
template FullPlain<double> run_full_plain<double>(const FullInputs<double>&);
template FullPlain<BFloat16> run_full_plain<BFloat16>(const FullInputs<float>&);
template FullPlain<Float16> run_full_plain<Float16>(const FullInputs<float>&);

}  // namespace aft::ops::test

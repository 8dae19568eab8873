#include "tests/ops/window_plain.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/ops/plain_number.h"

namespace aft::ops::test {
namespace {

// Row b of the batch: its sources are the state's sums, the ring, and the T positions of the call, dense.
template <typename E>
struct PlainRow {
  using T = Accumulate<E>;
  const WindowInputs<E>& in;
  const WindowShape& s;
  int64_t b, time, before, position = 0, ring = 0, sources;

  PlainRow(const WindowInputs<E>& inputs, int64_t batch_row)
      : in(inputs), s(inputs.shape), b(batch_row), time(in.time_of(b)), before(in.tokens_before(b)) {
    if (!in.initial.position.empty()) position = in.initial.position[b];
    ring = std::min(position, s.left);
    sources = ring + time;
  }
  // i counts sources from the oldest in the ring; its position relative to the call is i - ring.
  int64_t slot(int64_t i) const { return (position + i - ring) % s.left; }
  int64_t key_index(int64_t i, int64_t kc) const {
    return i < ring ? (b * s.left + slot(i)) * s.key_channels + kc : (before + i - ring) * s.key_channels + kc;
  }
  int64_t value_index(int64_t i, int64_t c) const {
    return i < ring ? (b * s.left + slot(i)) * s.channels + c : (before + i - ring) * s.channels + c;
  }
  bool masked(int64_t i) const { return i >= ring && !in.key_mask.empty() && in.key_mask[before + i - ring] == 0; }
  T key(int64_t i, int64_t kc) const {
    if (masked(i)) return -std::numeric_limits<T>::infinity();
    return (i < ring ? in.initial.ring_key : in.k)[key_index(i, kc)];
  }
  T value(int64_t i, int64_t c) const { return (i < ring ? in.initial.ring_value : in.v)[value_index(i, c)]; }
  int64_t band_index(int64_t t, int64_t i, int64_t h) const {
    const int64_t span = s.left + 1 + s.right;
    return (h * in.band_rows + (in.shared_row ? 0 : position + t)) * span + i - ring - t + s.left;
  }
  bool in_window(int64_t t, int64_t i) const { return s.has_band && i - ring >= t - s.left && i - ring <= t + s.right; }
  bool has_sums(int64_t kc) const {
    return !in.initial.position.empty() && in.initial.max[b * s.key_channels + kc] != std::numeric_limits<T>::lowest();
  }
};

}  // namespace

template <typename E>
WindowPlain<E> run_plain(const WindowInputs<E>& in) {
  using T = Accumulate<E>;
  const WindowShape& s = in.shape;
  const T absent = -std::numeric_limits<T>::infinity();
  const T ln2 = std::numbers::ln2_v<T>;
  const bool has_initial = !in.initial.position.empty();
  const bool gated = s.gate != Gate::kNone;
  using Number = PlainNumber<T>;
  std::array<std::vector<Number>, kOutputs> out;
  const auto size = [&](Output o, int64_t n) { out[o].assign(n, Number()); };
  const int64_t rows = in.tokens();
  size(kY, rows * s.channels);
  size(kGradQ, gated ? rows * s.channels : 0);
  size(kGradK, rows * s.key_channels);
  size(kGradV, rows * s.channels);
  size(kGradBand, in.band.size());
  size(kFinalDen, in.has_final ? s.batch * s.key_channels : 0);
  size(kFinalNum, in.has_final ? s.batch * s.channels : 0);
  size(kGradInitialDen, has_initial ? s.batch * s.key_channels : 0);
  size(kGradInitialNum, has_initial ? s.batch * s.channels : 0);
  size(kGradInitialRingKey, has_initial ? s.batch * s.left * s.key_channels : 0);
  size(kGradInitialRingValue, has_initial ? s.batch * s.left * s.channels : 0);

  std::vector<T> exponent;
  std::vector<Number> e;
  for (int64_t b = 0; b < s.batch; ++b) {
    const PlainRow<E> row(in, b);
    exponent.resize(row.sources), e.resize(row.sources);
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t kc = key_channel(s, c);
      const int64_t h = c / (s.channels / s.heads);
      const int64_t sum_k = b * s.key_channels + kc;
      const int64_t sum_v = b * s.channels + c;
      const auto grad_k = [&](int64_t i, Number g) {
        out[i < row.ring ? kGradInitialRingKey : kGradK][row.key_index(i, kc)] += g;
      };
      const auto grad_v = [&](int64_t i, Number g) {
        out[i < row.ring ? kGradInitialRingValue : kGradV][row.value_index(i, c)] += g;
      };
      for (int64_t t = 0; t < row.time; ++t) {
        const int64_t end = s.causal ? row.ring + t + 1 : row.sources;
        T max = row.has_sums(kc) ? in.initial.max[sum_k] * ln2 : absent;
        for (int64_t i = 0; i < end; ++i) {
          exponent[i] = row.key(i, kc) + (row.in_window(t, i) ? in.band[row.band_index(t, i, h)] : T(0));
          max = std::max(max, exponent[i]);
        }
        if (max == absent) continue;  // nothing to see: 0 and no gradient
        Number den, num;
        const Number e_sums = row.has_sums(kc) ? Number::exp(in.initial.max[sum_k] * ln2 - max) : Number();
        if (row.has_sums(kc)) {
          den += e_sums * in.initial.den[sum_k];
          num += e_sums * in.initial.num[sum_v];
        }
        for (int64_t i = 0; i < end; ++i) {
          e[i] = exponent[i] == absent ? Number() : Number::exp(exponent[i] - max);
          if (e[i].value() == 0) continue;
          den += e[i];
          num += e[i] * row.value(i, c);
        }
        const int64_t at = (row.before + t) * s.channels + c;
        const Number ratio = num / den;
        out[kY][at] = ratio;
        Number grad = in.grad_y[at];
        if (gated) {
          const Number gate = plain_gate(s.gate, in.q[at]);
          out[kY][at] = gate * ratio;
          out[kGradQ][at] = grad * ratio * plain_slope(s.gate, in.q[at]);
          grad = grad * gate;
        }
        const Number grad_num = grad / den;
        const Number grad_den = -grad_num * ratio;
        if (row.has_sums(kc)) {
          out[kGradInitialDen][sum_k] += e_sums * grad_den;
          out[kGradInitialNum][sum_v] += e_sums * grad_num;
        }
        for (int64_t i = 0; i < end; ++i) {
          if (e[i].value() == 0) continue;
          grad_v(i, e[i] * grad_num);
          for (const Number& through : {e[i] * grad_num * row.value(i, c), e[i] * grad_den}) {
            grad_k(i, through);
            if (row.in_window(t, i)) out[kGradBand][row.band_index(t, i, h)] += through;
          }
        }
      }
      if (!in.has_final) continue;

      // The final state: its maximum is a constant for the gradient. den belongs to the key channel, counted once.
      const bool first_of_key = s.key_channels == s.channels || c % (s.channels / s.heads) == 0;
      const int64_t summed = std::max<int64_t>(0, row.sources - s.left);
      T max = row.has_sums(kc) ? in.initial.max[sum_k] : std::numeric_limits<T>::lowest();
      for (int64_t i = 0; i < summed; ++i) {
        if (row.key(i, kc) != absent) {
          max = std::max(max, T(std::nearbyint(row.key(i, kc) * std::numbers::log2e_v<T>)));
        }
      }
      const T grad_den = first_of_key ? in.grad_final.den[sum_k] : T(0);
      const T grad_num = in.grad_final.num[sum_v];
      if (row.has_sums(kc)) {
        const Number scale = std::exp2(in.initial.max[sum_k] - max);
        if (first_of_key) out[kFinalDen][sum_k] += scale * in.initial.den[sum_k];
        out[kFinalNum][sum_v] += scale * in.initial.num[sum_v];
        out[kGradInitialDen][sum_k] += scale * grad_den;
        out[kGradInitialNum][sum_v] += scale * grad_num;
      }
      for (int64_t i = 0; i < row.sources; ++i) {
        if (row.masked(i)) continue;
        if (i >= summed) {
          if (first_of_key) grad_k(i, in.grad_final.ring_key[(b * s.left + row.slot(i)) * s.key_channels + kc]);
          grad_v(i, in.grad_final.ring_value[(b * s.left + row.slot(i)) * s.channels + c]);
          continue;
        }
        const Number scale = row.key(i, kc) == absent ? Number() : Number::exp(row.key(i, kc) - max * ln2);
        if (scale.value() == 0) continue;
        if (first_of_key) out[kFinalDen][sum_k] += scale;
        out[kFinalNum][sum_v] += scale * row.value(i, c);
        grad_v(i, scale * grad_num);
        grad_k(i, scale * grad_den);
        grad_k(i, scale * row.value(i, c) * grad_num);
      }
    }
  }
  WindowPlain<E> plain;
  for (int o = 0; o < kOutputs; ++o) {
    if (is_tensor(o)) {
      store_plain<E>(out[o], plain.outputs.of[o], plain.scale.of[o]);
    } else {
      store_plain<T>(out[o], plain.outputs.of[o], plain.scale.of[o]);
    }
  }
  return plain;
}

template WindowPlain<float> run_plain<float>(const WindowInputs<float>&);
template WindowPlain<double> run_plain<double>(const WindowInputs<double>&);
template WindowPlain<BFloat16> run_plain<BFloat16>(const WindowInputs<BFloat16>&);
template WindowPlain<Float16> run_plain<Float16>(const WindowInputs<Float16>&);

}  // namespace aft::ops::test

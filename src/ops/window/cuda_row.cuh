#pragma once

// One channel of a sequence with a band: its sources, those of a state's ring included, and a row exactly, pair by
// pair.

#include <cstdint>
#include <limits>

#include "ops/window/cuda_sums.cuh"

namespace aft::ops::window {

/// The sources [first, time) of a channel, and the weights of its head.
template <typename E>
struct RowSources {
  using T = Accumulate<E>;

  Columns<E, 1> own;
  Ring<E> ring;
  int64_t first;
  int64_t left, right;
  bool causal;
  const T* band;  // row of local position 0
  int64_t band_stride;

  __device__ RowSources(const WindowInputs<E>& in, const Sequence& one, int64_t c)
      : own(in, one, c),
        ring(in, one, c),
        first(ring.first),
        left(in.shape.left),
        right(in.shape.right),
        causal(in.shape.causal),
        band_stride(in.band.row_stride) {
    const int64_t head = c / (in.shape.channels / in.shape.heads);
    band = in.band.data + head * in.band.head_stride + ring.position * band_stride;
  }
  __device__ T key(int64_t s) const {
    if (s < 0) return ring.key(s);
    return own.mask == nullptr || own.mask[s] ? T(cuda::widen(own.k[s * own.k_stride])) : -INFINITY;
  }
  __device__ T value(int64_t s) const { return s < 0 ? ring.value(s) : T(cuda::widen(own.v[s * own.v_stride])); }
  /// Of target t: element s is the weight of source s.
  __device__ const T* weights(int64_t t) const { return band + t * band_stride - (t - left); }
  __device__ int64_t window_begin(int64_t t) const { return max(t - left, first); }
  __device__ int64_t window_end(int64_t t, int64_t time) const { return causal ? t + 1 : min(t + right + 1, time); }
};

/// D = den 2^exponent, N = num 2^exponent / value_scale.
template <typename T>
struct ExactRow {
  T den, num, exponent;
};

/// Target t, of a sequence of `time`, from p and n of every pair in its window under the row's own maximum, and the
/// sums of what lies before and after.
template <typename E, typename T = Accumulate<E>>
__device__ ExactRow<T> exact_row(const RowSources<E>& sources, int64_t t, int64_t time,
                                 const cuda::RunningSum<T>& before, const cuda::RunningSum<T>& after,
                                 T value_scale = T(1)) {
  const T* weights = sources.weights(t);
  const int64_t begin = sources.window_begin(t), end = sources.window_end(t, time);
  T exponent = fmax(before.max, after.max);
  for (int64_t i = begin; i < end; ++i) {
    exponent = fmax(exponent, cuda::split_exp(sources.key(i)).n + cuda::split_exp(weights[i]).n);
  }
  const T scale_before = cuda::pow2(before.max - exponent), scale_after = cuda::pow2(after.max - exponent);
  cuda::Compensated<T> den = {}, num = {};
  den.add(before.den.sum, scale_before);
  num.add(before.num.sum * value_scale, scale_before);
  den.add(after.den.sum, scale_after);
  num.add(after.num.sum * value_scale, scale_after);
  for (int64_t i = begin; i < end; ++i) {
    const cuda::SplitExp<T> k = cuda::split_exp(sources.key(i)), w = cuda::split_exp(weights[i]);
    if (k.p == 0 || w.p == 0) continue;  // its value may be anything
    const T e = k.p * w.p, scale = cuda::pow2(k.n + w.n - exponent);
    den.add(e, scale);
    num.add(e * (sources.value(i) * value_scale), scale);
  }
  return {den.sum, num.sum, exponent};
}

/// What a state holds for a key channel: max and den, and the newest key in its ring.
template <typename T>
__device__ void write_key_state(const WindowShape& s, const State<T>& state, int64_t b, int64_t key_channel,
                                int64_t position, const cuda::RunningSum<T>& sum, T key) {
  const int64_t at = b * s.key_channels + key_channel;
  state.max[at] = sum.max > kExponentFloor<T> ? sum.max : std::numeric_limits<T>::lowest();
  state.den[at] = sum.den.sum;
  if (s.left > 0) state.ring_key[(b * s.left + position % s.left) * s.key_channels + key_channel] = key;
}

}  // namespace aft::ops::window

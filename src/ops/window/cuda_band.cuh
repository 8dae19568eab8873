#pragma once

// A block of threads does the targets of one chunk with a band, a thread a channel, all channels of one head. A tile of
// targets is walked against the sources that its windows hold: K = e^k 2^-M and K v 2^-X once a source and channel,
// w~ = e^w 2^-W once a pair and block, then multiply-adds. A source that has left the window of a target, or has not
// come into it, has the weight of e^0 there. M and X are those of all sources that the chunk reads, W of a target's
// weights.

#include <cstdint>

#include "ops/window/cuda_row.cuh"

namespace aft::ops::window {

constexpr int kBandTile = 16;     // targets
constexpr int kSourceBlock = 32;  // sources whose weights lie in shared memory
constexpr int kMostTiles = 256 / kBandTile;

template <typename T>
struct BandRoom {
  T weight[kSourceBlock][kBandTile];
  T least[kBandTile];  // W
};

/// One row, as ExactRow has it: D = den 2^(M + W), N = num 2^(M + W + X).
template <typename T>
struct TileSums {
  T den[kBandTile], num[kBandTile];
};

/// The weights of a tile of targets of a sequence, in shared memory.
template <typename E>
struct BandWeights {
  using T = Accumulate<E>;

  const RowSources<E> sources;
  BandRoom<T>& room;
  const int64_t time, rows;  // rows: of the sequence that the table has

  __device__ BandWeights(const WindowInputs<E>& in, const Sequence& one, int64_t c, BandRoom<T>& memory)
      : sources(in, one, c),
        room(memory),
        time(one.time),
        rows(in.band.row_stride == 0 ? one.time : min(one.time, in.band.rows - sources.ring.position)) {}

  /// False past the end of the table.
  __device__ bool has_row(int64_t t) const { return t < rows; }

  /// W of every target of a tile. All threads.
  __device__ void find_least(int64_t t0) {
    const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    __syncthreads();
    for (int r = threadIdx.x / 32; r < kBandTile; r += warps) {
      const int64_t t = t0 + r;
      T most = 0;
      if (has_row(t)) {
        const T* weights = sources.weights(t);
        for (int64_t s = sources.window_begin(t) + lane; s < sources.window_end(t, time); s += 32) {
          most = fmax(most, cuda::split_exp(weights[s]).n);
        }
      }
      for (int step = 16; step > 0; step /= 2) most = fmax(most, __shfl_xor_sync(0xffffffffu, most, step));
      if (lane == 0) room.least[r] = most;
    }
    __syncthreads();
  }

  /// w~ of the targets of a tile on the sources [s0, s0 + count). All threads.
  __device__ void form_weights(int64_t t0, int64_t s0, int count) {
    for (int i = threadIdx.x; i < count * kBandTile; i += blockDim.x) {
      const int r = i % kBandTile, m = i / kBandTile;
      const int64_t t = t0 + r, s = s0 + m;
      const T least = room.least[r];
      T w = 0;
      if (has_row(t)) {
        if (s < t - sources.left || s > t + sources.right) {
          w = sources.causal && s > t ? T(0) : cuda::pow2(-least);
        } else {
          const cuda::SplitExp<T> e = cuda::split_exp(sources.weights(t)[s]);
          w = e.p * cuda::pow2(e.n - least);
        }
      }
      room.weight[m][r] = w;
    }
    __syncthreads();
  }
};

/// A thread's channel of the block, for the targets [begin, end) of a sequence.
template <typename E>
struct BandBlock : BandWeights<E> {
  using T = Accumulate<E>;
  using BandWeights<E>::find_least, BandWeights<E>::form_weights, BandWeights<E>::room, BandWeights<E>::sources,
      BandWeights<E>::time;

  const int64_t begin, end;
  T max, value_exponent;  // M, X
  cuda::RunningSum<T> before;
  T after[kMostTiles][kSumParts];  // of each tile: the sums of what lies after its last window

  /// first: the sums of the sources before the first target's window; last: those after the last's (neutral if causal).
  __device__ BandBlock(const WindowInputs<E>& in, const Sequence& one, int64_t from, int64_t to, int64_t c,
                       BandRoom<T>& memory, const cuda::RunningSum<T>& first, const cuda::RunningSum<T>& last)
      : BandWeights<E>(in, one, c, memory), begin(from), end(to), before(first) {
    choose_scales(last);
    if (!sources.causal) sum_after_tiles(last);
  }

  __device__ int64_t tile_end(int64_t t) const { return min(t + kBandTile, end); }
  /// The sources that a tile reads.
  __device__ int64_t first_source(int64_t t) const { return sources.window_begin(t); }
  __device__ int64_t last_source(int64_t t) const { return sources.window_end(tile_end(t) - 1, time); }
  __device__ cuda::RunningSum<T> after_tile(int64_t t) const {
    if (sources.causal) return {};
    const T* at = after[(t - begin) / kBandTile];
    return {at[0], {at[1], T(0)}, {at[2], T(0)}};
  }

  __device__ void choose_scales(const cuda::RunningSum<T>& last) {
    max = fmax(before.max, last.max);
    T largest = 0;
    for (int64_t s = first_source(begin), stop = sources.window_end(end - 1, time); s < stop; ++s) {
      const T key = sources.key(s);
      if (cuda::is_absent(key)) continue;
      max = fmax(max, cuda::split_exp(key).n);
      largest = fmax(largest, fabs(sources.value(s)));
    }
    for (const auto& sum : {before, last}) largest = fmax(largest, fabs(sum.num.sum * cuda::pow2(sum.max - max)));
    value_exponent = fmin(fmax(cuda::exponent_of(largest), kLeastValueExponent<T>), kValueExponentLimit<T>);
  }

  __device__ void sum_after_tiles(cuda::RunningSum<T> sum) {
    int64_t stop = end;
    for (int64_t tile = (end - begin - 1) / kBandTile; tile >= 0; --tile) {
      after[tile][0] = sum.max;
      after[tile][1] = sum.den.sum;
      after[tile][2] = sum.num.sum;
      const int64_t start = begin + tile * kBandTile;
      for (int64_t s = min(stop + sources.right, time) - 1; s >= start + sources.right; --s) {
        sum.add_source(sources.key(s), sources.value(s));
      }
      stop = start;
    }
  }

  /// The sums of a tile's targets. All threads.
  __device__ TileSums<T> sum_tile(int64_t t0) {
    TileSums<T> sums = {};
    const T value_scale = cuda::pow2(-value_exponent);
    find_least(t0);
    for (int64_t s0 = first_source(t0), stop = last_source(t0); s0 < stop; s0 += kSourceBlock) {
      const int count = static_cast<int>(min(int64_t{kSourceBlock}, stop - s0));
      form_weights(t0, s0, count);
#pragma unroll 4
      for (int m = 0; m < count; ++m) {
        const T key = sources.key(s0 + m);
        const cuda::SplitExp<T> e = cuda::split_exp(key);
        const T k = e.p * cuda::pow2(e.n - max);
        const T kv = cuda::is_absent(key) ? T(0) : k * (sources.value(s0 + m) * value_scale);
#pragma unroll
        for (int r = 0; r < kBandTile; ++r) {
          sums.den[r] = fma(k, room.weight[m][r], sums.den[r]);
          sums.num[r] = fma(kv, room.weight[m][r], sums.num[r]);
        }
      }
      __syncthreads();
    }
    const cuda::RunningSum<T> last = after_tile(t0);
    const T scale_before = cuda::pow2(before.max - max), scale_last = cuda::pow2(last.max - max);
    const T den = before.den.sum * scale_before + last.den.sum * scale_last;
    const T num = before.num.sum * value_scale * scale_before + last.num.sum * value_scale * scale_last;
#pragma unroll
    for (int r = 0; r < kBandTile; ++r) {
      const T least = cuda::pow2(-room.least[r]);
      sums.den[r] = fma(den, least, sums.den[r]);
      sums.num[r] = fma(num, least, sums.num[r]);
    }
    return sums;
  }

  /// Whether what the products lost is below the promise; N may have met an infinite value that the row does not see.
  static __device__ bool certified(T den, T num) { return den >= kCertificate<T> && fabs(num) < INFINITY; }

  /// Target t of the tile that begins at t0. Its num is worth 2^X.
  __device__ ExactRow<T> exact(int64_t t0, int64_t t) const {
    cuda::RunningSum<T> first = before, last = after_tile(t0);
    for (int64_t s = first_source(t0); s < t - sources.left; ++s) first.add_source(sources.key(s), sources.value(s));
    if (!sources.causal) {
      for (int64_t s = last_source(t0) - 1; s > t + sources.right; --s) {
        last.add_source(sources.key(s), sources.value(s));
      }
    }
    return exact_row(sources, t, time, first, last, cuda::pow2(-value_exponent));
  }

  /// Moves `before` to the next tile.
  __device__ void leave_tile(int64_t t0) {
    for (int64_t s = first_source(t0); s < tile_end(t0) - sources.left; ++s) {
      before.add_source(sources.key(s), sources.value(s));
    }
  }
};

}  // namespace aft::ops::window

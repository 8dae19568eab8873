#pragma once

// A unit of the grid operator, a group of channels of one image: scales, sums over the kernel and outside it, the exact
// redo. Forward and backward share it. A lane is a channel; warps share the positions. The mathematics is that of
// panel-inl.h.
//
// A field is two values a position, [T][kLanes]: K and KV of sources, or a and b of targets. Sums of a field over the
// kernel and over what lies outside are all that either pass needs.

#include <cstdint>

#include "ops/common/cuda/element.cuh"
#include "ops/common/cuda/exp.cuh"
#include "ops/common/cuda/shared.cuh"
#include "ops/grid/cuda_memory.h"

namespace aft::ops::grid {

using Counter = unsigned long long;

/// Blocks of kWarps warps that a multiprocessor should hold.
template <typename E>
constexpr int kResident = sizeof(E) == 8 ? 1 : 2;

/// Blocks of cuda::kBlock threads where every warp has a task.
constexpr int64_t blocks_of_tasks(int64_t tasks) { return (tasks * kLanes + cuda::kBlock - 1) / cuda::kBlock; }

inline __device__ int warp_of_thread() { return static_cast<int>(threadIdx.x) / kLanes; }
inline __device__ int lane_of_thread() { return static_cast<int>(threadIdx.x) % kLanes; }

/// Integer part of log2 |x| as a float; -bias for 0.
template <typename T>
__device__ T exponent_of(T x) {
  using F = FloatFormat<T>;
  return cuda::from_bits((cuda::to_bits(fabs(x)) >> F::kMantissaBits) | cuda::to_bits(F::kMagic)) -
         (F::kMagic + F::kBias);
}

/// A size's exponent such that 2^x and 2^-x are normal, and what is divided by 2^x keeps clear of the ends.
template <typename T>
__device__ T scale_exponent(T largest) {
  constexpr T kBias = FloatFormat<T>::kBias;
  return fmax(1 - kBias, fmin(kBias - 9, exponent_of(largest)));
}

/// A sum of pairs: eight at a time plainly, the eights with what rounding has added too much, so that many equal terms,
/// which round the same way at every step, do not drift.
template <typename T>
struct PairSum {
  cuda::Compensated<T> first = {}, second = {};

  __device__ void add(Two<T> x) {
    first.add(x.first, T(1));
    second.add(x.second, T(1));
  }
  /// n pairs, `step` apart.
  __device__ void add_all(const Two<T>* at, int64_t step, int n) {
    while (n > 0) {
      Two<T> x = *at;
      at += step;
      const int count = min(n, 8);
      for (int i = 1; i < count; ++i, at += step) {
        x.first += at->first;
        x.second += at->second;
      }
      add(x);
      n -= count;
    }
  }
  __device__ Two<T> sum() const { return {first.sum, second.sum}; }
};

/// The channel of a lane in an image. Lanes beyond the group repeat its last channel and write nothing. It holds no
/// pointers but those of the parameters: what is not used in a loop takes no registers there.
template <typename E>
struct Channel {
  using T = Accumulate<E>;

  const GridInputs<E>& in;
  int64_t b, c;
  int64_t head_width;
  bool active;

  __device__ Channel(const GridInputs<E>& inputs, const Cut& cut, int64_t image, int64_t g)
      : in(inputs), b(image), head_width(cut.groups.head_width) {
    const int64_t size = cut.groups.size(g), lane = lane_of_thread();
    active = lane < size;
    c = cut.groups.first(g) + (active ? lane : size - 1);
  }
  __device__ int64_t head() const { return c / head_width; }
  __device__ T key(int64_t t) const {
    const KeyMask& mask = in.key_mask;
    if (mask.data != nullptr && !mask.data[b * mask.batch_stride + t]) return -INFINITY;
    const int64_t channel = in.shape.key_channels == in.shape.channels ? c : head();
    return cuda::widen(in.k.data[b * in.k.batch_stride + t * in.k.time_stride + channel]);
  }
  __device__ T value(int64_t t) const { return cuda::widen(*at(in.v, t)); }

  /// Element (b, t, c) of rows that have as many channels as y.
  template <typename R>
  __device__ R* at(const Rows<R>& rows, int64_t t) const {
    return rows.data + b * rows.batch_stride + t * rows.time_stride + c;
  }
};

/// The exponents of an image's scales, and what has been taken from its values, times 2^-X.
template <typename T>
struct Scales {
  T m, x, centre, g;

  __device__ Scales(const Unit<T>& unit) {
    const Two<T>* at = unit.scales + lane_of_thread();
    m = at[0].first;
    x = at[0].second;
    centre = at[kLanes].first;
    g = at[kLanes].second;
  }
  /// Of a D too small to be sure of, unless the image holds no source at all.
  __device__ bool failed(T den) const { return den < kCertificate<T> && m > kExponentFloor<T>; }
};

/// e^w 2^-W and 2^-W of a lane, W the largest exponent of its head's kernel, at least 0.
template <typename T>
struct Weights {
  const T* within;  // [reach.size()], kLanes apart
  T outside;

  template <typename E>
  __device__ Weights(const ForwardMemory<E>& memory, const Cut& cut, int64_t g)
      : within(memory.weights + g * cut.reach.size() * kLanes + lane_of_thread()),
        outside(memory.outside[g * kLanes + lane_of_thread()]) {}
};

/// Element (iy, ix) within reach of a head's kernel, as the caller gave it.
template <typename T>
__device__ T raw_weight(const T* kernel, const Cut& cut, int64_t head, int64_t iy, int64_t ix) {
  const int64_t size = cut.shape.kernel, corner = (size - 1) / 2;
  return kernel[(head * size + corner - cut.reach.y + iy) * size + corner - cut.reach.x + ix];
}

/// One block a group.
template <typename E>
__global__ void __launch_bounds__(kWarps* kLanes) prepare_weights(GridInputs<E> in, Cut cut, ForwardMemory<E> memory) {
  using T = Accumulate<E>;
  __shared__ T largest[kWarps][kLanes];
  const int warp = warp_of_thread(), lane = lane_of_thread();
  const int64_t g = blockIdx.x, columns = cut.reach.columns(), head = Channel<E>(in, cut, 0, g).head();
  T max = 0;
  for (int64_t i = warp; i < cut.reach.size(); i += kWarps) {
    max = fmax(cuda::split_exp(raw_weight(in.kernel, cut, head, i / columns, i % columns)).n, max);
  }
  largest[warp][lane] = max;
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) max = fmax(largest[i][lane], max);
  for (int64_t i = warp; i < cut.reach.size(); i += kWarps) {
    const cuda::SplitExp<T> w = cuda::split_exp(raw_weight(in.kernel, cut, head, i / columns, i % columns));
    memory.weights[(g * cut.reach.size() + i) * kLanes + lane] = w.p * cuda::pow2(w.n - max);
  }
  if (warp == 0) memory.outside[g * kLanes + lane] = cuda::pow2(-max);
}

constexpr int kAhead = 4;  // positions whose loads run ahead of what is done with them

/// Calls visit(t, load(t)) for every position of this warp.
template <typename Load, typename Visit>
__device__ void visit_positions(int time, const Load& load, const Visit& visit) {
  using Loaded = decltype(load(0));
  for (int first = warp_of_thread(); first < time; first += kAhead * kWarps) {
    Loaded loaded[kAhead] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kWarps < time) loaded[i] = load(first + i * kWarps);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i * kWarps < time) visit(first + i * kWarps, loaded[i]);
    }
  }
}

/// K and KV of a unit under its M and X. In the backward the image's mean value, sum K v / sum K, is taken from every
/// value: what a source's gradient asks, v - N/D, then does not drown in values that are all alike. The whole block;
/// grad_y is read in the backward, for G.
template <typename E, bool backward>
__device__ void prepare_sources(const Channel<E>& channel, const Rows<const E>& grad_y, const Cut& cut,
                                const Unit<Accumulate<E>>& unit) {
  using T = Accumulate<E>;
  const int warp = warp_of_thread(), lane = lane_of_thread();
  const int time = static_cast<int>(cut.shape.time());
  Two<T>* sources = unit.sources + lane;
  Two<T>* room = unit.side + lane;
  struct Source {
    T key, value, g;
  };
  T m = kExponentFloor<T>, largest = 0, largest_g = 0;
  visit_positions(
      time,
      [&](int t) {
        return Source{channel.key(t), channel.value(t), backward ? T(cuda::widen(*channel.at(grad_y, t))) : T(0)};
      },
      [&](int t, const Source& source) {
        const cuda::SplitExp<T> e = cuda::split_exp(source.key);
        sources[t * kLanes] = {e.p, e.n};
        m = fmax(e.n, m);  // fmax passes NaN over
        largest = fmax(cuda::is_absent(source.key) ? T(0) : fabs(source.value), largest);
        // What is not finite needs no scale, and may belong to a row that sees nothing.
        if (fabs(source.g) < T(INFINITY)) largest_g = fmax(fabs(source.g), largest_g);
      });
  room[warp * kLanes] = {m, largest};
  if constexpr (backward) room[(kWarps + warp) * kLanes] = {largest_g, T(0)};
  __syncthreads();
  for (int i = 0; i < kWarps; ++i) {
    m = fmax(room[i * kLanes].first, m);
    largest = fmax(room[i * kLanes].second, largest);
    if constexpr (backward) largest_g = fmax(room[(kWarps + i) * kLanes].first, largest_g);
  }
  const T x = scale_exponent(largest), to_x = cuda::pow2(-x);
  T den = 0, num = 0;
  visit_positions(
      time, [&](int t) { return channel.value(t); },
      [&](int t, T value) {
        const Two<T> e = sources[t * kLanes];
        const T key = e.first * cuda::pow2(e.second - m);
        const T scaled = (e.first == 0 ? T(0) : value) * to_x;  // p = 0: absent
        sources[t * kLanes] = {key, backward ? scaled : key * scaled};
        den += key;
        num = fma(key, scaled, num);
      });
  T centre = 0;
  if constexpr (backward) {
    __syncthreads();
    room[warp * kLanes] = {den, num};
    __syncthreads();
    den = num = 0;
    for (int i = 0; i < kWarps; ++i) {
      den += room[i * kLanes].first;
      num += room[i * kLanes].second;
    }
    centre = den == 0 ? T(0) : num / den;
    for (int t = warp; t < time; t += kWarps) {
      Two<T>& source = sources[t * kLanes];
      source.second = source.first * (source.second - centre);
    }
  }
  if (warp == 0) {
    Two<T>* scales = unit.scales + lane;
    scales[0] = {m, x};
    scales[kLanes] = {centre, scale_exponent(largest_g)};
    if (backward && lane == 0) *unit.failed = 0;
  }
  __syncthreads();
}

/// Sources of a grid row that a target of block i sees in its window: columns [low, high).
template <int R>
__device__ int low(const Cut& cut, int i) {
  return max(0, i * R - static_cast<int>(cut.reach.x));
}
template <int R>
__device__ int high(const Cut& cut, int i) {
  const int width = static_cast<int>(cut.shape.width);
  return min(width, min((i + 1) * R, width) + static_cast<int>(cut.reach.x));
}

/// What lies outside the windows of every block of targets in its rows, and in the rows above and below: only sums. The
/// whole block, between barriers.
template <int R, typename T>
__device__ void sum_outside(const Cut& cut, const Unit<T>& unit, const Two<T>* units_field) {
  const int lane = lane_of_thread();
  const int height = static_cast<int>(cut.shape.height), width = static_cast<int>(cut.shape.width);
  const int blocks = static_cast<int>(cut.blocks);
  Two<T>* above = unit.above + lane;
  Two<T>* below = unit.below + lane;
  for (int y = warp_of_thread(); y < height; y += kWarps) {
    const Two<T>* row = units_field + int64_t{y} * width * kLanes + lane;
    Two<T>* side = unit.side + int64_t{y} * blocks * kLanes + lane;
    PairSum<T> left, right;
    int at = 0;
    for (int i = 0; i < blocks; ++i) {
      left.add_all(row + at * kLanes, kLanes, low<R>(cut, i) - at);
      at = low<R>(cut, i);
      side[i * kLanes] = left.sum();
    }
    left.add_all(row + at * kLanes, kLanes, width - at);
    above[y * kLanes] = left.sum();
    at = width;
    for (int i = blocks - 1; i >= 0; --i) {
      right.add_all(row + high<R>(cut, i) * kLanes, kLanes, at - high<R>(cut, i));
      at = high<R>(cut, i);
      side[i * kLanes].first += right.first.sum;
      side[i * kLanes].second += right.second.sum;
    }
  }
  __syncthreads();
  if (warp_of_thread() == 0) {
    PairSum<T> sum;
    for (int y = height - 1; y >= 0; --y) {
      sum.add(above[y * kLanes]);
      below[y * kLanes] = sum.sum();
    }
    sum = {};
    for (int y = 0; y < height; ++y) {
      sum.add(above[y * kLanes]);
      above[y * kLanes] = sum.sum();
    }
  }
  __syncthreads();
}

/// Sums of R positions.
template <int R, typename T>
struct RowSums {
  T first[R], second[R];

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < R; ++r) first[r] = second[r] = 0;
  }
  __device__ void add(const RowSums& other) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      first[r] += other.first[r];
      second[r] += other.second[r];
    }
  }
};

/// Sums of the R positions of block i in row y. kTurn -1: the kernel turned by 180 degrees. The weights that the
/// block's targets have for a source are in registers: one source on, a target meets the weight that its left neighbour
/// met, so slot (r - step) mod R is target r's. The window is added up some 32 terms at a time, so that equal terms do
/// not drift.
template <int R, int kTurn, typename T>
__device__ RowSums<R, T> block_sums(const Cut& cut, const Unit<T>& unit, const Two<T>* units_field,
                                    const Weights<T>& weights, int y, int i) {
  const int lane = lane_of_thread();
  const int height = static_cast<int>(cut.shape.height), width = static_cast<int>(cut.shape.width);
  const int reach_y = static_cast<int>(cut.reach.y), reach_x = static_cast<int>(cut.reach.x);
  const int blocks = static_cast<int>(cut.blocks), columns = 2 * reach_x + 1;
  const int begin = low<R>(cut, i), count = high<R>(cut, i) - begin;  // sources of a row
  const int first = max(0, y - reach_y), last = min(height, y + reach_y + 1);
  PairSum<T> beyond;
  if (first > 0) beyond.add(unit.above[(first - 1) * kLanes + lane]);
  if (last < height) beyond.add(unit.below[last * kLanes + lane]);
  beyond.add_all(unit.side + (int64_t{first} * blocks + i) * kLanes + lane, int64_t{blocks} * kLanes, last - first);
  RowSums<R, T> total, sum;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    total.first[r] = beyond.first.sum * weights.outside;
    total.second[r] = beyond.second.sum * weights.outside;
  }
  sum.clear();
  const T* centre = weights.within + (int64_t{reach_y} * columns + reach_x) * kLanes;
  constexpr int kStep = kTurn * kLanes;
  constexpr int kRuns = 32 / R;                                // runs of R terms that are added up plainly
  const int offset = begin - i * R;                            // of the first source from target 0
  const int within = min(count, i * R + reach_x + 1 - begin);  // sources in target 0's window
  int runs = 0;
  for (int row = first; row < last; ++row) {
    const Two<T>* from = units_field + (int64_t{row} * width + begin) * kLanes + lane;
    const T* w = centre + (int64_t{row - y} * columns + offset) * kStep;
    T weight[R];
#pragma unroll
    for (int r = 1; r < R; ++r) weight[r] = offset - r >= -reach_x ? w[-r * kStep] : weights.outside;
    // Source s + u, of which `from` and `w` stand at s.
    const auto add_source = [&](int s, int u) {
      weight[(R - u) % R] = s + u < within ? w[u * kStep] : weights.outside;
      const Two<T> f = from[u * kLanes];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        sum.first[r] = fma(weight[(r - u + R) % R], f.first, sum.first[r]);
        sum.second[r] = fma(weight[(r - u + R) % R], f.second, sum.second[r]);
      }
    };
    for (int s = 0; s < count; s += R, from += R * kLanes, w += R * kStep) {
      if (s + R <= count) {
#pragma unroll
        for (int u = 0; u < R; ++u) add_source(s, u);
      } else {
#pragma unroll
        for (int u = 0; u < R - 1; ++u) {
          if (s + u >= count) break;
          add_source(s, u);
        }
      }
      if (++runs == kRuns) {
        total.add(sum);
        sum.clear();
        runs = 0;
      }
    }
  }
  total.add(sum);
  return total;
}

/// The pairs of position t with every other: pair(s, w) for all s in order, e^w = w.p 2^w.n. kSign 1: t is the target
/// and s the source; -1: the reverse. A weight of 0 is no pair.
template <int kSign, typename T, typename Pair>
__device__ void for_each_pair(const Cut& cut, const T* kernel, int64_t head, int t, const Pair& pair) {
  const int height = static_cast<int>(cut.shape.height), width = static_cast<int>(cut.shape.width);
  const int reach_y = static_cast<int>(cut.reach.y), reach_x = static_cast<int>(cut.reach.x);
  const int ty = t / width, tx = t % width;
  for (int s = 0, sy = 0; sy < height; ++sy) {
    const int iy = kSign * (sy - ty) + reach_y;
    for (int sx = 0; sx < width; ++sx, ++s) {
      const int ix = kSign * (sx - tx) + reach_x;
      cuda::SplitExp<T> w = {T(1), T(0)};
      if (iy >= 0 && iy <= 2 * reach_y && ix >= 0 && ix <= 2 * reach_x) {
        w = cuda::split_exp(raw_weight(kernel, cut, head, iy, ix));
      }
      if (w.p != 0) pair(s, w);
    }
  }
}

/// D = den 2^exponent, N = num 2^(exponent + X) of an exact row, N less the centre.
template <typename T>
struct ExactRow {
  T den, num, exponent;
};

/// Target t from p and n of every pair under the row's own maximum.
template <typename E, typename T = Accumulate<E>>
__device__ ExactRow<T> exact_row(const Channel<E>& channel, const Cut& cut, const T* kernel, const Scales<T>& scales,
                                 int t) {
  T max = kExponentFloor<T>;
  for_each_pair<1>(cut, kernel, channel.head(), t, [&](int s, const cuda::SplitExp<T>& w) {
    max = fmax(cuda::split_exp(channel.key(s)).n + w.n, max);
  });
  const T to_x = cuda::pow2(-scales.x);
  T den = 0, num = 0;
  for_each_pair<1>(cut, kernel, channel.head(), t, [&](int s, const cuda::SplitExp<T>& w) {
    const cuda::SplitExp<T> k = cuda::split_exp(channel.key(s));
    if (k.p == 0) return;  // its value may be anything
    const T e = k.p * w.p * cuda::pow2(k.n + w.n - max);
    den += e;
    num = fma(e, fma(channel.value(s), to_x, -scales.centre), num);
  });
  return {den, num, max};
}

/// Adds to the counters of Cuda::redone; null: not wanted.
inline __device__ void count(Counter* counters, int64_t redone, int64_t total) {
  if (counters == nullptr) return;
  if (redone != 0) atomicAdd(counters, static_cast<Counter>(redone));
  if (total != 0) atomicAdd(counters + 1, static_cast<Counter>(total));
}

/// Calls run(std::integral_constant<int, R>()) with the block of a cut.
template <typename Run>
void with_targets(const Cut& cut, const Run& run) {
  if (cut.targets == 7) {
    run(std::integral_constant<int, 7>());
  } else {
    run(std::integral_constant<int, 4>());
  }
}

}  // namespace aft::ops::grid

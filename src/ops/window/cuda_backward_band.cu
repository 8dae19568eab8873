// Backward of the windowed operator with a band on a CUDA device. Cost and layout: README.md.
//
// 1. band_targets does every chunk's forward again: the gradients of the queries, and the sums of a and b of its
// targets.
// 2. fold_targets makes of these what all targets after a chunk (fold_earlier: before it) ask of a source.
// 3. Wave by wave: band_targets again, which now leaves a and b of each target; band_sources writes dk and dv of the
//    sources [begin - left, end - left) of each chunk, those that only later chunks see without a window; band_pairs
//    writes the gradient of the band that comes from each chunk's targets, and add_pairs adds it to the band's.

#include <algorithm>
#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/window/cuda_backward.cuh"
#include "ops/window/cuda_band.cuh"

namespace aft::ops {
namespace window {
namespace {

constexpr int kRowParts = 3;  // a, b and the exponent of D, each [channels]

/// Where a and b of the targets of some slots lie.
template <typename T>
struct WaveRows {
  T* data;
  int64_t first_slot, chunk, channels;

  __device__ T* at(int64_t slot, int64_t row, int64_t c) const {
    return data + ((slot - first_slot) * chunk + row) * kRowParts * channels + c;
  }
};

/// What target t leaves, times 2^-exponent.
template <typename T>
struct Left {
  T a, b, exponent;
};

/// Unit u of a launch: a slot, a head, and this thread's channel of it.
template <typename E>
struct BandUnit {
  Slot slot;
  int64_t index, head, c;
  bool active, valid;

  __device__ BandUnit(const WindowInputs<E>& in, const Slots& slots, int64_t first_slot, int64_t strips) {
    const WindowShape& s = in.shape;
    const int64_t width = s.channels / s.heads, unit = blockIdx.x / strips;
    const int64_t own = blockIdx.x % strips * blockDim.x + threadIdx.x;
    active = own < width;
    head = unit % s.heads;
    c = head * width + (active ? own : width - 1);
    index = first_slot + unit / s.heads;
    valid = find_slot(in, slots, index, slot);
  }
};

// Without rows.data: the sums of all targets of each slot, and the gradients of their queries.
template <typename E>
__global__ void __launch_bounds__(kBandThreads)
    band_targets(WindowBackward<E> p, Slots slots, int64_t first_slot, int64_t strips, BandBackwardMemory<E> memory,
                 WaveRows<Accumulate<E>> rows, bool redo, int64_t* redone) {
  using T = Accumulate<E>;
  __shared__ BandRoom<T> room;
  const WindowShape& s = p.in.shape;
  const int64_t d = s.channels;
  const BandUnit<E> unit(p.in, slots, first_slot, strips);
  if (!unit.valid) return;
  const Slot& slot = unit.slot;
  const int64_t c = unit.c, sums = unit.index * kSumParts * d + c;
  cuda::RunningSum<T> first[1], last[1];
  if (s.causal) {
    restore_sums(first, p, slot, c);
  } else {
    load_sums(first, memory.before + sums, d);
    load_sums(last, memory.after + sums, d);
  }
  BandBlock<E> block(p.in, slot.sequence, slot.begin, slot.end, c, room, first[0], last[0]);
  const Targets<E, 1> targets(p, slot.sequence, c);
  const T scale = cuda::pow2(block.value_exponent);
  cuda::RunningSum<T> sum;
  sum.max = -INFINITY;
  const auto leave = [&](int64_t t, T den, T num, T exponent) {
    const auto row = targets.read(t);
    const auto grad =
        cuda::grad_of_target(targets.gate, T(cuda::widen(row.q.lane[0])), T(cuda::widen(row.gy.lane[0])), num, den);
    const T b = grad.b * scale;
    if (rows.data != nullptr) {
      T* to = rows.at(unit.index, t - slot.begin, c);
      to[0] = grad.a;
      to[d] = b;
      to[2 * d] = exponent;
    } else {
      if (den != 0) sum.add(-exponent, b, grad.a);
      const T dq[1] = {grad.query * scale};
      targets.write_query(t, dq);
    }
  };
  int failed = 0;
  for (int64_t t0 = slot.begin; t0 < slot.end; t0 += kBandTile) {
    const TileSums<T> tile = block.sum_tile(t0);
    uint32_t exactly = 0;  // bit r: target r is to be done so
#pragma unroll
    for (int r = 0; r < kBandTile; ++r) {
      if (!unit.active || t0 + r >= slot.end) continue;
      if (!block.has_row(t0 + r)) {
        leave(t0 + r, T(0), T(0), T(0));
      } else if (block.certified(tile.den[r], tile.num[r]) || !redo) {
        leave(t0 + r, tile.den[r], tile.num[r], block.max + room.least[r]);
      } else {
        exactly |= 1u << r;
      }
    }
    failed += __popc(exactly);
    for (; exactly != 0; exactly &= exactly - 1) {
      const int64_t t = t0 + __ffs(exactly) - 1;
      const ExactRow<T> row = block.exact(t0, t);
      leave(t, row.den, row.num, row.exponent);
    }
    block.leave_tile(t0);
  }
  if (redone != nullptr) {
    cuda::count(redone, failed);
    cuda::count(redone + 1, unit.active ? slot.end - slot.begin : 0);
  }
  if (rows.data != nullptr || !unit.active) return;
  const cuda::RunningSum<T> all[1] = {sum};
  store_sums(all, memory.targets + sums, d);
  if (!s.causal) store_sums(all, memory.earlier + sums, d);
  if (slot.end == slot.sequence.time) {
    const cuda::RunningSum<T> end[1] = {block.before};
    store_sums(end, memory.ends + slot.sequence.index * kSumParts * d + c, d);
  }
}

/// The sums of each chunk's targets become those of all before it. One thread a channel of a sequence.
template <typename E>
__global__ void fold_earlier(WindowInputs<E> in, Slots slots, Accumulate<E>* earlier) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index();
  if (i >= in.shape.batch * d) return;
  const Sequence one = sequence_at(in, slots, i / d);
  const int64_t chunks = (one.time + slots.chunk - 1) / slots.chunk;
  T* at = earlier + first_slot(in, slots, one.index) * kSumParts * d + i % d;
  cuda::RunningSum<T> sum;
  sum.max = -INFINITY;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) fold_in(at + chunk * kSumParts * d, d, sum);
}

/// dk of a key channel, and what the ring after the call asks.
template <typename E, typename T = Accumulate<E>>
__device__ void write_key(const WindowBackward<E>& p, const Sequence& one, int64_t s, int64_t key_channel, bool masked,
                          T dk) {
  const WindowShape& shape = p.in.shape;
  const int64_t position = p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[one.index];
  const bool in_final = s >= one.time - shape.left;
  const int64_t slot = in_final || s < 0 ? one.index * shape.left + (position + s) % shape.left : 0;
  const int64_t at = slot * shape.key_channels + key_channel;
  if (in_final && p.grad_final_state.ring_key != nullptr) dk += p.grad_final_state.ring_key[at];
  if (masked) dk = 0;
  if (s >= 0) {
    first_row(p.grad_k, one)[s * p.grad_k.time_stride + key_channel] = cuda::narrow<E>(dk);
  } else if (p.grad_initial_state.ring_key != nullptr) {
    p.grad_initial_state.ring_key[at] = dk;
  }
}

template <typename T>
constexpr int kSourceTile = sizeof(T) == 8 ? 8 : 16;  // sources whose gradients a thread adds up at once

/// What reads a, b and the weights of the targets that see a thread's sources.
template <typename E>
struct SourceGradients {
  using T = Accumulate<E>;
  static constexpr int kTile = kSourceTile<T>;

  const WindowBackward<E>& p;
  const Slots& slots;
  const BandUnit<E>& unit;
  const WaveRows<T>& rows;
  BandWeights<E>& weights;
  const BandBackwardMemory<E>& memory;
  T* block_room;
  int64_t strips;
  int64_t sequence_slot;  // of the sequence's first chunk

  __device__ Left<T> target(int64_t t) const {
    const T* at = rows.at(sequence_slot + t / slots.chunk, t % slots.chunk, unit.c);
    return {at[0], at[slots.channels], at[2 * slots.channels]};
  }
  /// Adds targets [from, to), to be asked by sources without a weight.
  __device__ void add_targets(cuda::RunningSum<T>& sum, int64_t from, int64_t to) const {
    for (int64_t t = from; t < to; ++t) {
      const Left<T> x = target(t);
      if (x.a != 0 || x.b != 0) sum.add(-x.exponent, x.b, x.a);
    }
  }

  /// The targets that have the sources [s0, s1) in their windows, or pass them by between two of those.
  __device__ int64_t first_target(int64_t s0) const {
    return max(int64_t{0}, weights.sources.causal ? s0 : s0 - weights.sources.right);
  }
  __device__ int64_t last_target(int64_t s1) const { return min(weights.time, s1 + weights.sources.left); }

  /// dk and dv of the sources [s0, s1), no more than a tile. All threads.
  __device__ void tile(int64_t s0, int64_t s1, const cuda::RunningSum<T>& later,
                       const cuda::RunningSum<T>& earlier) const {
    const int count = static_cast<int>(s1 - s0);
    T max = kExponentFloor<T>;
    for (int m = 0; m < count; ++m) {
      const T key = weights.sources.key(s0 + m);
      if (!cuda::is_absent(key)) max = fmax(max, cuda::split_exp(key).n);
    }
    cuda::Compensated<T> a_sum[kTile] = {}, b_sum[kTile] = {};
    bool fits = true;
    for (int64_t t0 = first_target(s0), stop = last_target(s1); t0 < stop; t0 += kBandTile) {
      weights.find_least(t0);
      weights.form_weights(t0, s0, count);
      T a[kBandTile], b[kBandTile];  // under the scales of the sources and of the weights
#pragma unroll
      for (int r = 0; r < kBandTile; ++r) {
        a[r] = b[r] = 0;
        if (t0 + r >= stop) continue;
        const Left<T> x = target(t0 + r);
        if (x.a == 0 && x.b == 0) continue;
        const T shift = max + weights.room.least[r] - x.exponent;
        const T scale = cuda::pow2(fmin(shift, kPairExponentLimit<T>));
        a[r] = x.a * scale;
        b[r] = x.b * scale;
        constexpr T kMost = sizeof(T) == 4 ? T(0x1p60) : T(0x1p900);
        fits = fits && shift <= kPairExponentLimit<T> && fabs(a[r]) <= kMost && fabs(b[r]) <= kMost;
      }
#pragma unroll
      for (int m = 0; m < kTile; ++m) {
        if (m >= count) break;
        T a_tile = 0, b_tile = 0;
#pragma unroll
        for (int r = 0; r < kBandTile; ++r) {
          a_tile = fma(weights.room.weight[m][r], a[r], a_tile);
          b_tile = fma(weights.room.weight[m][r], b[r], b_tile);
        }
        a_sum[m].add(a_tile, T(1));
        b_sum[m].add(b_tile, T(1));
      }
    }
    // Out of the registers, so that what follows is one loop and not a tile of copies.
    T sums[kTile][2];
#pragma unroll
    for (int m = 0; m < kTile; ++m) {
      sums[m][0] = a_sum[m].sum;
      sums[m][1] = b_sum[m].sum;
    }
#pragma unroll 1
    for (int m = 0; m < count; ++m) {
      const int64_t s = s0 + m;
      const T key = weights.sources.key(s);
      const cuda::SplitExp<T> e = cuda::split_exp(key);
      T a, b;
      if (fits) {
        const T k = e.p * cuda::pow2(e.n - max);
        a = k * sums[m][0];
        b = k * sums[m][1];
      } else {
        exact(s, e, first_target(s0), last_target(s1), a, b);
      }
      add_far(later, e, a, b);
      add_far(earlier, e, a, b);
      write(s, key, a, b);
    }
  }

  static __device__ void add_far(const cuda::RunningSum<T>& sum, const cuda::SplitExp<T>& e, T& a, T& b) {
    if (sum.num.sum == 0 && sum.den.sum == 0) return;
    const T k = e.p * cuda::pow2(fmin(e.n + sum.max, kPairExponentLimit<T>));
    a = fma(k, sum.num.sum, a);
    b = fma(k, sum.den.sum, b);
  }

  /// The sums over targets [from, to) of e^(k + w) a and e^(k + w) b for one source, from p and n of every pair.
  __device__ __noinline__ void exact(int64_t s, const cuda::SplitExp<T>& e, int64_t from, int64_t to, T& a,
                                     T& b) const {
    const RowSources<E>& sources = weights.sources;
    cuda::Compensated<T> a_sum = {}, b_sum = {};
    for (int64_t t = from; t < to && e.p != 0; ++t) {
      const Left<T> x = target(t);
      if ((x.a == 0 && x.b == 0) || (sources.causal && s > t)) continue;
      cuda::SplitExp<T> w = {T(1), T(0)};
      if (s >= t - sources.left && s <= t + sources.right) w = cuda::split_exp(sources.weights(t)[s]);
      if (w.p == 0) continue;
      const T scale = cuda::pow2(fmin(e.n + w.n - x.exponent, kPairExponentLimit<T>));
      a_sum.add(e.p * w.p * x.a, scale);
      b_sum.add(e.p * w.p * x.b, scale);
    }
    a = a_sum.sum;
    b = b_sum.sum;
  }

  /// dv = a, dk = v a - b, where e^(k + w) is within a and b already; and what the ring after the call asks.
  __device__ void write(int64_t s, T key, T a, T b) const {
    const WindowShape& shape = p.in.shape;
    const Sequence& one = unit.slot.sequence;
    const RowSources<E>& sources = weights.sources;
    const bool masked = s >= 0 && sources.own.mask != nullptr && !sources.own.mask[s];
    T value = a == 0 || cuda::is_absent(key) ? T(0) : sources.value(s);
    T dv = a, dk = fma(value, a, -b);
    const bool in_final = s >= weights.time - shape.left;
    const int64_t slot = in_final || s < 0 ? one.index * shape.left + sources.ring.slot(s) : 0;
    if (in_final && p.grad_final_state.ring_value != nullptr) {
      dv += p.grad_final_state.ring_value[slot * shape.channels + unit.c];
    }
    if (masked) dv = dk = 0;
    if (unit.active) {
      if (s >= 0) {
        column(p.grad_v, one, unit.c)[s * p.grad_v.time_stride] = cuda::narrow<E>(dv);
      } else if (p.grad_initial_state.ring_value != nullptr) {
        p.grad_initial_state.ring_value[slot * shape.channels + unit.c] = dv;
      }
    }
    if (sources.own.shares_key) {
      const T sum = sum_of_block(unit.active ? dk : T(0), block_room);
      if (threadIdx.x == 0) {
        memory.key_parts[(key_row(shape, one, s) * shape.heads + unit.head) * strips + blockIdx.x % strips] = sum;
      }
    } else if (unit.active) {
      write_key(p, one, s, unit.c, masked, dk);
    }
  }

  /// Of s among all sources of all sequences.
  static __device__ int64_t key_row(const WindowShape& shape, const Sequence& one, int64_t s) {
    if (s >= 0) return one.row * shape.time + one.first + s;
    return (shape.packed ? 1 : shape.batch) * shape.time + one.index * shape.left + s + shape.left;
  }
};

// The sources [begin - left, end - left) of each slot of a wave, and after the last of a sequence those up to its end.
template <typename E>
__global__ void __launch_bounds__(kBandThreads)
    band_sources(WindowBackward<E> p, Slots slots, int64_t first_slot_of_wave, int64_t strips,
                 BandBackwardMemory<E> memory, WaveRows<Accumulate<E>> rows) {
  using T = Accumulate<E>;
  __shared__ BandRoom<T> room;
  __shared__ T block_room[kBandThreads / 32];
  const WindowShape& s = p.in.shape;
  const int64_t d = s.channels;
  const BandUnit<E> unit(p.in, slots, first_slot_of_wave, strips);
  if (!unit.valid) return;
  const Slot& slot = unit.slot;
  BandWeights<E> weights(p.in, slot.sequence, unit.c, room);
  const SourceGradients<E> grads = {p, slots, unit, rows, weights, memory, block_room, strips, unit.index - slot.index};
  constexpr int64_t kTile = kSourceTile<T>;
  const int64_t time = slot.sequence.time, first = weights.sources.first;
  cuda::RunningSum<T> none;
  none.max = -INFINITY;
  // Of the targets before the windows of the sources from s0 on: not causal.
  const auto earlier_of = [&](int64_t s0) {
    const int64_t end = min(s0 - s.right, time);
    if (s.causal || end <= 0) return none;
    const int64_t chunk = (end - 1) / slots.chunk;
    cuda::RunningSum<T> sum[1];
    load_sums(sum, memory.earlier + (grads.sequence_slot + chunk) * kSumParts * d + unit.c, d);
    grads.add_targets(sum[0], chunk * slots.chunk, end);
    return sum[0];
  };
  if (slot.end == time) {
    const int64_t begin = max(first, time - s.left);
    for (int64_t end = time; end > begin; end -= kTile) {
      const int64_t s0 = max(begin, end - kTile);
      grads.tile(s0, end, none, earlier_of(s0));
    }
  }
  cuda::RunningSum<T> later[1];
  load_sums(later, memory.targets + unit.index * kSumParts * d + unit.c, d);
  const int64_t begin = max(first, slot.begin - s.left);
  for (int64_t end = slot.end - s.left; end > begin; end -= kTile) {
    const int64_t s0 = max(begin, end - kTile);
    grads.tile(s0, end, later[0], earlier_of(s0));
    if (s0 > begin) grads.add_targets(later[0], s0 + s.left, end + s.left);
  }
}

/// Adds the parts of keys that heads share. One thread a source and head.
template <typename E>
__global__ void write_keys(WindowBackward<E> p, Slots slots, int64_t strips, const Accumulate<E>* key_parts) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t i = cuda::thread_index(), head = i % s.heads;
  const int64_t tokens = (s.packed ? 1 : s.batch) * s.time;
  const int64_t row = i / s.heads;
  if (row >= tokens + s.batch * s.left) return;
  int64_t b, source;
  if (row >= tokens) {
    b = (row - tokens) / s.left;
    source = (row - tokens) % s.left - s.left;
  } else if (s.packed) {
    b = 0;
    for (int64_t end = s.batch; b + 1 < end;) {
      const int64_t middle = (b + end) / 2;
      (p.in.cu_seqlens[middle] <= row ? b : end) = middle;
    }
    source = row - p.in.cu_seqlens[b];
  } else {
    b = row / s.time;
    source = row % s.time;
  }
  const Sequence one = sequence_at(p.in, slots, b);
  const int64_t position = p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[b];
  if (one.time == 0 || source < -min(position, s.left)) return;
  T sum = 0;
  for (int64_t strip = 0; strip < strips; ++strip) sum += key_parts[i * strips + strip];
  const bool masked = source >= 0 && p.in.key_mask.data != nullptr &&
                      !p.in.key_mask.data[one.row * p.in.key_mask.batch_stride + one.first + source];
  write_key(p, one, source, head, masked, sum);
}

/// The gradient of ring slots that no chunk writes: those without a source, and all where no position was added. One
/// thread a channel of a slot.
template <typename E>
__global__ void write_idle_ring(WindowBackward<E> p, Slots slots) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t i = cuda::thread_index(), d = s.channels;
  if (i >= s.batch * s.left * d) return;
  const int64_t c = i % d, b = i / d / s.left;
  const Sequence one = sequence_at(p.in, slots, b);
  const int64_t position = p.in.initial_state.position[b], slot = i / d % s.left;
  const bool holds = position >= s.left || slot < position;
  if (holds && one.time > 0) return;
  const auto asked = [&](const T* final_ring, int64_t at) {
    return holds && final_ring != nullptr ? final_ring[at] : T(0);
  };
  const StateGrad<T>& to = p.grad_initial_state;
  if (to.ring_value != nullptr) to.ring_value[i] = asked(p.grad_final_state.ring_value, i);
  if (to.ring_key == nullptr || (s.key_channels != d && c % (d / s.heads) != 0)) return;
  const int64_t at = (b * s.left + slot) * s.key_channels + key_of(s, c);
  to.ring_key[at] = asked(p.grad_final_state.ring_key, at);
}

constexpr int kPairTargets = 32, kPairSources = 32, kPairChannels = 16, kPairThreads = 128;

// partial [slots of the wave][chunk][H][J]: the gradient of each weight from the channels of its head. A block has the
// targets of a slot and a head; a thread 2 x 4 pairs of a tile of targets and sources, whose channels go by in strips.
template <typename E>
__global__ void __launch_bounds__(kPairThreads) band_pairs(WindowBackward<E> p, Slots slots, int64_t first_slot_of_wave,
                                                           BandBackwardMemory<E> memory, WaveRows<Accumulate<E>> rows) {
  using T = Accumulate<E>;
  __shared__ T key_p[kPairChannels][kPairSources], key_n[kPairChannels][kPairSources],
      value[kPairChannels][kPairSources];
  __shared__ T a[kPairChannels][kPairTargets], b[kPairChannels][kPairTargets], exponent[kPairChannels][kPairTargets];
  const WindowShape& s = p.in.shape;
  const int64_t width = s.channels / s.heads, columns = s.left + 1 + s.right;
  const int64_t head = blockIdx.x % s.heads, local_slot = blockIdx.x / s.heads;
  Slot slot;
  if (!find_slot(p.in, slots, first_slot_of_wave + local_slot, slot)) return;
  const RowSources<E> first(p.in, slot.sequence, head * width);
  const int64_t time = slot.sequence.time;
  const int64_t table_rows = p.in.band.row_stride == 0 ? time : min(time, p.in.band.rows - first.ring.position);
  const int my_targets = threadIdx.x / 8 * 2, my_sources = threadIdx.x % 8 * 4;
  for (int64_t t0 = slot.begin; t0 < slot.end; t0 += kPairTargets) {
    const int64_t t1 = min(t0 + kPairTargets, slot.end);
    for (int64_t s0 = first.window_begin(t0), stop = first.window_end(t1 - 1, time); s0 < stop; s0 += kPairSources) {
      T sum[2][4] = {};
      cuda::SplitExp<T> weight[2][4] = {};  // p 0 where a target has no such source in its window
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t t = t0 + my_targets + i, source = s0 + my_sources + j;
          if (t >= t1 || t >= table_rows || source >= stop || source < t - s.left || source > t + s.right) continue;
          weight[i][j] = cuda::split_exp(first.weights(t)[source]);
        }
      }
      for (int64_t c0 = 0; c0 < width; c0 += kPairChannels) {
        __syncthreads();
        for (int i = threadIdx.x; i < kPairChannels * kPairSources; i += blockDim.x) {
          const int c = i % kPairChannels, m = i / kPairChannels;
          cuda::SplitExp<T> e = {};
          T v = 0;
          if (c0 + c < width && s0 + m < stop) {
            const RowSources<E> sources(p.in, slot.sequence, head * width + c0 + c);
            const T key = sources.key(s0 + m);
            e = cuda::split_exp(key);
            if (!cuda::is_absent(key)) v = sources.value(s0 + m);
          }
          key_p[c][m] = e.p;
          key_n[c][m] = e.n;
          value[c][m] = v;
        }
        for (int i = threadIdx.x; i < kPairChannels * kPairTargets; i += blockDim.x) {
          const int c = i % kPairChannels, r = i / kPairChannels;
          Left<T> x = {};
          if (c0 + c < width && t0 + r < t1) {
            const T* at = rows.at(first_slot_of_wave + local_slot, t0 + r - slot.begin, head * width + c0 + c);
            x = {at[0], at[s.channels], at[2 * s.channels]};
          }
          a[c][r] = x.a;
          b[c][r] = x.b;
          exponent[c][r] = x.exponent;
        }
        __syncthreads();
        for (int c = 0; c < kPairChannels; ++c) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int r = my_targets + i;
            const T at = a[c][r], bt = b[c][r], et = exponent[c][r];
            if (at == 0 && bt == 0) continue;
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              const int m = my_sources + j;
              if (key_p[c][m] == 0 || weight[i][j].p == 0) continue;
              const T shift = fmin(key_n[c][m] + weight[i][j].n - et, kPairExponentLimit<T>);
              const T k = key_p[c][m] * weight[i][j].p * cuda::pow2(shift);
              sum[i][j] = fma(k, fma(value[c][m], at, -bt), sum[i][j]);
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int64_t t = t0 + my_targets + i, source = s0 + my_sources + j, column = source - t + s.left;
          if (t >= t1 || source >= stop || column < 0 || column >= columns || t >= table_rows) continue;
          memory.partial[((local_slot * slots.chunk + t - slot.begin) * s.heads + head) * columns + column] = sum[i][j];
        }
      }
    }
  }
}

template <typename T>
__global__ void clear_band(Band<T> band, int64_t heads, int64_t columns, int64_t rows) {
  const int64_t i = cuda::thread_index();
  if (i >= heads * rows * columns) return;
  band.data[i / columns / rows * band.head_stride + i / columns % rows * band.row_stride + i % columns] = 0;
}

/// Adds what a wave's slots have for a weight: row by row to the sum of their sequence, `sequence_sums` [H][J] where
/// all positions share a row, and sequence by sequence to the gradient, so in one order however the waves are cut. One
/// thread a weight.
template <typename E>
__global__ void add_pairs(WindowBackward<E> p, Slots slots, int64_t first_slot_of_wave, int64_t slots_of_wave,
                          int64_t rows, const Accumulate<E>* partial, Accumulate<E>* sequence_sums) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t columns = s.left + 1 + s.right, i = cuda::thread_index();
  if (i >= s.heads * rows * columns) return;
  const int64_t column = i % columns, row = i / columns % rows, head = i / columns / rows;
  const bool shared_row = p.in.band.row_stride == 0;
  T& gradient = p.grad_band.data[head * p.grad_band.head_stride + row * p.grad_band.row_stride + column];
  T total = gradient, sum = shared_row && first_slot_of_wave > 0 ? sequence_sums[i] : T(0);
  const auto add = [&](int64_t local_slot, const Slot& slot, int64_t t) {
    const int64_t source = t - s.left + column;
    const int64_t position =
        p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[slot.sequence.index];
    if (source < -min(position, s.left) || source >= slot.sequence.time) return;
    sum += partial[((local_slot * slots.chunk + t - slot.begin) * s.heads + head) * columns + column];
  };
  for (int64_t local = 0; local < slots_of_wave; ++local) {
    Slot slot;
    if (!find_slot(p.in, slots, first_slot_of_wave + local, slot)) continue;
    if (slot.index == 0 || !shared_row) {
      total += sum;
      sum = 0;
    }
    if (shared_row) {
      for (int64_t t = slot.begin; t < slot.end; ++t) add(local, slot, t);
    } else {
      const int64_t b = slot.sequence.index;
      const int64_t t = row - (p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[b]);
      if (t >= slot.begin && t < slot.end) add(local, slot, t);
    }
  }
  if (!shared_row || first_slot_of_wave + slots_of_wave == slots.count) {
    total += sum;
  } else {
    sequence_sums[i] = sum;
  }
  gradient = total;
}

}  // namespace

template <typename E>
void backward_band(const WindowBackward<E>& p, const Cuda& cuda) {
  using T = Accumulate<E>;
  constexpr const char* kName = "window_backward";
  const WindowShape& s = p.in.shape;
  const int64_t columns = s.left + 1 + s.right;
  const int64_t table_rows = p.in.band.row_stride == 0 ? 1 : p.in.band.rows;
  const bool wants_band = p.grad_band.data != nullptr;
  if (wants_band) {
    cuda::launch(cuda, kName, s.heads * table_rows * columns, clear_band<T>, p.grad_band, s.heads, columns, table_rows);
  }
  if (s.channels == 0 || s.batch == 0) return;
  const Strips strips(s);
  cuda::Workspace workspace(cuda.workspace);
  const BandBackwardMemory<E> memory(s, strips.count, workspace);
  const Slots slots(s);
  const int64_t sequences = s.batch * s.channels;
  if (!s.causal) {
    const int64_t threads = slots.count * s.channels;
    cuda::launch(cuda, kName, threads, sum_chunks<E, 1>, p.in, slots, -s.left, memory.before);
    cuda::launch(cuda, kName, sequences, fold_chunks<E>, p.in, slots, memory.before, memory.ends,
                 static_cast<T*>(nullptr));
    cuda::launch(cuda, kName, threads, sum_chunks<E, 1>, p.in, slots, s.right, memory.after);
    cuda::launch(cuda, kName, sequences, fold_chunks_back<E>, p.in, slots, memory.after);
  }
  const auto blocks = [&](int64_t count) { return count * s.heads * strips.count; };
  cuda::launch_blocks(cuda, kName, blocks(slots.count), strips.threads, band_targets<E>, p, slots, int64_t{0},
                      strips.count, memory, WaveRows<T>{nullptr, 0, 0, 0}, redo_enabled(), cuda.redone);
  if (!s.causal) cuda::launch(cuda, kName, sequences, fold_earlier<E>, p.in, slots, memory.earlier);
  cuda::launch(cuda, kName, sequences, fold_targets<E>, p, slots, memory.targets, memory.ends, memory.at_start);

  const Waves<E> waves(s);
  for (int64_t wave = 0; wave < waves.count; ++wave) {
    const int64_t first = wave * waves.slots, count = std::min(waves.slots, slots.count - first);
    const int64_t from = std::max<int64_t>(0, first - waves.overlap);
    const int64_t to = std::min(slots.count, first + count + waves.overlap);
    const WaveRows<T> rows = {memory.rows, from, slots.chunk, s.channels};
    cuda::launch_blocks(cuda, kName, blocks(to - from), strips.threads, band_targets<E>, p, slots, from, strips.count,
                        memory, rows, redo_enabled(), static_cast<int64_t*>(nullptr));
    cuda::launch_blocks(cuda, kName, blocks(count), strips.threads, band_sources<E>, p, slots, first, strips.count,
                        memory, rows);
    if (!wants_band) continue;
    cuda::launch_blocks(cuda, kName, count * s.heads, kPairThreads, band_pairs<E>, p, slots, first, memory, rows);
    cuda::launch(cuda, kName, s.heads * table_rows * columns, add_pairs<E>, p, slots, first, count, table_rows,
                 memory.partial, memory.sequence_sums);
  }
  if (s.key_channels != s.channels) {
    const int64_t sources = (s.packed ? 1 : s.batch) * s.time + s.batch * s.left;
    cuda::launch(cuda, kName, sources * s.heads, write_keys<E>, p, slots, strips.count, memory.key_parts);
  }
  if (p.in.initial_state.position == nullptr) return;
  const StateGrad<T>& initial = p.grad_initial_state;
  if (initial.num != nullptr || initial.den != nullptr) {
    cuda::launch(cuda, kName, s.batch * s.key_channels, write_initial<E>, p, memory.at_start);
  }
  cuda::launch(cuda, kName, s.batch * s.left * s.channels, write_idle_ring<E>, p, slots);
}

#define AFT_INSTANTIATE(E) template void backward_band<E>(const WindowBackward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace window
}  // namespace aft::ops

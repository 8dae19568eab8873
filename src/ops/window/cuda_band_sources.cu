// The sources of the backward with a band: cuda_backward_band.cuh. With a and b of the targets for K and K v, and
// sources for targets, it is the forward's product: dv = e^k sum_t e^w a, dk = v dv - e^k sum_t e^w b.

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/cuda_backward_band.cuh"

namespace aft::ops::window {
namespace {

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

/// dv of a channel, likewise.
template <typename E, typename T = Accumulate<E>>
__device__ void write_value(const WindowBackward<E>& p, const Sequence& one, int64_t s, int64_t c, bool masked, T dv) {
  const WindowShape& shape = p.in.shape;
  const int64_t position = p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[one.index];
  const bool in_final = s >= one.time - shape.left;
  const int64_t slot = in_final || s < 0 ? one.index * shape.left + (position + s) % shape.left : 0;
  if (in_final && p.grad_final_state.ring_value != nullptr)
    dv += p.grad_final_state.ring_value[slot * shape.channels + c];
  if (masked) dv = 0;
  if (s >= 0) {
    column(p.grad_v, one, c)[s * p.grad_v.time_stride] = cuda::narrow<E>(dv);
  } else if (p.grad_initial_state.ring_value != nullptr) {
    p.grad_initial_state.ring_value[slot * shape.channels + c] = dv;
  }
}

/// Of source s among all sources of all sequences.
inline __device__ int64_t key_row(const WindowShape& shape, const Sequence& one, int64_t s) {
  if (s >= 0) return one.row * shape.time + one.first + s;
  return (shape.packed ? 1 : shape.batch) * shape.time + one.index * shape.left + s + shape.left;
}

/// A block's sources at the channels at hand.
template <typename E>
struct SourcePanel {
  using T = Accumulate<E>;

  const WindowBackward<E>& p;
  const Slots& slots;
  const BandBackwardMemory<E>& memory;
  const BandUnit<E>& unit;
  const Reach& reach;
  const BandRoom<T>& room;
  const BandTable<E>& table;
  const WaveRows<T>& rows;
  int64_t s0, end;  // sources [s0, end), a panel or less; those from `first` of the sequence on are there
  int64_t last;     // targets below it are near

  /// The first target that the panel's windows may hold: row 0 of the other side.
  __device__ int64_t first_target() const { return s0 - reach.right; }
  __device__ int64_t sequence_slot() const { return unit.index - unit.slot.index; }
  __device__ int64_t source(int r) const { return s0 + unit.thread.tile * kTile + r; }
  __device__ bool has(int64_t s) const { return s >= table.first && s < end; }

  /// W of the targets of a round.
  __device__ void find_least(int begin) const { table.find_least(first_target() + begin, reach.round, room.least); }
  __device__ void form_weights(int begin) const {
    set_weights(room, reach, begin, [&](int r, int m) {
      const int64_t t = first_target() + m;
      return t < last ? table.weight(t, s0 + r, room.least[m - begin]) : T(0);
    });
  }

  /// a and b of the round's targets under the maximum M of the sources' keys and W: times 2^(M + W - exponent of D).
  /// False where one is out of range.
  __device__ bool set_targets(const BandSources<E>& channels, int begin) const {
    T max[kLanes];
    bool fits = true;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) max[i] = room.of_channel(kMax, unit.thread.lane + i);
    fill_round(room, reach, unit.thread, false, [&](int m, cuda::Pack<T, kLanes>& a, cuda::Pack<T, kLanes>& b) {
      const int64_t t = first_target() + begin + m;
      if (t < 0 || t >= last) return;
      const T* at = rows.at(sequence_slot(), t, unit.c);
      T x[kLanes], y[kLanes], exponent[kLanes];
      channels.load(at, x);
      channels.load(at + rows.channels, y);
      channels.load(at + 2 * rows.channels, exponent);
      const T least = room.least[m];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (x[i] == 0 && y[i] == 0) continue;
        const T shift = max[i] + least - exponent[i], scale = cuda::pow2(fmin(shift, kPairExponentLimit<T>));
        a.lane[i] = x[i] * scale;
        b.lane[i] = y[i] * scale;
        fits = fits && shift <= kPairExponentLimit<T> && fabs(a.lane[i]) <= kMostScaled<T> &&
               fabs(b.lane[i]) <= kMostScaled<T>;
      }
    });
    return fits;
  }

  /// Adds targets [from, to), to be asked by sources without a weight.
  __device__ void add_targets(cuda::RunningSum<T>& sum, int64_t from, int64_t to, int64_t c) const {
    for (int64_t t = from; t < to; ++t) {
      const T* at = rows.at(sequence_slot(), t, c);
      if (at[0] != 0 || at[rows.channels] != 0) sum.add(-at[2 * rows.channels], at[rows.channels], at[0]);
    }
  }
  /// Not causal: the sums of the targets before the panel's first, at channel c.
  __device__ cuda::RunningSum<T> sums_of_earlier(int64_t c) const {
    cuda::RunningSum<T> sum[1];
    sum[0].max = -INFINITY;
    const int64_t to = min(first_target(), table.time);
    if (table.causal || to <= 0) return sum[0];
    const int64_t chunk = (to - 1) / kChunk;
    Slot its = unit.slot;
    its.group += chunk / Slots::kGroup - its.index / Slots::kGroup;
    sums_at(sum, memory.earlier, slots, sequence_slot() + chunk, its, c);
    add_targets(sum[0], chunk * kChunk, to, c);
    return sum[0];
  }

  static __device__ void add_far(const cuda::RunningSum<T>& sum, const cuda::SplitExp<T>& e, T& a, T& b) {
    if (sum.num.sum == 0 && sum.den.sum == 0) return;
    const T k = e.p * cuda::pow2(fmin(e.n + sum.max, kPairExponentLimit<T>));
    a = fma(k, sum.num.sum, a);
    b = fma(k, sum.den.sum, b);
  }

  /// Writes dk and dv of source s at channel c from the sums of e^(k + w) a and e^(k + w) b; returns dk.
  __device__ T write(int64_t s, int64_t c, T key, T value, T a, T b) const {
    const Sequence& one = unit.slot.sequence;
    const bool masked = is_masked(s);
    if (a == 0 || cuda::is_absent(key)) value = 0;
    const T dk = fma(value, a, -b);
    write_value(p, one, s, c, masked, a);
    if (p.in.shape.key_channels == p.in.shape.channels) write_key(p, one, s, c, masked, dk);
    return masked ? T(0) : dk;
  }
  __device__ bool is_masked(int64_t s) const {
    const auto& mask = p.in.key_mask;
    const Sequence& one = unit.slot.sequence;
    return s >= 0 && mask.data != nullptr && !mask.data[one.row * mask.batch_stride + one.first + s];
  }
};

/// The sums over the targets [from, to) of e^(k + w) a and e^(k + w) b for source s, from p and n of every pair.
template <typename E, typename T = Accumulate<E>>
__device__ __noinline__ void sum_exactly(const SourcePanel<E>& panel, int64_t s, int64_t c, const cuda::SplitExp<T>& e,
                                         int64_t from, int64_t to, T& a, T& b) {
  const BandTable<E>& table = panel.table;
  cuda::Compensated<T> a_sum = {}, b_sum = {};
  for (int64_t t = from; t < to && e.p != 0; ++t) {
    const T* at = panel.rows.at(panel.sequence_slot(), t, c);
    const T x = at[0], y = at[panel.rows.channels], exponent = at[2 * panel.rows.channels];
    if ((x == 0 && y == 0) || (table.causal && s > t) || !table.has_row(t)) continue;
    cuda::SplitExp<T> w = {T(1), T(0)};
    if (s >= t - table.left && s <= t + table.right) w = cuda::split_exp(table.weights(t)[s]);
    if (w.p == 0) continue;
    const T scale = cuda::pow2(fmin(e.n + w.n - exponent, kPairExponentLimit<T>));
    a_sum.add(e.p * w.p * x, scale);
    b_sum.add(e.p * w.p * y, scale);
  }
  a = a_sum.sum;
  b = b_sum.sum;
}

/// All of a block's panel of sources. later: the targets from `last` on are asked of memory. All threads.
template <typename E>
__device__ void write_panel(const SourcePanel<E>& panel, BandUnit<E>& unit, bool packs, bool has_later) {
  using T = Accumulate<E>;
  const BandRoom<T>& room = panel.room;
  const Reach& reach = panel.reach;
  const WindowShape& s = panel.p.in.shape;
  __syncthreads();
  if (reach.one_round()) {
    panel.find_least(0);
    __syncthreads();
    panel.form_weights(0);
  }
  do {
    const BandSources<E> channels(panel.p.in, unit.slot.sequence, unit.c, unit.end, packs);
    if (threadIdx.x < kPanel) {
      const int64_t c = unit.channel(threadIdx.x);
      cuda::RunningSum<T> later[1];
      later[0].max = -INFINITY;
      if (has_later) sums_at(later, panel.memory.later, panel.slots, unit.index, unit.slot, c);
      room.set_outside(kAfterMax, threadIdx.x, later[0]);
      room.set_outside(kBeforeMax, threadIdx.x, panel.sums_of_earlier(c));
    }
    find_largest(channels, max(panel.s0, panel.table.first), panel.end, room, unit.thread,
                 [&](int channel, T key, T) { room.of_channel(kMax, channel) = exponent_of_key(key); });
    BandSums<T> sums;
    Around<T> around;
    bool fits = true;
    BandTotals<T> totals(room, reach);
    for (int begin = 0; begin < reach.rows(); begin += reach.round) {
      if (!reach.one_round()) {
        __syncthreads();
        panel.find_least(begin);
        __syncthreads();
        panel.form_weights(begin);
      }
      fits = panel.set_targets(channels, begin) && fits;
      __syncthreads();
      sums.add_round(room, reach, unit.thread, begin);
      totals.add(sums, begin);
      const auto outside = [&](int m) { return cuda::pow2(-room.least[m]); };
      const int tile = unit.thread.tile * kTile;
      if (!panel.table.causal) around.add_rows(room, reach, unit.thread, begin, 0, tile, outside);
      around.add_rows(room, reach, unit.thread, begin, tile + reach.span, reach.rows(), outside);
    }
    fits = __syncthreads_and(fits) != 0;
#pragma unroll 1
    for (int r = 0; r < kTile; ++r) {
      const int64_t source = panel.source(r);
      T dk_sum = 0;
      if (panel.has(source)) {
        T key[kLanes], value[kLanes], a[kLanes], b[kLanes];
        channels.read(source, key, value);
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          const cuda::SplitExp<T> e = cuda::split_exp(key[i]);
          const int channel = unit.thread.lane + i;
          T near_a = 0, near_b = 0;
#pragma unroll
          for (int row = 0; row < kTile; ++row) {
            if (row != r) continue;
            near_a = sums.first[row][i] + around.first[i];
            near_b = sums.second[row][i] + around.second[i];
          }
          if (fits) {
            const T k = e.p * cuda::pow2(e.n - room.of_channel(kMax, channel));
            a[i] = k * near_a;
            b[i] = k * near_b;
          } else {
            sum_exactly(panel, source, unit.channel(channel), e, max(int64_t{0}, panel.first_target()), panel.last,
                        a[i], b[i]);
          }
          SourcePanel<E>::add_far(room.outside(kAfterMax, channel), e, a[i], b[i]);
          SourcePanel<E>::add_far(room.outside(kBeforeMax, channel), e, a[i], b[i]);
        }
        const bool plain = source >= 0 && source < panel.table.time - s.left && s.key_channels == s.channels &&
                           channels.packs && !panel.is_masked(source);
        if (plain) {
#pragma unroll
          for (int i = 0; i < kLanes; ++i) {
            if (a[i] == 0 || cuda::is_absent(key[i])) value[i] = 0;
            b[i] = fma(value[i], a[i], -b[i]);
          }
          const Sequence& one = unit.slot.sequence;
          channels.store(column(panel.p.grad_v, one, unit.c) + source * panel.p.grad_v.time_stride, a);
          channels.store(column(panel.p.grad_k, one, unit.c) + source * panel.p.grad_k.time_stride, b);
        } else {
#pragma unroll
          for (int i = 0; i < kLanes; ++i) {
            if (i < channels.count) dk_sum += panel.write(source, unit.c + i, key[i], value[i], a[i], b[i]);
          }
        }
      }
      if (s.key_channels == s.channels) continue;
      for (int step = 1; step < 16; step *= 2) dk_sum += __shfl_xor_sync(0xffffffffu, dk_sum, step);
      if (unit.thread.lane == 0 && panel.has(source)) {
        const int64_t strip = (unit.c - unit.head * (s.channels / s.heads)) / kPanel;
        const int64_t row = key_row(s, unit.slot.sequence, source);
        panel.memory.key_parts[(row * s.heads + unit.head) * strip_count(s) + strip] = dk_sum;
      }
    }
    __syncthreads();
  } while (unit.next());
}

template <typename E>
__global__ void __launch_bounds__(kBandThreads, kBandBlocks<E>)
    write_sources(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                  const __grid_constant__ Reach reach, int64_t first_slot,
                  const __grid_constant__ BandBackwardMemory<E> memory,
                  const __grid_constant__ WaveRows<Accumulate<E>> rows, bool packs) {
  using T = Accumulate<E>;
  __shared__ BandPlace place;
  __shared__ BandTable<E> table;
  BandUnit<E> unit(p.in, slots, first_slot, 1, place);
  if (!unit.valid) return;
  const int64_t c = unit.c;
  const BandRoom<T> room(reach, cuda::shared_memory<T>());
  table.set(p.in, unit.slot.sequence, unit.head);
  const int64_t left = p.in.shape.left, time = table.time;
  SourcePanel<E> panel = {
      p, slots, memory, unit, reach, room, table, rows, unit.slot.begin - left, unit.slot.end - left, unit.slot.end};
  if (panel.end > table.first) write_panel(panel, unit, packs, true);
  if (unit.slot.end < time) return;
  panel.last = time;
  for (panel.s0 = panel.end; panel.s0 < time;
       panel.s0 += kPanel) {  // the last slot of a sequence does those up to its end
    unit.c = c;
    panel.end = min(panel.s0 + kPanel, time);
    if (panel.end > table.first) write_panel(panel, unit, packs, false);
  }
}

/// Adds the parts of keys that heads share. One thread a source and head.
template <typename E>
__global__ void write_keys(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                           int64_t strips, const Accumulate<E>* key_parts) {
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
    b = find_sequence(s.batch, row, [&](int64_t m) { return p.in.cu_seqlens[m]; });
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

}  // namespace

template <typename E>
void run_band_sources(const BandBackward<E>& call, int64_t first, int64_t count, const WaveRows<Accumulate<E>>& rows) {
  const WindowShape& s = call.p.in.shape;
  const Reach reach(s);
  cuda::launch_with_memory(call.cuda, kBackwardName, count * s.heads * strip_count(s), kBandThreads,
                           BandRoom<Accumulate<E>>::bytes(reach), write_sources<E>, call.p, call.slots, reach, first,
                           call.memory, rows, call.packs);
}

template <typename E>
void run_band_keys(const BandBackward<E>& call) {
  const WindowShape& s = call.p.in.shape;
  if (s.key_channels == s.channels) return;
  const int64_t sources = (s.packed ? 1 : s.batch) * s.time + s.batch * s.left;
  cuda::launch(call.cuda, kBackwardName, sources * s.heads, write_keys<E>, call.p, call.slots, strip_count(s),
               call.memory.key_parts);
}

#define AFT_INSTANTIATE(E)                                                                                     \
  template void run_band_sources<E>(const BandBackward<E>&, int64_t, int64_t, const WaveRows<Accumulate<E>>&); \
  template void run_band_keys<E>(const BandBackward<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window

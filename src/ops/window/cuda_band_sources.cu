// The sources of the backward with a band: cuda_backward_band.cuh. With a and b of the targets for K and K v, and
// sources for targets, it is the forward's product: dv = e^k sum_t e^w a, dk = v dv - e^k sum_t e^w b.

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/cuda_backward_band.cuh"
#include "ops/window/cuda_band_rows.cuh"

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

/// Targets as they were left, at a thread's channels.
template <typename T, int kCount>
struct TargetRows {
  cuda::Pack<T, kLanes> a[kCount], b[kCount], exponent[kCount];
};

/// A block's sources at the channels at hand.
template <typename E, int kRows>
struct SourcePanel {
  using T = Accumulate<E>;

  const WindowBackward<E>& p;
  const Slots& slots;
  const BandBackwardMemory<E>& memory;
  const BandPlace& place;
  const BandThread thread;
  const Reach& reach;
  const BandRoom<T> room;
  const BandTable<E>& table;
  const WaveRows<T>& rows;
  int64_t s0, end;  // sources [s0, end), a panel or less; those from `first` of the sequence on are there
  int64_t last;     // targets below it are near

  /// The first target that the panel's windows may hold: row 0 of the other side.
  __device__ int64_t first_target() const { return s0 - reach.right; }
  __device__ int64_t sequence_slot() const { return place.index - place.slot.index; }
  __device__ int64_t source(int r) const { return s0 + thread.tile * kTile + r; }
  __device__ bool has(int64_t s) const { return s >= table.first && s < end; }

  /// Those of a round's targets that are there and near.
  __device__ RowRange targets(int begin) const { return {0, last, first_target() + begin, kRound<kRows>}; }

  /// W of the targets of a round, and the weights. All threads.
  __device__ __forceinline__ void form_weights(int begin) const {
    table.find_least(first_target() + begin, kRound<kRows>, room.least);
    __syncthreads();
    const int r = weight_row(), columns = reach.columns();
    const bool is_source = s0 + r >= table.first && s0 + r < table.time;
    const RowRange near(0, min(last, table.rows), first_target(), reach.rows());
    const T* first_row = table.row(first_target());
    set_weights<kRows>(room, reach, begin, [&](int m) {
      if (!is_source || !near.has(m)) return T(0);
      return table.template weight<false>(first_row + m * table.stride, r - m + columns - 1, columns,
                                          room.least[m - begin]);
    });
  }

  /// Whether a round's targets can be loaded as TargetRows.
  __device__ bool can_load(const BandChannels<E>& channels, const RowRange& range) const {
    return channels.can_pack && range.from < range.to;
  }
  /// kCount of the round's targets, from the i-th of the warp on.
  template <int kCount>
  __device__ __forceinline__ void load_targets(const BandChannels<E>& channels, int begin, const RowRange& range, int i,
                                               TargetRows<T, kCount>& to) const {
    const T* at =
        rows.at(sequence_slot(), first_target() + begin + range.from, min(channels.begin, place.end - kLanes));
    const auto stride = static_cast<uint32_t>(kRowParts * rows.channels);
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const int row = min(max(thread.own_row(i + j), range.from), range.to - 1) - range.from;
      const T* here = at + static_cast<uint64_t>(static_cast<uint32_t>(row)) * stride;
      to.a[j] = cuda::load<kLanes>(here);
      to.b[j] = cuda::load<kLanes>(here + rows.channels);
      to.exponent[j] = cuda::load<kLanes>(here + 2 * rows.channels);
    }
  }

  /// a and b of the round's targets under the maximum M of the sources' keys and W: times 2^(M + W - exponent of D).
  /// False where one is out of range. first: the first of them, if they can be loaded.
  __device__ __forceinline__ bool set_targets(const BandChannels<E>& channels, int begin,
                                              const TargetRows<T, kRows / 2>& first) const {
    const RowRange range = targets(begin);
    T max_key[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) max_key[i] = room.of_channel(kMax, thread.lane + i);
    RoundWriter<T> writer = {room, thread, {}, {}};
    bool fits = true;
    const auto put = [&](int i, const cuda::Pack<T, kLanes>& a, const cuda::Pack<T, kLanes>& b,
                         const cuda::Pack<T, kLanes>& exponent) {
      const int m = thread.own_row(i);
      const bool there = range.has(m);
      const T least = room.least[m];
      cuda::Pack<T, kLanes> x, y;
#pragma unroll
      for (int lane = 0; lane < kLanes; ++lane) {
        const T shift = max_key[lane] + least - exponent.lane[lane];
        const T scale = cuda::pow2(fmin(shift, kPairExponentLimit<T>));
        x.lane[lane] = there ? a.lane[lane] * scale : T(0);
        y.lane[lane] = there ? b.lane[lane] * scale : T(0);
        const T most = fmax(fabs(x.lane[lane]), fabs(y.lane[lane]));
        const bool in_range = (most <= kMostScaled<T>)&((shift <= kPairExponentLimit<T>) | (most == 0));
        fits = fits & (in_range | (lane >= channels.count));
      }
      writer.put(i, x, y, cuda::pow2(-least));
    };
    if (can_load(channels, range)) {
      constexpr int kHalf = kRows / 2;
      TargetRows<T, kHalf> second;
      load_targets(channels, begin, range, kHalf, second);
#pragma unroll
      for (int i = 0; i < kHalf; ++i) put(i, first.a[i], first.b[i], first.exponent[i]);
#pragma unroll
      for (int i = 0; i < kHalf; ++i) put(kHalf + i, second.a[i], second.b[i], second.exponent[i]);
    } else {
#pragma unroll 1
      for (int i = 0; i < kRows; ++i) {
        T a[kLanes] = {}, b[kLanes] = {}, exponent[kLanes] = {};
        const int m = thread.own_row(i);
        if (range.has(m)) {
          const T* here = rows.at(sequence_slot(), first_target() + begin + m, channels.begin);
          channels.load(here, a);
          channels.load(here + rows.channels, b);
          channels.load(here + 2 * rows.channels, exponent);
        }
        put(i, {a[0], a[1]}, {b[0], b[1]}, {exponent[0], exponent[1]});
      }
    }
    writer.store_groups();
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
    Slot its = place.slot;
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
    const Sequence& one = place.slot.sequence;
    const bool masked = is_masked(s);
    if (a == 0 || cuda::is_absent(key)) value = 0;
    const T dk = fma(value, a, -b) + 0;  // a zero of no sign, whatever the value
    write_value(p, one, s, c, masked, a);
    if (p.in.shape.key_channels == p.in.shape.channels) write_key(p, one, s, c, masked, dk);
    return masked ? T(0) : dk;
  }
  __device__ bool is_masked(int64_t s) const {
    const auto& mask = p.in.key_mask;
    const Sequence& one = place.slot.sequence;
    return s >= 0 && mask.data != nullptr && !mask.data[one.row * mask.batch_stride + one.first + s];
  }
};

/// The sums over the targets [from, to) of e^(k + w) a and e^(k + w) b for source s, from p and n of every pair.
template <typename E, int kRows, typename T = Accumulate<E>>
__device__ __noinline__ void sum_exactly(const SourcePanel<E, kRows>& panel, int64_t s, int64_t c,
                                         const cuda::SplitExp<T>& e, int64_t from, int64_t to, T& a, T& b) {
  const BandTable<E>& table = panel.table;
  cuda::Compensated<T> a_sum = {}, b_sum = {};
  for (int64_t t = from; t < to && e.p != 0; ++t) {
    const T* at = panel.rows.at(panel.sequence_slot(), t, c);
    const T x = at[0], y = at[panel.rows.channels], exponent = at[2 * panel.rows.channels];
    if ((x == 0 && y == 0) || (table.causal && s > t) || !table.has_row(t)) continue;
    cuda::SplitExp<T> w = {T(1), T(0)};
    if (s >= t - table.left && s <= t + table.right) w = cuda::split_exp(table.row(t)[s - (t - table.left)]);
    if (w.p == 0) continue;
    const T scale = cuda::pow2(fmin(e.n + w.n - exponent, kPairExponentLimit<T>));
    a_sum.add(e.p * w.p * x, scale);
    b_sum.add(e.p * w.p * y, scale);
  }
  a = a_sum.sum;
  b = b_sum.sum;
}

/// The sources of a thread one by one, whatever they are: of a ring, masked, beyond the range of the products. Those
/// that are none of it come to the same bits as in write_panel.
template <typename E, int kRows, typename T = Accumulate<E>>
__device__ __forceinline__ void write_each(const SourcePanel<E, kRows>& panel, const BandChannels<E>& channels,
                                           const BandSums<T>& sums, bool fits) {
  const BandRoom<T>& room = panel.room;
  const WindowShape& s = panel.p.in.shape;
#pragma unroll 1
  for (int r = 0; r < kTile; ++r) {
    const int64_t source = panel.source(r);
    T dk_sum = 0;
    if (panel.has(source)) {
      T key[kLanes], value[kLanes];
      channels.read(source, key, value);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (i >= channels.count) continue;
        const cuda::SplitExp<T> e = cuda::split_exp(key[i]);
        const int channel = panel.thread.lane + i;
        T a = 0, b = 0;
        if (fits) {
#pragma unroll
          for (int row = 0; row < kTile; ++row) {
            a = row == r ? sums.first[row][i] : a;
            b = row == r ? sums.second[row][i] : b;
          }
          const T max_key = room.of_channel(kMax, channel);
          T k = e.p * cuda::pow2(e.n - max_key);
          if (source >= 0 && e.p != 0) {
            k = cuda::exp_under_for<sizeof(E) == 2>(fmin(key[i], kKeyLimit<T>), max_key) + (key[i] - key[i]);
          }
          a *= k;
          b *= k;
        } else {
          sum_exactly(panel, source, channels.begin + i, e, max(int64_t{0}, panel.first_target()), panel.last, a, b);
          panel.add_far(room.outside(kAfterMax, channel), e, a, b);
          panel.add_far(room.outside(kBeforeMax, channel), e, a, b);
        }
        dk_sum += panel.write(source, channels.begin + i, key[i], value[i], a, b);
      }
    }
    if (s.key_channels == s.channels) continue;
    for (int step = 1; step < 32; step *= 2) dk_sum += __shfl_xor_sync(0xffffffffu, dk_sum, step);
    if (panel.thread.lane == 0 && panel.has(source)) {
      const int64_t strip = (channels.begin - panel.place.head * (s.channels / s.heads)) / kPanel;
      const int64_t row = key_row(s, panel.place.slot.sequence, source);
      panel.memory.key_parts[(row * s.heads + panel.place.head) * strip_count(s) + strip] = dk_sum;
    }
  }
}

/// A block's panel of sources at the channels from first_channel on; if one round has all targets, their weights are
/// there. has_later: the targets from `last` on are asked of memory. All threads.
template <typename E, int kRows>
__device__ __forceinline__ void write_panel(const SourcePanel<E, kRows>& panel, int64_t first_channel, bool packs,
                                            bool has_later) {
  using T = Accumulate<E>;
  const BandRoom<T>& room = panel.room;
  const Reach& reach = panel.reach;
  const BandThread thread = panel.thread;
  const WindowShape& s = panel.p.in.shape;
  const BandPlace& place = panel.place;
  const Sequence& one = place.slot.sequence;
  const BandChannels<E> channels(panel.p.in, one, first_channel + thread.lane, place.end, packs);
  if (threadIdx.x < kPanel) {
    const int64_t c = min(first_channel + threadIdx.x, place.end - 1);
    cuda::RunningSum<T> later[1];
    later[0].max = -INFINITY;
    if (has_later) sums_at(later, panel.memory.later, panel.slots, place.index, place.slot, c);
    room.set_outside(kAfterMax, threadIdx.x, later[0]);
    room.set_outside(kBeforeMax, threadIdx.x, panel.sums_of_earlier(c));
  }
  RoundSources<E, kTile> own(channels, thread);
  own.load(panel.s0, panel.table.first, panel.end);
  TargetRows<T, kRows / 2> first;
  const auto load_first = [&](int begin) {
    const RowRange range = panel.targets(begin);
    if (panel.can_load(channels, range)) panel.load_targets(channels, begin, range, 0, first);
  };
  if (kRows == kAllRows) load_first(0);  // under way while the largest key is found
  Largest<T> largest;
  own.add_to(largest);
  const bool plain = share_largest(
      largest, room, thread, [&](int channel, T key, T) { room.of_channel(kMax, channel) = exponent_of_key(key); });
  BandSums<T> sums;
  Around<T> around;
  bool fits = true;
  const auto add_round = [&](int begin, BandSums<T>& to) {
    fits = panel.set_targets(channels, begin, first) && fits;
    __syncthreads();
    to.template add_round<kRows>(room, reach, thread, begin);
    const int tile = thread.tile * kTile;
    if (!panel.table.causal) around.add_tiles(room, thread, begin, 0, tile);
    around.template add_groups<kRows>(room, thread, begin, tile + reach.span, reach.rows());
  };
  if constexpr (kRows == kAllRows) {
    add_round(0, sums);
  } else {
    BandTotals<T> totals(room);
    for (int begin = 0; begin < reach.rows(); begin += kRound<kRows>) {
      __syncthreads();
      panel.form_weights(begin);
      load_first(begin);
      BandSums<T> part;
      add_round(begin, part);
      const bool last = begin + kRound<kRows> >= reach.rows();
      totals.add(part, begin == 0, last);
      if (last) sums = part;
    }
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    const T max = room.of_channel(kMax, thread.lane + i);
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      if (side == 1 && panel.table.causal) continue;
      const cuda::RunningSum<T> sum = room.outside(side == 0 ? kAfterMax : kBeforeMax, thread.lane + i);
      if (sum.num.sum == 0 && sum.den.sum == 0) continue;
      const T shift = max + sum.max, scale = cuda::pow2(fmin(shift, kPairExponentLimit<T>));
      fits = fits && (shift <= kPairExponentLimit<T> || i >= channels.count);
      around.first[i] = fma(sum.num.sum, scale, around.first[i]);
      around.second[i] = fma(sum.den.sum, scale, around.second[i]);
    }
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      sums.first[r][i] += around.first[i];
      sums.second[r][i] += around.second[i];
    }
  }
  fits = __syncthreads_and(fits) != 0;
  const int64_t source = panel.source(0);
  const bool fast = plain && own.loaded && fits && s.key_channels == s.channels && source >= 0 &&
                    panel.source(kTile) <= min(panel.end, panel.table.time - s.left);
  if (!fast) {
    write_each(panel, channels, sums, fits);
  } else if (channels.packs) {  // else the thread has no channels
    E* grad_k = column(panel.p.grad_k, one, channels.begin) + source * panel.p.grad_k.time_stride;
    E* grad_v = column(panel.p.grad_v, one, channels.begin) + source * panel.p.grad_v.time_stride;
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      T key[kLanes], value[kLanes], dk[kLanes], dv[kLanes];
      own.get(r, key, value);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const T k = cuda::exp_under_for<sizeof(E) == 2>(key[i], room.of_channel(kMax, thread.lane + i));
        dv[i] = k * sums.first[r][i];
        dk[i] = fma(value[i], dv[i], -(k * sums.second[r][i])) + 0;
      }
      channels.template store<true>(grad_k + r * panel.p.grad_k.time_stride, dk);
      channels.template store<true>(grad_v + r * panel.p.grad_v.time_stride, dv);
    }
  }
}

/// Blocks that a multiprocessor is to hold at once, at least.
template <typename E>
constexpr int kSourceBlocks = sizeof(E) == 8 ? 1 : 2;

template <typename E, int kRows>
__global__ void __launch_bounds__(kBandThreads, kSourceBlocks<E>)
    write_sources(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                  const __grid_constant__ Reach reach, int64_t first_slot,
                  const __grid_constant__ BandBackwardMemory<E> memory,
                  const __grid_constant__ WaveRows<Accumulate<E>> rows, bool packs) {
  using T = Accumulate<E>;
  __shared__ BandPlace place;
  __shared__ BandTable<E> table;
  const BandUnit<E> unit(p.in, slots, first_slot, kBackwardStrips, place);
  if (!unit.valid) return;
  const BandRoom<T> room(reach, false, cuda::shared_memory<T>());
  table.set(p.in, unit.slot.sequence, unit.head);
  const int64_t left = p.in.shape.left, time = table.time;
  // Its own, and those up to the end of the sequence where it is the last.
  const int64_t end = unit.slot.end < time ? unit.slot.end - left : time;
  for (int64_t s0 = unit.slot.begin - left; s0 < end;) {
    const bool own = s0 < unit.slot.end - left;
    const int64_t stop = own ? unit.slot.end - left : min(s0 + kPanel, time);
    const SourcePanel<E, kRows> panel = {p,    slots, memory, place, unit.thread, reach,
                                         room, table, rows,   s0,    stop,        own ? unit.slot.end : time};
    s0 = stop;
    if (stop <= table.first) continue;
    if (kRows == kAllRows) panel.form_weights(0);
    for (int64_t c = place.begin; c < place.block_end; c += kPanel) {
      write_panel(panel, c, packs, own);
      __syncthreads();
    }
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
  with_rounds<Accumulate<E>>(s, [&]<int kRows>(const Reach& reach, std::integral_constant<int, kRows>) {
    cuda::launch_with_memory(call.cuda, kBackwardName, count * s.heads * band_groups(s, kBackwardStrips), kBandThreads,
                             BandRoom<Accumulate<E>>::bytes(reach), write_sources<E, kRows>, call.p, call.slots, reach,
                             first, call.memory, rows, call.packs);
  });
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

#pragma once

// D and N of a block's targets, for the forward and again for the backward.

#include <cstdint>

#include "ops/window/cuda_band_rows.cuh"

namespace aft::ops::window {

/// A target's D and N: D = den 2^exponent, N = num 2^(exponent + X).
template <typename T>
struct TargetSums {
  T den, num, exponent;

  /// Whether what the products lost is below the promise. N may have met an infinite value that the row does not see.
  __device__ bool certified() const { return (den >= kCertificate<T>)&(fabs(num) < INFINITY); }
};

/// Target t of a slot at channel c, pair by pair, from the sums outside the slot's windows.
template <typename E, typename T = Accumulate<E>>
__device__ __noinline__ TargetSums<T> exact_target(const WindowInputs<E>& in, const Slot& slot, int64_t c, int64_t t,
                                                   cuda::RunningSum<T> before, cuda::RunningSum<T> after,
                                                   T value_scale) {
  const RowSources<E> sources(in, slot.sequence, c);
  const int64_t time = slot.sequence.time;
  for (int64_t s = sources.window_begin(slot.begin); s < t - sources.left; ++s) {
    before.add_source(sources.key(s), sources.value(s));
  }
  if (!sources.causal) {
    for (int64_t s = sources.window_end(slot.end - 1, time) - 1; s > t + sources.right; --s) {
      after.add_source(sources.key(s), sources.value(s));
    }
  }
  const ExactRow<T> row = exact_row(sources, t, time, before, after, value_scale);
  return {row.den, row.num, row.exponent};
}

/// The targets of a block's slot. K = e^k 2^-M and K v 2^-X of the sources that their windows hold, w~ = e^w 2^-W of
/// every pair: D = den 2^(M + W), N = num 2^(M + W + X). M and X are those of all sources that the slot reads, W that
/// of a target's weights.
template <typename E, int kRows, bool kRounded>
struct BandTargets {
  using T = Accumulate<E>;

  const WindowInputs<E>& in;
  const Slot& slot;
  const BandThread thread;
  const Reach& reach;
  const BandRoom<T> room;
  const BandTable<E>& table;

  /// All threads.
  __device__ __forceinline__ BandTargets(const WindowInputs<E>& inputs, const BandUnit<E>& place, const Reach& extent,
                                         const BandRoom<T>& memory, BandTable<E>& shared)
      : in(inputs), slot(place.slot), thread(place.thread), reach(extent), room(memory), table(shared) {
    shared.set(inputs, place.slot.sequence, place.head);
    table.find_least(slot.begin, kPanel, room.least);
    __syncthreads();
    if (kRows == kAllRows) form_weights(0);
  }
  __device__ __forceinline__ void form_weights(int begin) const {
    const int r = weight_row(), columns = reach.columns();
    const T* row = table.row(slot.begin + r);
    const T least = room.least[r];
    const bool has_row = table.has_row(slot.begin + r);
    const RowRange sources(table.first, table.time, first_source(), reach.rows());
    set_weights<kRows>(room, reach, begin, [&](int m) {
      return has_row && sources.has(m) ? table.template weight<kRounded>(row, m - r, columns, least) : T(0);
    });
  }
  /// Row r of this thread's tile, and how many it has.
  __device__ int64_t row(int r) const { return slot.begin + thread.tile * kTile + r; }
  __device__ int rows() const { return static_cast<int>(max(int64_t{0}, min(int64_t{kTile}, slot.end - row(0)))); }
  __device__ int64_t first_source() const { return slot.begin - reach.left; }
  __device__ int64_t last_source() const { return table.window_end(slot.end - 1); }

  /// The sums of this thread's targets at its channels. Beforehand the sums outside the slot's windows stand in the
  /// room's table. load(): what is to be on its way during the product. Returns whether all sources are plain
  /// (Largest). All threads.
  template <typename Load>
  __device__ __forceinline__ bool sum(const BandChannels<E>& channels, BandSums<T>& sums, const Load& load) const {
    RoundSources<E, kRows> sources(channels, thread);
    Largest<T> largest;
    for (int begin = 0; begin < reach.rows(); begin += kRound<kRows>) {
      sources.load(first_source() + begin, table.first, last_source());
      sources.add_to(largest);
    }
    const bool plain = share_largest(largest, room, thread, [&](int channel, T key, T value) {
      const cuda::RunningSum<T> around[2] = {room.outside(kBeforeMax, channel), room.outside(kAfterMax, channel)};
      const T max = fmax(exponent_of_key(key), fmax(around[0].max, around[1].max));
      for (const auto& sum : around) value = fmax(value, fabs(sum.num.sum * cuda::pow2(sum.max - max)));
      room.of_channel(kMax, channel) = max;
      room.of_channel(kValueExponent, channel) =
          fmin(fmax(cuda::exponent_of(value), kLeastValueExponent<T>), kValueExponentLimit<T>);
    });
    Around<T> around;
    if constexpr (kRows == kAllRows) {
      add_round(sources, plain, 0, around, sums, load);
    } else {
      BandTotals<T> totals(room);
      for (int begin = 0; begin < reach.rows(); begin += kRound<kRows>) {
        __syncthreads();
        form_weights(begin);
        sources.load(first_source() + begin, table.first, last_source());
        BandSums<T> own;
        add_round(sources, plain, begin, around, own, [] {});
        const bool last = begin + kRound<kRows> >= reach.rows();
        totals.add(own, begin == 0, last);
        if (last) sums = own;
      }
      load();
    }
    add_outside(around, sums);
    return plain;
  }
  /// K, K v and the weights of the round from row `begin` on again, after `sum`. All threads.
  __device__ __forceinline__ void set_round(const BandChannels<E>& channels, bool plain, int begin) const {
    __syncthreads();
    form_weights(begin);
    RoundSources<E, kRows> sources(channels, thread);
    sources.load(first_source() + begin, table.first, last_source());
    sources.template store_scaled<kRounded>(room, plain);
    __syncthreads();
  }
  template <typename Load>
  __device__ __forceinline__ void add_round(const RoundSources<E, kRows>& sources, bool plain, int begin,
                                            Around<T>& around, BandSums<T>& sums, const Load& load) const {
    sources.template store_scaled<kRounded>(room, plain);
    load();
    __syncthreads();
    sums.template add_round<kRows>(room, reach, thread, begin);
    const int tile = thread.tile * kTile;
    around.add_tiles(room, thread, begin, 0, tile);
    if (!table.causal) around.template add_groups<kRows>(room, thread, begin, tile + reach.span, reach.rows());
  }

  /// Sources outside have the weight of e^0.
  __device__ __forceinline__ void add_outside(const Around<T>& around, BandSums<T>& sums) const {
    T scale[kTile];
#pragma unroll
    for (int r = 0; r < kTile; ++r) scale[r] = cuda::pow2(-room.least[thread.tile * kTile + r]);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const int channel = thread.lane + i;
      const T max = room.of_channel(kMax, channel), value_scale = cuda::pow2(-room.of_channel(kValueExponent, channel));
      T den = around.first[i], num = around.second[i];
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        if (side == 1 && table.causal) continue;
        const cuda::RunningSum<T> sum = room.outside(side == 0 ? kBeforeMax : kAfterMax, channel);
        const T part = cuda::pow2(sum.max - max);
        den = fma(sum.den.sum, part, den);
        num = fma(sum.num.sum * value_scale, part, num);
      }
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        sums.first[r][i] = fma(den, scale[r], sums.first[r][i]);
        sums.second[r][i] = fma(num, scale[r], sums.second[r][i]);
      }
    }
  }

  /// 2^X of channel i of this thread.
  __device__ T value_scale(int i) const { return cuda::pow2(room.of_channel(kValueExponent, thread.lane + i)); }

  /// For every row r of the thread: visit.row<packs>(r, sums, loaded[r]...), where the sums of a channel may be wrong,
  /// and packs whether it is known that rows move in packs; then, for those, visit.one(r, channel of the thread, sums),
  /// done again pair by pair, if `redo`. visit.absent(r): past the end of the table. redone: unless null, counts those,
  /// and all.
  template <typename Visit, typename... Loaded>
  __device__ __forceinline__ void for_each(const BandSums<T>& sums, const BandChannels<E>& channels, bool redo,
                                           int64_t* redone, Visit& visit, const Loaded (&... loaded)[kTile]) const {
    const int rows = this->rows(), in_table = table.rows_from(row(0));
    T max[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) max[i] = room.of_channel(kMax, thread.lane + i);
    const auto sums_of = [&](int r, TargetSums<T>(&own)[kLanes]) {
      const T least = room.least[thread.tile * kTile + r];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) own[i] = {sums.first[r][i], sums.second[r][i], max[i] + least};
    };
    bool certified = true;
    if (rows == kTile && in_table == kTile && channels.packs) {
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        TargetSums<T> own[kLanes];
        sums_of(r, own);
#pragma unroll
        for (int i = 0; i < kLanes; ++i) certified = certified & own[i].certified();
        visit.template row<true>(r, own, loaded[r]...);
      }
      if (certified) {
        if (redone != nullptr) cuda::count(redone + 1, kTile * kLanes);
        return;
      }
    } else {
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        if (r >= rows) continue;
        if (r >= in_table) {
          visit.absent(r);
          continue;
        }
        TargetSums<T> own[kLanes];
        sums_of(r, own);
        visit.template row<false>(r, own, loaded[r]...);
      }
    }
    if (redone != nullptr) cuda::count(redone + 1, channels.count * rows);
    if (!redo) return;
    uint32_t exactly = 0;  // bit kLanes r + i
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      if (r >= min(rows, in_table)) continue;
      TargetSums<T> own[kLanes];
      sums_of(r, own);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (i < channels.count && !own[i].certified()) exactly |= 1u << (kLanes * r + i);
      }
    }
    if (redone != nullptr) cuda::count(redone, __popc(exactly));
    for (; exactly != 0; exactly &= exactly - 1) {
      const int bit = __ffs(exactly) - 1, r = bit / kLanes, i = bit % kLanes, channel = thread.lane + i;
      visit.one(r, i,
                exact_target(in, slot, channels.begin + i, row(r), room.outside(kBeforeMax, channel),
                             room.outside(kAfterMax, channel), 1 / value_scale(i)));
    }
  }
};

}  // namespace aft::ops::window

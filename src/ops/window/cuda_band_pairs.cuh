#pragma once

// The gradient of the band where a and b of a block's targets are at hand. Of target t and source s, over the channels
// of a head: dw = e^w sum_c e^k (v a[t] - b[t]). With K = e^k 2^-M and K v 2^-X of the sources, which lie in the room
// from the product before, and a 2^X and b in the scale of M and the target's W, nothing else is to be scaled.

#include <cstdint>

#include "ops/window/cuda_backward_band.cuh"
#include "ops/window/cuda_band_sums.cuh"

namespace aft::ops::window {

/// One pair over the channels [c, end) from p and n of everything.
template <typename E, typename T = Accumulate<E>>
__device__ __noinline__ T exact_pair(const WindowBackward<E>& p, const BandTable<E>& table, const WaveRows<T>& rows,
                                     const Sequence& one, int64_t sequence_slot, int64_t t, int64_t s, int64_t c,
                                     int64_t end) {
  const cuda::SplitExp<T> w = cuda::split_exp(table.row(t)[s - (t - table.left)]);
  T sum = 0;
  for (; c < end && w.p != 0; ++c) {
    const RowSources<E> sources(p.in, one, c);
    const T* at = rows.at(sequence_slot, t, c);
    const T a = at[0], b = at[rows.channels], exponent = at[2 * rows.channels];
    const T key = sources.key(s);
    const cuda::SplitExp<T> e = cuda::split_exp(key);
    if ((a == 0 && b == 0) || e.p == 0) continue;
    const T shift = fmin(e.n + w.n - exponent, kPairExponentLimit<T>);
    sum = fma(e.p * w.p * cuda::pow2(shift), fma(sources.value(s), a, -b), sum);
  }
  return sum;
}

/// A warp's pairs: a tile of 8 targets and 40 sources at a time, 2 targets and 5 sources a thread.
template <typename E>
struct BandPairs {
  using T = Accumulate<E>;
  static constexpr int kTargets = 2, kColumns = 5;
  static constexpr int kAcross = 32 / (kTile / kTargets);  // threads beside each other, of neighbouring sources
  static constexpr int kStep = 4;                          // channels that are loaded at once

  const WindowBackward<E>& p;
  const Slot& slot;
  const Reach& reach;
  const BandRoom<T> room;
  const BandTable<E>& table;
  const WaveRows<T>& rows;
  int64_t sequence_slot;
  T* pairs;  // of the slot and head, at its first target; rows of `stride`
  int64_t stride;
  int64_t c, end;  // of the channels at hand
  bool first;      // false: what earlier channels came to is there already
  bool fits;       // false: a pair is done one by one

  /// The sources of the round from row `begin` on, whose K and weights lie in the room. A warp for itself.
  template <int kRows>
  __device__ __forceinline__ void add_round(int begin) const {
    const BandThread thread;
    const int across = threadIdx.x % kAcross, r0 = threadIdx.x % 32 / kAcross * kTargets;
    const auto [from, to] = tile_rows<kRows>(reach, thread.tile, begin);
    const int columns = reach.columns(), here = static_cast<int>(slot.end - slot.begin);
    const int in_table = static_cast<int>(max(int64_t{0}, min(table.rows - slot.begin, int64_t{kPanel})));
    const RowRange sources(table.first, table.time, slot.begin - reach.left, reach.rows());
    const T* weights = room.weights + thread.tile * reach.weight_rows() * kTile + r0;
#pragma unroll 1
    for (int m0 = from; m0 < to; m0 += kColumns * kAcross) {
      T sum[kColumns][kTargets] = {};
      int at[kColumns];
#pragma unroll
      for (int q = 0; q < kColumns; ++q) at[q] = (min(m0 + q * kAcross + across, to - 1) - begin) * kPitch;
#pragma unroll 4
      for (int channel = 0; channel < kPanel; channel += kStep) {
        cuda::Pack<T, kStep> own_a[kTargets], own_b[kTargets];
#pragma unroll
        for (int r = 0; r < kTargets; ++r) load_target(thread.tile * kTile + r0 + r, channel, own_a[r], own_b[r]);
#pragma unroll
        for (int q = 0; q < kColumns; ++q) {
          const auto k = cuda::load<kStep>(room.first + at[q] + channel);
          const auto kv = cuda::load<kStep>(room.second + at[q] + channel);
#pragma unroll
          for (int r = 0; r < kTargets; ++r) {
#pragma unroll
            for (int i = 0; i < kStep; ++i) {
              sum[q][r] = fma(kv.lane[i], own_a[r].lane[i], fma(-k.lane[i], own_b[r].lane[i], sum[q][r]));
            }
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kTargets; ++r) {
        const int row = thread.tile * kTile + r0 + r;
        const bool has_row = row < in_table;
        if (row >= here) continue;
        T* to_row = pairs + row * stride - row;
#pragma unroll
        for (int q = 0; q < kColumns; ++q) {
          const int m = m0 + q * kAcross + across;
          if (m >= to || m < row || m - row >= columns) continue;
          T value = sum[q][r] * weights[(m - from) * kTile + r];
          if (!has_row || !sources.has(m)) {
            value = 0;
          } else if (!fits || !(fabs(value) < INFINITY)) {
            const int64_t t = slot.begin + row, s = t - reach.left + m - row;
            value = exact_pair(p, table, rows, slot.sequence, sequence_slot, t, s, c, end);
          }
          to_row[m] = first ? value : to_row[m] + value;
        }
      }
    }
  }

  /// a 2^X and b of target `row` of the slot, at kStep channels: from the block's memory, or where there is no room for
  /// it from where they were left.
  __device__ __forceinline__ void load_target(int row, int channel, cuda::Pack<T, kStep>& a,
                                              cuda::Pack<T, kStep>& b) const {
    if constexpr (sizeof(T) == 4) {
      const T* at = room.own + row * kPitch + channel;
      a = cuda::load<kStep>(at);
      b = cuda::load<kStep>(at + kPanel * kPitch);
    } else {
      const T* at = rows.at(sequence_slot, slot.begin + row, c + channel);
#pragma unroll
      for (int i = 0; i < kStep; ++i) {
        const bool there = c + channel + i < end && slot.begin + row < slot.end;
        a.lane[i] = there ? at[i] * cuda::pow2(room.of_channel(kValueExponent, channel + i)) : T(0);
        b.lane[i] = there ? at[rows.channels + i] : T(0);
      }
    }
  }
};

}  // namespace aft::ops::window

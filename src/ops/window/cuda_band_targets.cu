// The targets of the backward with a band: cuda_backward_band.cuh.

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/window/cuda_band_pairs.cuh"

namespace aft::ops::window {
namespace {

/// What a block's targets leave, from their sums.
template <typename E, typename BlockTargets>
struct LeaveTargets {
  using T = Accumulate<E>;

  const BlockTargets targets;
  const BandChannels<E> channels;
  const Targets<E, 1> rows;  // of this thread's first channel
  E* grad_q;                 // of its first row; null: not wanted
  T* to;                     // where the first row's a goes, then b and the exponent; null: not wanted
  int64_t stride;            // of `to`, a part
  bool pairs;                // whether a and b go to the block's memory for the gradient of the band
  bool redo;
  T least;                                   // the least W of the tile
  T scale[kLanes];                           // 2^X
  T a_sum[kLanes] = {}, b_sum[kLanes] = {};  // over rows whose sums hold, under M and `least`
  cuda::RunningSum<T> others[kLanes];        // b and a of those done again
  bool fits = true;                          // what lies in the block's memory is in range

  __device__ __forceinline__ cuda::TargetGrad<T> grad(T q, T g, const TargetSums<T>& sums) const {
    return cuda::grad_of_seen_target<E>(rows.gate, q, g, sums.num, sums.den);
  }
  template <bool kPacks>
  __device__ __forceinline__ void row(int r, const TargetSums<T> (&sums)[kLanes], const cuda::Pair<E>& query,
                                      const cuda::Pair<E>& gradient) {
    T q[kLanes], a[kLanes], b[kLanes], exponent[kLanes];
    const T shift = cuda::pow2(least - targets.room.least[targets.thread.tile * kTile + r]);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const bool counts = sums[i].certified() | (!redo & (sums[i].den != 0));  // what is done again leaves nothing here
      const cuda::TargetGrad<T> own = grad(query.at(i), gradient.at(i), sums[i]);
      a[i] = counts ? own.a : T(0);
      b[i] = counts ? own.b * scale[i] : T(0);
      q[i] = counts ? own.query * scale[i] : T(0);
      exponent[i] = sums[i].exponent;
      fits = fits & (counts | (i >= channels.count));
      a_sum[i] = fma(a[i], shift, a_sum[i]);
      b_sum[i] = fma(b[i], shift, b_sum[i]);
    }
    if (grad_q != nullptr) channels.template store<kPacks>(grad_q + r * rows.grad_q_stride, q);
    if (to != nullptr) {
      T* at = to + r * (kRowParts * stride);
      channels.template store<kPacks>(at, a);
      channels.template store<kPacks>(at + stride, b);
      channels.template store<kPacks>(at + 2 * stride, exponent);
    }
    if (pairs) put(r, a, b);
  }
  /// a 2^X and b of row r where the gradient of the band finds them.
  __device__ __forceinline__ void put(int r, const T (&a)[kLanes], const T (&b)[kLanes]) {
    T* at = targets.room.own + (targets.thread.tile * kTile + r) * kPitch + targets.thread.lane;
    cuda::Pack<T, kLanes> own_a, own_b;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      own_a.lane[i] = a[i] * scale[i];
      own_b.lane[i] = b[i];
      const bool in_range = fmax(fabs(own_a.lane[i]), fabs(own_b.lane[i])) <= kMostScaled<T>;
      fits = fits & (in_range | (i >= channels.count));
    }
    if constexpr (sizeof(T) == 4) {
      cuda::store(at, own_a);
      cuda::store(at + kPanel * kPitch, own_b);
    }
  }
  __device__ void one(int r, int i, const TargetSums<T>& sums) {
    const int64_t t = targets.row(r);
    const T q = rows.q == nullptr ? T(0) : T(cuda::widen(rows.q[t * rows.q_stride + i]));
    cuda::TargetGrad<T> own = {};
    if (sums.den != 0) own = grad(q, cuda::widen(rows.gy[t * rows.gy_stride + i]), sums);
    const T b = own.b * targets.value_scale(i);
    if (to != nullptr) {
      T* at = to + r * (kRowParts * stride) + i;
      at[0] = own.a;
      at[stride] = b;
      at[2 * stride] = sums.den == 0 ? kNoTarget<T> : sums.exponent;
    }
    if (grad_q != nullptr) {
      grad_q[r * rows.grad_q_stride + i] = cuda::narrow<E>(own.query * targets.value_scale(i));
    }
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane == i && sums.den != 0) others[lane].add(-sums.exponent, b, own.a);
    }
  }
  /// Past the end of the table a target asks nothing.
  __device__ void absent(int r) {
    T nothing[kLanes], exponent[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      nothing[i] = 0;
      exponent[i] = kNoTarget<T>;
    }
    if (grad_q != nullptr) channels.store(grad_q + r * rows.grad_q_stride, nothing);
    if (to != nullptr) {
      T* at = to + r * (kRowParts * stride);
      channels.store(at, nothing);
      channels.store(at + stride, nothing);
      channels.store(at + 2 * stride, exponent);
    }
    if (pairs) put(r, nothing, nothing);
  }
};

/// Blocks that a multiprocessor is to hold at once, at least.
template <typename E>
constexpr int kTargetBlocks = sizeof(E) == 8 ? 1 : 2;

template <typename E, int kRows>
__global__ void __launch_bounds__(kBandThreads, kTargetBlocks<E>)
    leave_targets(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                  const __grid_constant__ Reach reach, int64_t first_slot, const __grid_constant__ TargetsWanted wanted,
                  const __grid_constant__ BandBackwardMemory<E> memory,
                  const __grid_constant__ WaveRows<Accumulate<E>> rows, bool packs, bool redo, int64_t* redone) {
  using T = Accumulate<E>;
  using BlockTargets = BandTargets<E, kRows, false>;
  const WindowShape& s = p.in.shape;
  __shared__ BandPlace place;
  __shared__ BandTable<E> shared_table;
  BandUnit<E> unit(p.in, slots, first_slot, kBackwardStrips, place);
  if (!unit.valid) return;
  const Slot& slot = unit.slot;
  const bool own = unit.index >= wanted.first_slot, ends = own && wanted.ends, pairs = own && wanted.pairs;
  const BandRoom<T> room(reach, wanted.pairs, cuda::shared_memory<T>());
  const BlockTargets targets(p.in, unit, reach, room, shared_table);
  bool first_strip = true;
  do {
    if (threadIdx.x < kPanel) {
      const int64_t c = unit.channel(threadIdx.x);
      cuda::RunningSum<T> first[1], last[1];
      sums_before(first, p, slots, memory, unit.index, slot, c);
      if (!s.causal) sums_at(last, memory.after, slots, unit.index, slot, c);
      room.set_outside(kBeforeMax, threadIdx.x, first[0]);
      room.set_outside(kAfterMax, threadIdx.x, last[0]);
    }
    const BandChannels<E> channels(p.in, slot.sequence, unit.c, unit.end, packs);
    const Targets<E, 1> own_rows(p, slot.sequence, min(unit.c, unit.end - 1));
    cuda::Pair<E> queries[kTile], gradients[kTile];
    const int64_t t0 = targets.row(0);
    const int count = targets.rows();
    BandSums<T> sums;
    const bool plain = targets.sum(channels, sums, [&] {
      if (own_rows.q != nullptr) {
        channels.load_rows(own_rows.q + t0 * own_rows.q_stride, own_rows.q_stride, count, queries);
      }
      channels.load_rows(own_rows.gy + t0 * own_rows.gy_stride, own_rows.gy_stride, count, gradients);
    });
    const bool grad_q = ends && own_rows.grad_q != nullptr;
    LeaveTargets<E, BlockTargets> leave = {
        targets,
        channels,
        own_rows,
        grad_q ? own_rows.grad_q + t0 * own_rows.grad_q_stride : nullptr,
        rows.data == nullptr ? nullptr : rows.at(unit.index - slot.index, t0, channels.begin),
        rows.channels,
        pairs,
        redo,
        room.least[targets.thread.tile * kTile]};
#pragma unroll
    for (int r = 1; r < kTile; ++r) leave.least = fmin(leave.least, room.least[targets.thread.tile * kTile + r]);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      leave.scale[i] = targets.value_scale(i);
      leave.others[i].max = -INFINITY;
    }
    targets.for_each(sums, channels, redo, own ? redone : nullptr, leave, queries, gradients);
    if (pairs) {
      const bool fits = __all_sync(0xffffffffu, leave.fits) != 0;
      __syncwarp();
      const int64_t c = unit.c - unit.thread.lane, local = unit.index - wanted.first_slot;
      const int64_t group = (c - unit.head * (s.channels / s.heads)) / (kBackwardStrips * kPanel);
      const int64_t columns = reach.columns(), of_group = local * band_groups(s, kBackwardStrips) + group;
      const BandPairs<E> product = {p,
                                    slot,
                                    reach,
                                    room,
                                    targets.table,
                                    rows,
                                    unit.index - slot.index,
                                    memory.pairs + (of_group * kChunk * s.heads + unit.head) * columns,
                                    s.heads * columns,
                                    c,
                                    min(c + kPanel, unit.end),
                                    first_strip,
                                    fits};
      if constexpr (kRows == kAllRows) {
        product.template add_round<kRows>(0);
      } else {
        for (int begin = 0; begin < reach.rows(); begin += kRound<kRows>) {
          targets.set_round(channels, plain, begin);
          product.template add_round<kRows>(begin);
        }
      }
    }
    first_strip = false;
    __syncthreads();
    if (!ends) continue;
      // Tile by tile in order.
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      cuda::RunningSum<T>& sum = leave.others[i];
      if (leave.a_sum[i] != 0 || leave.b_sum[i] != 0) {
        sum.add(-(room.of_channel(kMax, unit.thread.lane + i) + leave.least), leave.b_sum[i], leave.a_sum[i]);
      }
      T* part = room.first + (unit.thread.tile * kPanel + unit.thread.lane + i) * kSumParts;
      part[0] = sum.max;
      part[1] = sum.den.sum;
      part[2] = sum.num.sum;
    }
    __syncthreads();
    const int64_t c = unit.c - unit.thread.lane + threadIdx.x;
    if (threadIdx.x < kPanel && c < unit.end) {
      cuda::RunningSum<T> slot_sum[1];
      slot_sum[0].max = -INFINITY;
      for (int tile = 0; tile < kPanelTiles; ++tile) {
        const T* part = room.first + (tile * kPanel + threadIdx.x) * kSumParts;
        slot_sum[0].add(part[0], part[1], part[2]);
      }
      const int64_t at = unit.index * kSumParts * slots.channels + c;
      store_sums(slot_sum, memory.later.chunks + at, slots.channels);
      if (!s.causal) store_sums(slot_sum, memory.earlier.chunks + at, slots.channels);
    }
    __syncthreads();
  } while (unit.next());
}

}  // namespace

template <typename E>
void run_band_targets(const BandBackward<E>& call, int64_t first, int64_t count, const TargetsWanted& wanted,
                      const WaveRows<Accumulate<E>>& rows) {
  const WindowShape& s = call.p.in.shape;
  with_rounds<Accumulate<E>>(s, [&]<int kRows>(const Reach& reach, std::integral_constant<int, kRows>) {
    cuda::launch_with_memory(call.cuda, kBackwardName, count * s.heads * band_groups(s, kBackwardStrips), kBandThreads,
                             BandRoom<Accumulate<E>>::bytes(reach, wanted.pairs), leave_targets<E, kRows>, call.p,
                             call.slots, reach, first, wanted, call.memory, rows, call.packs, redo_enabled(),
                             wanted.ends ? call.cuda.redone : nullptr);
  });
}

#define AFT_INSTANTIATE(E)                                                                          \
  template void run_band_targets<E>(const BandBackward<E>&, int64_t, int64_t, const TargetsWanted&, \
                                    const WaveRows<Accumulate<E>>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window

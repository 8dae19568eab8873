// The targets of the backward with a band: cuda_backward_band.cuh.

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/window/cuda_backward_band.cuh"

namespace aft::ops::window {
namespace {

/// What a block's targets leave, from their sums.
template <typename E>
struct LeaveTargets {
  using T = Accumulate<E>;

  const BandTargets<E>& targets;
  const BandSources<E>& channels;
  const Targets<E, 1>& rows;  // of this thread's first channel
  const WaveRows<T>& to;
  int64_t sequence_slot;
  bool redo;
  cuda::RunningSum<T> (&sum)[kLanes];  // without to.data: of b and a
  cuda::Pack<E, kLanes> queries[kTile], gradients[kTile];

  __device__ void begin() {
    const int64_t t = targets.unit.row(0);
    const int count = targets.unit.rows();
    if (rows.q != nullptr) channels.load_rows(rows.q + t * rows.q_stride, rows.q_stride, count, queries);
    channels.load_rows(rows.gy + t * rows.gy_stride, rows.gy_stride, count, gradients);
  }

  __device__ cuda::TargetGrad<T> grad(T q, T g, const TargetSums<T>& sums) const {
    if (sums.den == 0) return {};
    return cuda::grad_of_seen_target<E>(rows.gate, q, g, sums.num, sums.den);
  }
  __device__ void row(int r, const TargetSums<T> (&sums)[kLanes]) const {
    const int64_t t = targets.unit.row(r);
    T q[kLanes], a[kLanes], b[kLanes], exponent[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const cuda::TargetGrad<T> own = grad(cuda::widen(queries[r].lane[i]), cuda::widen(gradients[r].lane[i]), sums[i]);
      const T scale = targets.value_scale(i);
      a[i] = own.a;
      b[i] = own.b * scale;
      q[i] = own.query * scale;
      exponent[i] = sums[i].exponent;
      // What is done again leaves nothing here.
      const bool counts = sums[i].certified() || (!redo && sums[i].den != 0);
      if (to.data == nullptr && counts) sum[i].add(-exponent[i], b[i], a[i]);
    }
    if (to.data == nullptr) {
      if (rows.grad_q != nullptr) channels.store(rows.grad_q + t * rows.grad_q_stride, q);
    } else {
      T* at = to.at(sequence_slot, t, targets.unit.c);
      channels.store(at, a);
      channels.store(at + to.channels, b);
      channels.store(at + 2 * to.channels, exponent);
    }
  }
  __device__ void one(int r, int i, const TargetSums<T>& sums) const {
    const int64_t t = targets.unit.row(r);
    const T q = rows.q == nullptr ? T(0) : T(cuda::widen(rows.q[t * rows.q_stride + i]));
    const cuda::TargetGrad<T> own = grad(q, cuda::widen(rows.gy[t * rows.gy_stride + i]), sums);
    const T scale = targets.value_scale(i), b = own.b * scale;
    if (to.data != nullptr) {
      T* at = to.at(sequence_slot, t, targets.unit.c + i);
      at[0] = own.a;
      at[to.channels] = b;
      at[2 * to.channels] = sums.exponent;
      return;
    }
    if (rows.grad_q != nullptr) rows.grad_q[t * rows.grad_q_stride + i] = cuda::narrow<E>(own.query * scale);
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      if (lane == i && sums.den != 0) sum[lane].add(-sums.exponent, b, own.a);
    }
  }
  /// Past the end of the table a target asks nothing.
  __device__ void absent(int r) const {
    const TargetSums<T> nothing[kLanes] = {};
    row(r, nothing);
  }
};

template <typename E>
__global__ void __launch_bounds__(kBandThreads, kBandBlocks<E>)
    leave_targets(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                  const __grid_constant__ Reach reach, int64_t first_slot, int strips,
                  const __grid_constant__ BandBackwardMemory<E> memory,
                  const __grid_constant__ WaveRows<Accumulate<E>> rows, bool packs, bool redo, int64_t* redone) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  __shared__ BandPlace place;
  __shared__ BandTable<E> shared_table;
  BandUnit<E> unit(p.in, slots, first_slot, strips, place);
  if (!unit.valid) return;
  const Slot& slot = unit.slot;
  const BandRoom<T> room(reach, cuda::shared_memory<T>());
  const BandTargets<E> targets(p.in, unit, reach, room, shared_table);
  do {
    if (threadIdx.x < kPanel) {
      const int64_t c = unit.channel(threadIdx.x);
      cuda::RunningSum<T> first[1], last[1];
      sums_before(first, p, slots, memory, unit.index, slot, c);
      if (!s.causal) sums_at(last, memory.after, slots, unit.index, slot, c);
      room.set_outside(kBeforeMax, threadIdx.x, first[0]);
      room.set_outside(kAfterMax, threadIdx.x, last[0]);
    }
    const BandSources<E> channels(p.in, slot.sequence, unit.c, unit.end, packs);
    BandSums<T> sums;
    targets.sum(channels, sums);
    cuda::RunningSum<T> sum[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) sum[i].max = -INFINITY;
    const Targets<E, 1> own(p, slot.sequence, min(unit.c, unit.end - 1));
    LeaveTargets<E> leave = {targets, channels, own, rows, unit.index - slot.index, redo, sum, {}, {}};
    const int failed = targets.for_each(sums, channels.count, redo, leave);
    if (redone != nullptr) {
      cuda::count(redone, failed);
      cuda::count(redone + 1, channels.count * unit.rows());
    }
    __syncthreads();
    if (rows.data != nullptr) continue;
      // Tile by tile in order.
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      T* part = room.first + (unit.thread.tile * kPanel + unit.thread.lane + i) * kSumParts;
      part[0] = sum[i].max;
      part[1] = sum[i].den.sum;
      part[2] = sum[i].num.sum;
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
void run_band_targets(const BandBackward<E>& call, int64_t first, int64_t count, const WaveRows<Accumulate<E>>& rows) {
  const WindowShape& s = call.p.in.shape;
  const Reach reach(s);
  const int strips = rows.data == nullptr ? kStrips : 1;  // a wave has few slots
  cuda::launch_with_memory(call.cuda, kBackwardName, count * s.heads * band_groups(s, strips), kBandThreads,
                           BandRoom<Accumulate<E>>::bytes(reach), leave_targets<E>, call.p, call.slots, reach, first,
                           strips, call.memory, rows, call.packs, redo_enabled(),
                           rows.data == nullptr ? call.cuda.redone : nullptr);
}

#define AFT_INSTANTIATE(E) \
  template void run_band_targets<E>(const BandBackward<E>&, int64_t, int64_t, const WaveRows<Accumulate<E>>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window

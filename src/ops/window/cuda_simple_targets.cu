// The targets of the backward without a band: cuda_backward_simple.cuh.

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/cuda/shared.cuh"
#include "ops/common/for_each_element.h"
#include "ops/window/cuda_backward_simple.cuh"

namespace aft::ops::window {
namespace {

/// What a slot leaves in sum_targets.
template <typename E, int N, typename T>
__device__ void store_target_sums(const cuda::RunningSum<T> (&sum)[N], const cuda::RunningSum<T> (&later)[N],
                                  const BackwardMemory<E>& memory, int64_t index, const Slot& slot, int64_t c,
                                  int64_t d) {
  store_sums(later, memory.later.chunks + index * kSumParts * d + c, d);
  if (slot.end == slot.sequence.time) store_sums(sum, memory.ends + slot.sequence.index * kSumParts * d + c, d);
}

/// A slot at channel c, every row under its own maximum.
template <typename E>
__device__ __noinline__ void sum_targets_exactly(const WindowBackward<E>& p, const Slots& slots,
                                                 const BackwardMemory<E>& memory, int64_t index, const Slot& slot,
                                                 int64_t c) {
  using T = Accumulate<E>;
  const Columns<E, 1> columns(p.in, slot.sequence, c);
  const Targets<E, 1> targets(p, slot.sequence, c);
  cuda::RunningSum<T> sum[1], later[1];
  restore_sums(sum, p, slot, c);
  later[0].max = -INFINITY;
  for (int64_t t = slot.begin; t < slot.end; ++t) {
    const auto source = columns.read(t);
    sum[0].add_source(columns.key(source, 0), columns.value(source, 0));
    const auto grad = targets.grad_at(t, sum[0]);
    later[0].add(-sum[0].max, grad.b, grad.a);
    const T query[1] = {grad.query};
    targets.write_query(t, query);
  }
  store_target_sums(sum, later, memory, index, slot, c, slots.channels);
}

template <typename E, int N>
using TargetRows = cuda::Stream<E, N, 4, kTile, cuda::kBlock>;

/// Causal. A thread has N channels of a slot.
template <typename E, int N>
__global__ void __launch_bounds__(cuda::kBlock, kGradBlocks<E>)
    sum_targets(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                const __grid_constant__ BackwardMemory<E> memory) {
  using T = Accumulate<E>;
  const int64_t packs = slots.channels / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * packs || !find_slot(p.in, slots, i / packs, slot)) return;
  const int64_t c = i % packs * N;
  const Columns<E, N> columns(p.in, slot.sequence, c);
  const Targets<E, N> targets(p, slot.sequence, c);
  cuda::RunningSum<T> sum[N], later[N];
  restore_sums(sum, p, slot, c);
  bool fits[N];
#pragma unroll
  for (int lane = 0; lane < N; ++lane) {
    later[lane].max = -INFINITY;
    fits[lane] = true;
  }
  const TargetRows<E, N> stream(cuda::shared_memory<unsigned char>());
  const auto fetch = [&](int tile, int stage) {
    fetch_sources(stream, stage, columns, slot.begin + tile * kTile, slot.end);
    fetch_targets(stream, stage, targets, slot.begin + tile * kTile, slot.end);
  };
  const auto visit = [&](auto sigmoid, int index, int stage) {
    const int64_t t = slot.begin + index * kTile;
    const SourceTile<E, N> tile(stream, stage, columns.mask, t, slot.end);
    cuda::Pack<E, N> query[kTile];
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const SummedTile<T> rows = tile.add_to(sum[lane], lane);
      T a = 0, b = 0;
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        if (r >= tile.count) continue;
        const auto grad = grad_in_tile<E, sigmoid.value>(targets, fetched_row<E, N>(stream, stage, r), lane,
                                                         rows.num[r], rows.den[r]);
        a += grad.a;
        b += grad.b;
        query[r].lane[lane] = cuda::narrow<E>(grad.query);
      }
      fits[lane] = fits[lane] && rows.certified() && fabs(a) < INFINITY && fabs(b) < INFINITY;
      later[lane].add(-sum[lane].max, b, a);
    }
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      if (r < tile.count) targets.write_query(t + r, query[r]);
    }
  };
  with_gate<E>(targets.gate, [&](auto sigmoid) {
    cuda::stream_tiles(stream, tile_count(slot.begin, slot.end), fetch,
                       [&](int index, int stage) { visit(sigmoid, index, stage); });
  });
  store_target_sums(sum, later, memory, i / packs, slot, c, slots.channels);
#pragma unroll
  for (int lane = 0; lane < N; ++lane) {
    if (!fits[lane]) sum_targets_exactly(p, slots, memory, i / packs, slot, c + lane);
  }
}

/// The same not causal: every target has the sums of all sources, `ends`.
template <typename E, int N>
__global__ void sum_all_targets(WindowBackward<E> p, Slots slots, Accumulate<E>* later_sums,
                                const Accumulate<E>* ends) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, packs = d / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * packs || !find_slot(p.in, slots, i / packs, slot)) return;
  const int64_t c = i % packs * N;
  const Targets<E, N> targets(p, slot.sequence, c);
  cuda::RunningSum<T> sum[N], later[N];
  load_sums(sum, ends + slot.sequence.index * kSumParts * d + c, d);
#pragma unroll
  for (int lane = 0; lane < N; ++lane) later[lane].max = -INFINITY;
#pragma unroll 4
  for (int64_t t = slot.begin; t < slot.end; ++t) {
    const auto row = targets.read(t);
    T query[N];
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      cuda::TargetGrad<T> grad = {};
      if (sum[lane].den.sum != 0) grad = targets.grad(row, lane, sum[lane].num.sum, sum[lane].den.sum);
      later[lane].add(-sum[lane].max, grad.b, grad.a);
      query[lane] = grad.query;
    }
    targets.write_query(t, query);
  }
  store_sums(later, later_sums + i / packs * kSumParts * d + c, d);
}

}  // namespace

template <typename E>
void run_simple_targets(const SimpleBackward<E>& call) {
  with_pack<kPack<E>>(call.packs, [&]<int N>(std::integral_constant<int, N>) {
    const int64_t threads = call.slots.count * (call.slots.channels / N);
    if (call.p.in.shape.causal) {
      cuda::launch_with_memory(call.cuda, kBackwardName, (threads + cuda::kBlock - 1) / cuda::kBlock, cuda::kBlock,
                               TargetRows<E, N>::kBytes, sum_targets<E, N>, call.p, call.slots, call.memory);
    } else {
      cuda::launch(call.cuda, kBackwardName, threads, sum_all_targets<E, N>, call.p, call.slots,
                   call.memory.later.chunks, call.memory.ends);
    }
  });
}

#define AFT_INSTANTIATE(E) template void run_simple_targets<E>(const SimpleBackward<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window

// The sources of the backward without a band: cuda_backward_simple.cuh.

#include <algorithm>
#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/cuda/shared.cuh"
#include "ops/common/for_each_element.h"
#include "ops/window/cuda_backward_simple.cuh"

namespace aft::ops::window {
namespace {

/// dk and dv of a source, from K = e^k 2^-M and the sums of a and b under the same M.
template <typename T>
struct SourceGrad {
  T dk, dv;
};

template <typename T>
__device__ SourceGrad<T> grad_of_source(T k, T value, T a, T b) {
  if (a == 0 || k == 0) value = 0;  // one that no target sees may be infinite
  // Added to 0, so that what is absent has no sign. dk may be added up over a head next, in threads of one channel or
  // more: rounded before.
  return {cuda::multiply(k, fma(value, a, -b)) + 0, fma(k, a, T(0))};
}

constexpr int kStarts = kChunk / kTile - 1;
template <typename E>
constexpr int kStrip = sizeof(E) == 8 ? 128 : 256;  // channels of a block, whatever a thread has of them

/// A thread's room in shared memory for the sums of N channels before every tile of a chunk but the first.
template <typename T, int N>
struct TileStarts {
  T* own;
  int stride;

  __device__ T& at(int tile, int part, int lane) const {
    return own[((tile - 1) * kSumParts * N + part * N + lane) * stride];
  }
  __device__ void keep(int tile, int lane, const cuda::RunningSum<T>& sum) const {
    at(tile, 0, lane) = sum.max;
    at(tile, 1, lane) = sum.den.sum;
    at(tile, 2, lane) = sum.num.sum;
  }
  __device__ cuda::RunningSum<T> operator()(int tile, int lane) const {
    return {at(tile, 0, lane), {at(tile, 1, lane), T(0)}, {at(tile, 2, lane), T(0)}};
  }
};

/// A thread's shared memory.
template <typename E, int N>
struct Room {
  using T = Accumulate<E>;
  static constexpr int kThreads = kStrip<E> / N;
  using Rows = cuda::Stream<E, N, 4, kTile, kThreads>;
  static constexpr int64_t kBytes = Rows::kBytes + int64_t{kStarts} * kSumParts * N * kThreads * sizeof(T);

  Rows stream;
  TileStarts<T, N> starts;

  __device__ explicit Room(unsigned char* memory)
      : stream(memory), starts{reinterpret_cast<T*>(memory + Rows::kBytes) + threadIdx.x, kThreads} {}
};

/// The sums at a row's beginning, and those of the targets after it.
template <typename T>
struct BothSums {
  cuda::RunningSum<T> sum, later;
};

/// The gradients of the rows [from, to), a tile or less, of channel c, every row under its own maximum. `at`: before
/// the first row, and after the last; returns what is after the first row's predecessor.
template <typename E>
__device__ __noinline__ cuda::RunningSum<Accumulate<E>> exact_grads(const WindowBackward<E>& p, const Sequence& one,
                                                                    int64_t c, int64_t from, int64_t to,
                                                                    BothSums<Accumulate<E>> at,
                                                                    SourceGrad<Accumulate<E>>* grads) {
  using T = Accumulate<E>;
  const Columns<E, 1> columns(p.in, one, c);
  const Targets<E, 1> targets(p, one, c);
  const int count = static_cast<int>(to - from);
  T a[kTile], b[kTile], max[kTile];
#pragma unroll 1
  for (int r = 0; r < count; ++r) {
    const auto source = columns.read(from + r);
    at.sum.add_source(columns.key(source, 0), columns.value(source, 0));
    const auto grad = targets.grad_at(from + r, at.sum);
    a[r] = grad.a;
    b[r] = grad.b;
    max[r] = at.sum.max;
  }
#pragma unroll 1
  for (int r = count - 1; r >= 0; --r) {
    if (-max[r] != at.later.max) at.later.rescale(-max[r]);
    at.later.den.add(b[r], T(1));
    at.later.num.add(a[r], T(1));
    const auto source = columns.read(from + r);
    const T key = columns.key(source, 0);
    const cuda::SplitExp<T> e = cuda::split_exp(key);
    grads[r] = grad_of_source(e.p * cuda::pow2(e.n - max[r]), cuda::is_absent(key) ? T(0) : columns.value(source, 0),
                              at.later.num.sum, at.later.den.sum);
    if (!source.seen) grads[r] = {};
  }
  return at.later;
}

/// Gradients of keys that every channel has for itself: as they come.
template <typename E, int N>
struct OwnKeys {
  E* grad_k;
  int64_t stride;

  __device__ void add(int64_t t, bool active, const Accumulate<E> (&dk)[N]) const {
    if (active) cuda::store<N>(grad_k + t * stride, dk);
  }
};

/// Of the key of a head: summed over the channels of a block, which every row is to call with all threads.
template <typename T, int N>
struct HeadKey {
  T* sums;  // of each row of the slot
  T* room;
  int64_t begin;

  __device__ void add(int64_t t, bool active, const T (&dk)[N]) const {
    T sum[N];
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = dk[i];
#pragma unroll
    for (int step = 1; step < N; step *= 2) {
#pragma unroll
      for (int i = 0; i + step < N; i += 2 * step) sum[i] += sum[i + step];
    }
    const T all = sum_of_block(active ? sum[0] : T(0), room);
    if (threadIdx.x == 0) sums[t - begin] += all;
  }
};

/// Fills `starts`.
template <typename E, int N, typename S>
__device__ void sum_tiles(const WindowBackward<E>& p, const Slot& slot, int64_t c, const S& stream,
                          const TileStarts<Accumulate<E>, N>& starts) {
  const Columns<E, N> columns(p.in, slot.sequence, c);
  cuda::RunningSum<Accumulate<E>> sum[N];
  restore_sums(sum, p, slot, c);
  cuda::stream_tiles(
      stream, tile_count(slot.begin, slot.end) - 1,
      [&](int i, int stage) { fetch_sources(stream, stage, columns, slot.begin + i * kTile, slot.end); },
      [&](int i, int stage) {
        const SourceTile<E, N> tile(stream, stage, columns.mask, slot.begin + i * kTile, slot.end);
#pragma unroll
        for (int lane = 0; lane < N; ++lane) {
          tile.add_to(sum[lane], lane);
          starts.keep(i + 1, lane, sum[lane]);
        }
      });
}

/// The gradients of a slot's sources at N channels, causal, tile by tile from the last, every row under its own
/// maximum.
template <typename E, int N, typename Keys>
__device__ __noinline__ void write_sources_exactly(const WindowBackward<E>& p, const Slots& slots,
                                                   const BackwardMemory<E>& memory, int64_t index, const Slot& slot,
                                                   int64_t c, bool active, const Keys& keys) {
  using T = Accumulate<E>;
  const int tiles = tile_count(slot.begin, slot.end);
  E* grad_v = column(p.grad_v, slot.sequence, c);
  cuda::RunningSum<T> starts[N][kChunk / kTile], later[N], first[N];
  restore_sums(first, p, slot, c);
  sums_at(later, memory.later, slots, index, slot, c);
#pragma unroll 1
  for (int lane = 0; lane < N; ++lane) {
    const Columns<E, 1> columns(p.in, slot.sequence, c + lane);
    starts[lane][0] = first[lane];
#pragma unroll 1
    for (int i = 1; i < tiles; ++i) {
      cuda::RunningSum<T> sum = starts[lane][i - 1];
      for (int64_t t = slot.begin + (i - 1) * kTile, end = t + kTile; t < end; ++t) {
        const auto source = columns.read(t);
        sum.add_source(columns.key(source, 0), columns.value(source, 0));
      }
      starts[lane][i] = sum;
    }
  }
#pragma unroll 1
  for (int i = tiles - 1; i >= 0; --i) {
    const int64_t t = slot.begin + i * kTile, end = min(t + kTile, slot.end);
    SourceGrad<T> grads[N][kTile];
#pragma unroll 1
    for (int lane = 0; lane < N; ++lane) {
      const BothSums<T> at = {starts[lane][i], later[lane]};
      later[lane] = exact_grads(p, slot.sequence, c + lane, t, end, at, grads[lane]);
    }
#pragma unroll 1
    for (int64_t row = end - 1; row >= t; --row) {
      T dk[N], dv[N];
#pragma unroll
      for (int lane = 0; lane < N; ++lane) {
        dk[lane] = grads[lane][row - t].dk;
        dv[lane] = grads[lane][row - t].dv;
      }
      if (active) cuda::store<N>(grad_v + row * p.grad_v.time_stride, dv);
      keys.add(row, active, dk);
    }
  }
}

/// The same with the rows of a tile under one maximum. fits: false where a channel is to be done exactly.
template <typename E, int N>
__device__ void write_sources(const WindowBackward<E>& p, const Slots& slots, const BackwardMemory<E>& memory,
                              int64_t index, const Slot& slot, int64_t c, const Room<E, N>& room, bool (&fits)[N]) {
  using T = Accumulate<E>;
  const Columns<E, N> columns(p.in, slot.sequence, c);
  const Targets<E, N> targets(p, slot.sequence, c);
  E* grad_k = column(p.grad_k, slot.sequence, c);
  E* grad_v = column(p.grad_v, slot.sequence, c);
  sum_tiles(p, slot, c, room.stream, room.starts);
  cuda::RunningSum<T> later[N];
  sums_at(later, memory.later, slots, index, slot, c);
#pragma unroll
  for (int lane = 0; lane < N; ++lane) fits[lane] = true;
  const auto& stream = room.stream;
  const int tiles = tile_count(slot.begin, slot.end);
  const auto fetch = [&](int i, int stage) {
    const int64_t t = slot.begin + (tiles - 1 - i) * kTile;
    fetch_sources(stream, stage, columns, t, slot.end);
    fetch_targets(stream, stage, targets, t, slot.end);
  };
  const auto visit = [&](auto sigmoid, int i, int stage) {
    const int index_of_tile = tiles - 1 - i;
    cuda::RunningSum<T> sum[N];
    if (index_of_tile == 0) {
      restore_sums(sum, p, slot, c);
    } else {
#pragma unroll
      for (int lane = 0; lane < N; ++lane) sum[lane] = room.starts(index_of_tile, lane);
    }
    const int64_t t = slot.begin + index_of_tile * kTile;
    SourceTile<E, N> tile(stream, stage, columns.mask, t, slot.end);
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const SummedTile<T> rows = tile.add_to(sum[lane], lane);
      T a[kTile], b[kTile], a_sum = 0, b_sum = 0;
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        cuda::TargetGrad<T> grad = {};
        if (r < tile.count) {
          grad = grad_in_tile<E, sigmoid.value>(targets, fetched_row<E, N>(stream, stage, r), lane, rows.num[r],
                                                rows.den[r]);
        }
        a[r] = grad.a;
        b[r] = grad.b;
      }
      later[lane].rescale(-sum[lane].max);
#pragma unroll
      for (int r = kTile - 1; r >= 0; --r) {
        a_sum += a[r];
        b_sum += b[r];
        const SourceGrad<T> grad = grad_of_source(rows.weight[r], tile.value(r, lane), later[lane].num.sum + a_sum,
                                                  later[lane].den.sum + b_sum);
        tile.k[r].lane[lane] = cuda::narrow<E>(grad.dk);
        tile.v[r].lane[lane] = cuda::narrow<E>(grad.dv);
      }
      fits[lane] = fits[lane] && rows.certified() && fabs(a_sum) < INFINITY && fabs(b_sum) < INFINITY;
      later[lane].num.add(a_sum, T(1));
      later[lane].den.add(b_sum, T(1));
    }
    E* dk = grad_k + t * p.grad_k.time_stride;
    E* dv = grad_v + t * p.grad_v.time_stride;
#pragma unroll
    for (int r = 0; r < kTile; ++r, dk += p.grad_k.time_stride, dv += p.grad_v.time_stride) {
      if (r >= tile.count) continue;
      cuda::store(dk, tile.k[r]);
      cuda::store(dv, tile.v[r]);
    }
  };
  with_gate<E>(targets.gate, [&](auto sigmoid) {
    cuda::stream_tiles(stream, tiles, fetch, [&](int i, int stage) { visit(sigmoid, i, stage); });
  });
}

/// The same not causal: K under the maximum of all sources, with the sums over all targets.
template <typename E, int N, typename Keys>
__device__ void write_sources_of_all(const WindowBackward<E>& p, const Slots& slots, const BackwardMemory<E>& memory,
                                     const Slot& slot, int64_t c, bool active, const Keys& keys) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, sums = slot.sequence.index * kSumParts * d + c;
  const Columns<E, N> columns(p.in, slot.sequence, c);
  E* grad_v = column(p.grad_v, slot.sequence, c);
  cuda::RunningSum<T> all[N], targets[N];
  load_sums(all, memory.ends + sums, d);
  load_sums(targets, memory.at_start + sums, d);
#pragma unroll 4
  for (int64_t t = slot.begin; t < slot.end; ++t) {
    const auto source = columns.read(t);
    T dk[N], dv[N];
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const T key = columns.key(source, lane);
      const cuda::SplitExp<T> e = cuda::split_exp(key);
      const SourceGrad<T> grad = grad_of_source(e.p * cuda::pow2(e.n - all[lane].max),
                                                cuda::is_absent(key) ? T(0) : columns.value(source, lane),
                                                targets[lane].num.sum, targets[lane].den.sum);
      dk[lane] = source.seen ? grad.dk : T(0);
      dv[lane] = source.seen ? grad.dv : T(0);
    }
    if (active) cuda::store<N>(grad_v + t * p.grad_v.time_stride, dv);
    keys.add(t, active, dk);
  }
}

// A thread has N channels of a slot, each with a key of its own.
template <typename E, int N>
__global__ void __launch_bounds__(kStrip<E> / N, N == kPack<E> ? kGradBlocks<E> : 1)
    write_grads(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                const __grid_constant__ BackwardMemory<E> memory) {
  const int64_t packs = slots.channels / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * packs || !find_slot(p.in, slots, i / packs, slot)) return;
  const int64_t c = i % packs * N;
  bool fits[N];
  write_sources<E, N>(p, slots, memory, i / packs, slot, c, Room<E, N>(cuda::shared_memory<unsigned char>()), fits);
#pragma unroll
  for (int lane = 0; lane < N; ++lane) {
    if (fits[lane]) continue;
    const OwnKeys<E, 1> keys = {column(p.grad_k, slot.sequence, c + lane), p.grad_k.time_stride};
    write_sources_exactly<E, 1>(p, slots, memory, i / packs, slot, c + lane, true, keys);
  }
}

// The same not causal.
template <typename E, int N>
__global__ void __launch_bounds__(kStrip<E> / N)
    write_grads_of_all(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                       const __grid_constant__ BackwardMemory<E> memory) {
  const int64_t packs = slots.channels / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * packs || !find_slot(p.in, slots, i / packs, slot)) return;
  const int64_t c = i % packs * N;
  const OwnKeys<E, N> keys = {column(p.grad_k, slot.sequence, c), p.grad_k.time_stride};
  write_sources_of_all<E, N>(p, slots, memory, slot, c, true, keys);
}

// A key a head: a block has one head of a slot, whose channels it walks in strips; dk is summed over them in order.
template <typename E, int N, bool causal>
__global__ void __launch_bounds__(kStrip<E> / N)
    write_grads_of_heads(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                         const __grid_constant__ BackwardMemory<E> memory) {
  using T = Accumulate<E>;
  __shared__ T key_sums[kChunk], warp_sums[kStrip<E> / N / 32];
  const int64_t heads = p.in.shape.heads, width = slots.channels / heads, head = blockIdx.x % heads;
  const int64_t index = blockIdx.x / heads;
  Slot slot;
  if (!find_slot(p.in, slots, index, slot)) return;
  const HeadKey<T, N> keys = {key_sums, warp_sums, slot.begin};
  for (int64_t t = threadIdx.x; t < slot.end - slot.begin; t += blockDim.x) key_sums[t] = 0;
  for (int64_t offset = 0; offset < width; offset += int64_t{blockDim.x} * N) {
    const int64_t own = offset + int64_t{threadIdx.x} * N;
    const bool active = own < width;
    const int64_t c = head * width + (active ? own : 0);
    if constexpr (causal) {
      write_sources_exactly<E, N>(p, slots, memory, index, slot, c, active, keys);
    } else {
      write_sources_of_all<E, N>(p, slots, memory, slot, c, active, keys);
    }
  }
  __syncthreads();
  E* grad_k = column(p.grad_k, slot.sequence, head);
  for (int64_t t = slot.begin + threadIdx.x; t < slot.end; t += blockDim.x) {
    grad_k[t * p.grad_k.time_stride] = cuda::narrow<E>(key_sums[t - slot.begin]);
  }
}

template <typename E, int N, bool causal>
void run(const SimpleBackward<E>& call) {
  const WindowShape& s = call.p.in.shape;
  constexpr int kBlock = kStrip<E> / N;
  const int64_t blocks = (call.slots.count * (s.channels / N) + kBlock - 1) / kBlock;
  if (s.key_channels != s.channels) {
    const int64_t block = std::min<int64_t>(kBlock, (s.channels / s.heads / N + 31) / 32 * 32);
    cuda::launch_blocks(call.cuda, kBackwardName, call.slots.count * s.heads, block, write_grads_of_heads<E, N, causal>,
                        call.p, call.slots, call.memory);
  } else if constexpr (causal) {
    cuda::launch_with_memory(call.cuda, kBackwardName, blocks, kBlock, Room<E, N>::kBytes, write_grads<E, N>, call.p,
                             call.slots, call.memory);
  } else {
    cuda::launch_blocks(call.cuda, kBackwardName, blocks, kBlock, write_grads_of_all<E, N>, call.p, call.slots,
                        call.memory);
  }
}

}  // namespace

template <typename E>
void run_simple_sources(const SimpleBackward<E>& call) {
  with_pack<kPack<E>>(call.packs, [&]<int N>(std::integral_constant<int, N>) {
    call.p.in.shape.causal ? run<E, N, true>(call) : run<E, N, false>(call);
  });
}

#define AFT_INSTANTIATE(E) template void run_simple_sources<E>(const SimpleBackward<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window

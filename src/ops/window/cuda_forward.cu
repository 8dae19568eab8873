// Forward and prefill of the windowed operator on a CUDA device. Cost and layout: README.md.

#include <cstdint>
#include <limits>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/window/check.h"
#include "ops/window/cuda_band_sums.cuh"
#include "ops/window/cuda_checks.h"

namespace aft::ops {
namespace window {
namespace {

/// Before a chunk, where the backward begins again: boundaries between chunks.
template <int N, typename T>
__device__ void save_sums(const cuda::RunningSum<T> (&sum)[N], T* saved, const Slot& slot, int64_t c, int64_t d) {
  if (saved == nullptr || slot.index == 0) return;
  store_sums(sum, saved + (slot.sequence.boundary + slot.index - 1) * kSumParts * d + c, d);
}

/// A slot at channel c, every row under its own maximum.
template <typename E>
__device__ __noinline__ void write_rows_exactly(const WindowForward<E>& p, const Slots& slots,
                                                const ChunkSums<Accumulate<E>>& before, int64_t index, const Slot& slot,
                                                int64_t c) {
  using T = Accumulate<E>;
  const Columns<E, 1> columns(p.in, slot.sequence, c);
  const Gate gate = p.in.shape.gate;
  const E* q = gate == Gate::kNone ? nullptr : column(p.in.q, slot.sequence, c);
  E* y = column(p.y, slot.sequence, c);
  cuda::RunningSum<Accumulate<E>> sum[1];
  sums_at(sum, before, slots, index, slot, c);
  for (int64_t t = slot.begin; t < slot.end; ++t) {
    const auto source = columns.read(t);
    sum[0].add_source(columns.key(source, 0), columns.value(source, 0));
    const Accumulate<E> query = q == nullptr ? 0 : cuda::widen(q[t * p.in.q.time_stride]);
    const T num = sum[0].num.sum, den = sum[0].den.sum;
    y[t * p.y.time_stride] = cuda::narrow<E>(den == 0 ? T(0) : cuda::gated_ratio_for<E>(gate, query, num, den));
  }
}

// Without a band. A thread has N channels of a slot, whose tiles it does in order. A channel with a tile that is not
// certified is done again.
template <typename E, int N>
__global__ void __launch_bounds__(cuda::kBlock, kBlocks<E>)
    write_rows(const __grid_constant__ WindowForward<E> p, const __grid_constant__ Slots slots,
               const __grid_constant__ ChunkSums<Accumulate<E>> before) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, packs = d / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * packs || !find_slot(p.in, slots, i / packs, slot)) return;
  const int64_t c = i % packs * N;
  const Gate gate = p.in.shape.gate;
  const Columns<E, N> columns(p.in, slot.sequence, c);
  const E* q = gate == Gate::kNone ? nullptr : column(p.in.q, slot.sequence, c);
  E* y = column(p.y, slot.sequence, c);
  cuda::RunningSum<T> sum[N];
  sums_at(sum, before, slots, i / packs, slot, c);
  save_sums(sum, p.saved, slot, c, d);
  bool certified[N];
#pragma unroll
  for (int lane = 0; lane < N; ++lane) certified[lane] = true;
  using Rows = cuda::Stream<E, N, 3, kTile, cuda::kBlock>;
  alignas(16) __shared__ unsigned char room[Rows::kBytes];
  const Rows rows(room);
  const auto fetch = [&](int i, int stage) {
    const int64_t t = slot.begin + i * kTile;
    fetch_sources(rows, stage, columns, t, slot.end);
    const int count = static_cast<int>(min(int64_t{kTile}, slot.end - t));
    if (q != nullptr) rows.fetch(stage, 2, q + t * p.in.q.time_stride, p.in.q.time_stride, count);
  };
  cuda::stream_tiles(rows, tile_count(slot.begin, slot.end), fetch, [&](int i, int stage) {
    const int64_t t = slot.begin + i * kTile;
    const SourceTile<E, N> tile(rows, stage, columns.mask, t, slot.end);
    cuda::Pack<E, N> out[kTile];
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const SummedTile<T> sums = tile.add_to(sum[lane], lane);
      certified[lane] = certified[lane] && sums.certified();
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        const T query = cuda::widen(rows.at(stage, 2, r).lane[lane]);  // anything without a gate
        out[r].lane[lane] = cuda::narrow<E>(cuda::gated_ratio_for<E>(gate, query, sums.num[r], sums.den[r]));
      }
    }
    E* to = y + t * p.y.time_stride;
#pragma unroll
    for (int r = 0; r < kTile; ++r, to += p.y.time_stride) {
      if (r < tile.count) cuda::store(to, out[r]);
    }
  });
#pragma unroll
  for (int lane = 0; lane < N; ++lane) {
    if (!certified[lane]) write_rows_exactly(p, slots, before, i / packs, slot, c + lane);
  }
}

// Not causal, every row has the sums of all sources.
template <typename E, int N>
__global__ void write_same_rows(WindowForward<E> p, Slots slots, const Accumulate<E>* ends) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, packs = d / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * packs || !find_slot(p.in, slots, i / packs, slot)) return;
  const int64_t c = i % packs * N;
  const Gate gate = p.in.shape.gate;
  const E* q = gate == Gate::kNone ? nullptr : column(p.in.q, slot.sequence, c);
  E* y = column(p.y, slot.sequence, c);
  cuda::RunningSum<T> sum[N];
  load_sums(sum, ends + slot.sequence.index * kSumParts * d + c, d);
#pragma unroll 4
  for (int64_t t = slot.begin; t < slot.end; ++t) {
    cuda::Pack<E, N> query = {}, out;
    if (q != nullptr) query = cuda::load<N>(q + t * p.in.q.time_stride);
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const T num = sum[lane].num.sum, den = sum[lane].den.sum, own = cuda::widen(query.lane[lane]);
      out.lane[lane] = cuda::narrow<E>(den == 0 ? T(0) : cuda::gated_ratio_for<E>(gate, own, num, den));
    }
    cuda::store(y + t * p.y.time_stride, out);
  }
}

/// Rows of y from the sums of a block's targets.
template <typename E, typename Targets>
struct WriteTargets {
  using T = Accumulate<E>;

  const Targets targets;
  const BandChannels<E> channels;
  Gate gate;
  E* y;
  int64_t y_stride;
  __device__ __forceinline__ T output(T query, const TargetSums<T>& sums, int i) const {
    const T ratio = cuda::gated_ratio_for<E>(gate, query, sums.num, sums.den) * targets.value_scale(i);
    return sums.den == 0 ? T(0) : ratio;
  }
  template <bool kPacks>
  __device__ __forceinline__ void row(int r, const TargetSums<T> (&sums)[kLanes], const cuda::Pair<E>& query) const {
    T out[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) out[i] = output(query.at(i), sums[i], i);
    channels.template store<kPacks>(y + targets.row(r) * y_stride, out);
  }
  __device__ void one(int r, int i, const TargetSums<T>& sums) const {
    const int64_t t = targets.row(r);
    const WindowInputs<E>& in = targets.in;
    T query = 0;
    if (gate != Gate::kNone) {
      query = cuda::widen(column(in.q, targets.slot.sequence, channels.begin + i)[t * in.q.time_stride]);
    }
    y[t * y_stride + i] = cuda::narrow<E>(output(query, sums, i));
  }
  __device__ void absent(int r) const {
    const T nothing[kLanes] = {NAN, NAN};
    channels.store(y + targets.row(r) * y_stride, nothing);
  }
};

/// Strips of channels of a block, and blocks that a multiprocessor is to hold at once, at least.
constexpr int kForwardStrips = 4;
template <typename E, int kRows>
constexpr int kForwardBlocks = sizeof(E) == 8 || (sizeof(E) == 4 && kRows == kTile) ? 1 : 2;

template <typename E, int kRows>
__global__ void __launch_bounds__(kBandThreads, (kForwardBlocks<E, kRows>))
    write_band_rows(const __grid_constant__ WindowForward<E> p, const __grid_constant__ Slots slots,
                    const __grid_constant__ Reach reach, const __grid_constant__ ForwardMemory<E> memory, bool packs,
                    bool redo, int64_t* redone) {
  using T = Accumulate<E>;
  using Targets = BandTargets<E, kRows, sizeof(E) == 2>;
  const WindowShape& s = p.in.shape;
  __shared__ BandPlace place;
  __shared__ BandTable<E> shared_table;
  BandUnit<E> unit(p.in, slots, 0, kForwardStrips, place);
  if (!unit.valid) return;
  const Slot& slot = unit.slot;
  const BandRoom<T> room(reach, false, cuda::shared_memory<T>());
  const Targets targets(p.in, unit, reach, room, shared_table);
  do {
    if (threadIdx.x < kPanel) {
      const int64_t c = unit.channel(threadIdx.x);
      cuda::RunningSum<T> first[1], last[1];
      sums_at(first, memory.before, slots, unit.index, slot, c);
      if (!s.causal) sums_at(last, memory.after, slots, unit.index, slot, c);
      save_sums(first, p.saved, slot, c, s.channels);
      room.set_outside(kBeforeMax, threadIdx.x, first[0]);
      room.set_outside(kAfterMax, threadIdx.x, last[0]);
    }
    const BandChannels<E> channels(p.in, slot.sequence, unit.c, unit.end, packs);
    cuda::Pair<E> queries[kTile];
    BandSums<T> sums;
    targets.sum(channels, sums, [&] {
      if (s.gate == Gate::kNone) return;
      const E* first = column(p.in.q, slot.sequence, unit.c) + targets.row(0) * p.in.q.time_stride;
      channels.load_rows(first, p.in.q.time_stride, targets.rows(), queries);
    });
    const WriteTargets<E, Targets> write = {targets, channels, s.gate, column(p.y, slot.sequence, unit.c),
                                            p.y.time_stride};
    targets.for_each(sums, channels, redo, redone, write, queries);
    __syncthreads();
  } while (unit.next());
}

// After all that read the initial state, which this may be. One thread a channel of a sequence.
template <typename E>
__global__ void write_state(WindowForward<E> p, Slots slots, const Accumulate<E>* ends) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t d = s.channels, i = cuda::thread_index();
  if (i >= s.batch * d) return;
  const int64_t b = i / d, c = i % d;
  const T* end = ends + b * kSumParts * d + c;
  const State<T>& out = p.final_state;
  out.num[i] = end[2 * d];
  if (s.key_channels != d && c % (d / s.heads) != 0) return;  // the first channel of a head writes what all share
  const int64_t key = b * s.key_channels + key_of(s, c);
  out.max[key] = end[0] > kExponentFloor<T> ? end[0] : std::numeric_limits<T>::lowest();
  out.den[key] = end[d];
}

// The last `left` keys and values. Where the ring is that of the initial state, its own sources lie in their slots
// already. One thread a channel of a slot of the ring.
template <typename E>
__global__ void write_ring(WindowForward<E> p, Slots slots) {
  const WindowShape& s = p.in.shape;
  const State<Accumulate<E>>& out = p.final_state;
  const int64_t i = cuda::thread_index(), d = s.channels;
  if (i >= s.batch * s.left * d) return;
  const int64_t c = i % d;
  const Sequence one = sequence_at(p.in, slots, i / d / s.left);
  const RowSources<E> sources(p.in, one, c);
  const int64_t source = one.time - s.left + i / d % s.left;
  if (source < sources.first || (source < 0 && out.ring_key == p.in.initial_state.ring_key)) return;
  const int64_t slot = one.index * s.left + sources.ring.slot(source);
  const auto key = sources.key(source);
  out.ring_value[slot * d + c] =
      cuda::is_absent(key) && source >= 0 && sources.own.mask != nullptr && !sources.own.mask[source]
          ? 0
          : sources.value(source);
  if (s.key_channels == d || c % (d / s.heads) == 0) out.ring_key[slot * s.key_channels + key_of(s, c)] = key;
}

template <typename E>
__global__ void write_position(WindowInputs<E> in, int64_t* to) {
  const int64_t b = cuda::thread_index();
  if (b >= in.shape.batch) return;
  const int64_t time = in.shape.packed ? in.cu_seqlens[b + 1] - in.cu_seqlens[b] : in.shape.time;
  to[b] = time + (in.initial_state.position == nullptr ? 0 : in.initial_state.position[b]);
}

constexpr const char* kName = "window_forward";

template <typename E>
void forward(const WindowForward<E>& p, const Slots& slots, const ForwardMemory<E>& memory, const Cuda& cuda) {
  const WindowShape& s = p.in.shape;
  const bool packs = moves_in_packs<kPack<E>>(s, p.in.v) && moves_in_packs<kPack<E>>(s, p.y) &&
                     (s.key_channels != s.channels || moves_in_packs<kPack<E>>(s, p.in.k)) &&
                     (s.gate == Gate::kNone || moves_in_packs<kPack<E>>(s, p.in.q));
  with_pack<kPack<E>>(packs, [&]<int N>(std::integral_constant<int, N>) {
    const int64_t threads = slots.count * (s.channels / N);
    const auto sum = [&](const ChunkSums<Accumulate<E>>& sums, int64_t shift, bool from_the_right,
                         Accumulate<E>* ends) {
      cuda::launch(cuda, kName, threads, sum_chunks<E, N>, p.in, slots, shift, sums.chunks);
      fold_chunks(cuda, kName, p.in, slots, sums, from_the_right, ends);
    };
    sum(memory.before, -s.left, false, memory.ends);
    if (s.has_band) {
      if (!s.causal) sum(memory.after, s.right, true, nullptr);
      const bool pairs = inputs_move_in_lanes(p.in) && moves_in_lanes(s, p.y);
      with_rounds<Accumulate<E>>(s, [&]<int kRows>(const Reach& reach, std::integral_constant<int, kRows>) {
        cuda::launch_with_memory(cuda, kName, slots.count * s.heads * band_groups(s, kForwardStrips), kBandThreads,
                                 BandRoom<Accumulate<E>>::bytes(reach), write_band_rows<E, kRows>, p, slots, reach,
                                 memory, pairs, redo_enabled(), cuda.redone);
      });
    } else if (s.causal) {
      cuda::launch(cuda, kName, threads, write_rows<E, N>, p, slots, memory.before);
    } else {
      cuda::launch(cuda, kName, threads, write_same_rows<E, N>, p, slots, memory.ends);
    }
  });
}

template <typename E>
void forward(const WindowForward<E>& p, const Cuda& cuda) {
  const WindowShape& s = p.in.shape;
  const bool keeps_state = p.final_state.position != nullptr;
  if (s.batch == 0) return;
  if (s.channels > 0 && (s.time > 0 || keeps_state)) {
    cuda::Workspace workspace(cuda.workspace);
    const ForwardMemory<E> memory(s, Pass::kForward, workspace);
    const Slots slots(s);
    WindowForward<E> call = p;
    if (!saves_sums(s)) call.saved = nullptr;
    forward(call, slots, memory, cuda);
    if (keeps_state) {
      cuda::launch(cuda, kName, s.batch * s.channels, write_state<E>, p, slots, memory.ends);
      cuda::launch(cuda, kName, s.batch * s.left * s.channels, write_ring<E>, p, slots);
    }
  }
  if (keeps_state) cuda::launch(cuda, kName, s.batch, write_position<E>, p.in, p.final_state.position);
}

}  // namespace
}  // namespace window

template <typename E>
void window_forward(const WindowForward<E>& p, const Cuda& cuda) {
  window::check_sizes(p);
  window::check_values(p.in, cuda);
  window::forward(p, cuda);
}

#define AFT_INSTANTIATE(E) template void window_forward<E>(const WindowForward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

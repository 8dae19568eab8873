// Forward and prefill of the windowed operator on a CUDA device. Cost and layout: README.md.

#include <cstdint>
#include <limits>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/window/check.h"
#include "ops/window/cuda_band.cuh"
#include "ops/window/cuda_checks.h"

namespace aft::ops {
namespace window {
namespace {

// Without a band. Not causal, every row has the sums of all sources.
template <typename E, int N, bool causal>
__global__ void write_rows(WindowForward<E> p, Slots slots, const Accumulate<E>* sums, const Accumulate<E>* ends) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, groups = d / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * groups || !find_slot(p.in, slots, i / groups, slot)) return;
  const int64_t c = i % groups * N;
  const Gate gate = p.in.shape.gate;
  const E* q = gate == Gate::kNone ? nullptr : column(p.in.q, slot.sequence, c);
  E* y = column(p.y, slot.sequence, c);
  cuda::RunningSum<T> sum[N];
  load_sums(sum, (causal ? sums + i / groups * kSumParts * d : ends + slot.sequence.index * kSumParts * d) + c, d);
  const auto write = [&](int64_t t) {
    cuda::Pack<E, N> query = {};
    if (q != nullptr) query = cuda::load<N>(q + t * p.in.q.time_stride);
    T out[N];
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      out[lane] = cuda::gated_ratio(gate, T(cuda::widen(query.lane[lane])), sum[lane].num.sum, sum[lane].den.sum);
    }
    cuda::store<N>(y + t * p.y.time_stride, out);
  };
  if constexpr (causal) {
    const Columns<E, N> columns(p.in, slot.sequence, c);
    visit_rows<kAhead>(columns, slot.begin, slot.end, [&](int64_t t, const auto& source) {
#pragma unroll
      for (int lane = 0; lane < N; ++lane) sum[lane].add_source(columns.key(source, lane), columns.value(source, lane));
      write(t);
    });
  } else {
    for (int64_t t = slot.begin; t < slot.end; ++t) write(t);
  }
}

// A block has some channels of one head of a slot: `strips` of them make the head.
template <typename E>
__global__ void __launch_bounds__(kBandThreads) write_band_rows(WindowForward<E> p, Slots slots, int64_t strips,
                                                                ForwardMemory<E> memory, bool redo, int64_t* redone) {
  using T = Accumulate<E>;
  __shared__ BandRoom<T> room;
  const WindowShape& s = p.in.shape;
  const int64_t d = s.channels, width = d / s.heads, strip = blockIdx.x % strips, unit = blockIdx.x / strips;
  Slot slot;
  if (!find_slot(p.in, slots, unit / s.heads, slot)) return;
  const int64_t own = strip * blockDim.x + threadIdx.x;
  const bool active = own < width;
  const int64_t c = unit % s.heads * width + (active ? own : width - 1);
  cuda::RunningSum<T> first[1], last[1];
  load_sums(first, memory.before + unit / s.heads * kSumParts * d + c, d);
  if (!s.causal) load_sums(last, memory.after + unit / s.heads * kSumParts * d + c, d);
  BandBlock<E> block(p.in, slot.sequence, slot.begin, slot.end, c, room, first[0], last[0]);
  const E* q = s.gate == Gate::kNone ? nullptr : column(p.in.q, slot.sequence, c);
  E* y = column(p.y, slot.sequence, c);
  const T scale = cuda::pow2(block.value_exponent);
  const auto write = [&](int64_t t, T num, T den) {
    const T query = q == nullptr ? T(0) : T(cuda::widen(q[t * p.in.q.time_stride]));
    y[t * p.y.time_stride] = cuda::narrow<E>(cuda::gated_ratio(s.gate, query, num, den) * scale);
  };
  int failed = 0;
  for (int64_t t0 = slot.begin; t0 < slot.end; t0 += kBandTile) {
    const TileSums<T> tile = block.sum_tile(t0);
    uint32_t exactly = 0;  // bit r: target r is to be done so
#pragma unroll
    for (int r = 0; r < kBandTile; ++r) {
      if (!active || t0 + r >= slot.end) continue;
      if (!block.has_row(t0 + r)) {
        y[(t0 + r) * p.y.time_stride] = cuda::narrow<E>(NAN);
      } else if (block.certified(tile.den[r], tile.num[r]) || !redo) {
        write(t0 + r, tile.num[r], tile.den[r]);
      } else {
        exactly |= 1u << r;
      }
    }
    failed += __popc(exactly);
    for (; exactly != 0; exactly &= exactly - 1) {
      const int64_t t = t0 + __ffs(exactly) - 1;
      const ExactRow<T> row = block.exact(t0, t);
      write(t, row.num, row.den);
    }
    block.leave_tile(t0);
  }
  if (redone == nullptr) return;
  cuda::count(redone, failed);
  if (threadIdx.x == 0) cuda::count(redone + 1, min(int64_t{blockDim.x}, width - own) * (slot.end - slot.begin));
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
  const int64_t sequences = s.batch * s.channels;
  with_pack<kPack<E>>(packs, [&]<int N>(std::integral_constant<int, N>) {
    const int64_t threads = slots.count * (s.channels / N);
    cuda::launch(cuda, kName, threads, sum_chunks<E, N>, p.in, slots, -s.left, memory.before);
    cuda::launch(cuda, kName, sequences, fold_chunks<E>, p.in, slots, memory.before, memory.ends,
                 s.causal ? p.saved : nullptr);
    if (s.has_band) {
      if (!s.causal) {
        cuda::launch(cuda, kName, threads, sum_chunks<E, N>, p.in, slots, s.right, memory.after);
        cuda::launch(cuda, kName, sequences, fold_chunks_back<E>, p.in, slots, memory.after);
      }
      const Strips strips(s);
      cuda::launch_blocks(cuda, kName, slots.count * s.heads * strips.count, strips.threads, write_band_rows<E>, p,
                          slots, strips.count, memory, redo_enabled(), cuda.redone);
    } else {
      cuda::launch(cuda, kName, threads, s.causal ? write_rows<E, N, true> : write_rows<E, N, false>, p, slots,
                   memory.before, memory.ends);
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
    const ForwardMemory<E> memory(s, workspace);
    const Slots slots(s);
    forward(p, slots, memory, cuda);
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

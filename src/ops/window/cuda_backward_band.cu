// Backward of the windowed operator with a band on a CUDA device. Cost and layout: README.md.
//
// Causal and not packed, wave by wave, some sequences each, or a part of one, the last part first:
// 1. run_band_targets does the forward of the wave's chunks again: the gradients of the queries, a and b of each
//    target, their sums, and what each row adds to the gradient of the band.
// 2. fold_wave makes of the sums what all targets after a chunk ask of a source.
// 3. run_band_sources writes dk and dv; run_band_pairs adds to the gradient of the band.
// Not causal, sources ask for the targets before a chunk too, and packed it is not known where a wave is to end: 1 is
// done for the sums of all chunks first, which fold_targets and fold_earlier fold, and again wave by wave.

#include <algorithm>
#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/cuda_backward_band.cuh"

namespace aft::ops {
namespace window {
namespace {

template <typename T>
__device__ void store_carry(const cuda::RunningSum<T>& sum, T* at, int64_t channels) {
  at[0] = sum.max;
  at[channels] = sum.den.sum;
  at[2 * channels] = sum.den.low;
  at[3 * channels] = sum.num.sum;
  at[4 * channels] = sum.num.low;
}
template <typename T>
__device__ cuda::RunningSum<T> load_carry(const T* at, int64_t channels) {
  return {at[0], {at[channels], at[2 * channels]}, {at[3 * channels], at[4 * channels]}};
}

/// The sums of each group's targets become those of all before it. One thread a channel of a sequence.
template <typename E>
__global__ void fold_earlier(WindowInputs<E> in, Slots slots, ChunkSums<Accumulate<E>> earlier) {
  const int64_t d = slots.channels, i = cuda::thread_index();
  if (i >= in.shape.batch * d) return;
  cuda::RunningSum<Accumulate<E>> none;
  none.max = -INFINITY;
  fold_sequence(in, slots, i / d, i % d, earlier, false, none);
}

/// The sums after every sequence: `carry`, and `at_start`, which is that of a sequence without chunks. One thread a
/// channel of a sequence.
template <typename E>
__global__ void begin_waves(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                            const Accumulate<E>* ends, Accumulate<E>* carry, Accumulate<E>* at_start) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index(), b = i / d, c = i % d;
  if (i >= p.in.shape.batch * d) return;
  const cuda::RunningSum<T> sum[1] = {sums_after(p, slots, b, c, ends)};
  store_carry(sum[0], carry + b * kCarryParts * d + c, d);
  store_sums(sum, at_start + b * kSumParts * d + c, d);
}

/// As fold_groups and fold_targets do, of the slots of a wave: what the targets of each add becomes the sums of those
/// after it, in its group and of the groups after. Both pass to the next wave with what rounding has added, so that
/// where waves end makes no difference. One thread a channel of a sequence.
template <typename E>
__global__ void fold_wave(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                          int64_t first, int64_t count, ChunkSums<Accumulate<E>> later, Accumulate<E>* carry,
                          Accumulate<E>* at_start) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index(), b = i / d, c = i % d;
  if (i >= p.in.shape.batch * d) return;
  const int64_t begin = first_slot(p.in, slots, b), chunks = Slots::chunks_of(sequence_at(p.in, slots, b).time);
  const int64_t from = max(int64_t{0}, first - begin);  // chunks of the sequence
  int64_t to = min(chunks, first + count - begin);
  if (from >= to) return;
  T* own = carry + b * kCarryParts * d + c;
  cuda::RunningSum<T> groups[1] = {load_carry(own, d)}, in_group = load_carry(own + kCarryParts / 2 * d, d);
  while (to > from) {
    const int64_t group = (to - 1) / Slots::kGroup, group_begin = group * Slots::kGroup;
    if (to == chunks || to % Slots::kGroup == 0) {
      in_group = {};
      in_group.max = -INFINITY;
      store_sums(groups, later.groups + (first_group(p.in, slots, b) + group) * kSumParts * d + c, d);
    }
    const int64_t down_to = max(from, group_begin);
    in_group = fold(later.chunks + (begin + down_to) * kSumParts * d + c, to - down_to, d, true, in_group);
    if (down_to == group_begin) groups[0].add(in_group.max, in_group.den.sum, in_group.num.sum);
    to = down_to;
  }
  store_carry(groups[0], own, d);
  store_carry(in_group, own + kCarryParts / 2 * d, d);
  store_sums(groups, at_start + b * kSumParts * d + c, d);
}

/// ends [B][3][d]: the sums of all sources before the last window of each sequence. One thread a channel of a sequence.
template <typename E>
__global__ void sum_ends(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                         Accumulate<E>* ends) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index(), b = i / d, c = i % d;
  if (i >= p.in.shape.batch * d) return;
  Slot slot;
  const int64_t chunks = Slots::chunks_of(sequence_at(p.in, slots, b).time);
  if (chunks == 0 || !find_slot(p.in, slots, first_slot(p.in, slots, b) + chunks - 1, slot)) return;
  cuda::RunningSum<T> sum[1];
  restore_sums(sum, p, slot, c);
  const RowSources<E> sources(p.in, slot.sequence, c);
  for (int64_t s = sources.window_begin(slot.begin); s < slot.end - sources.left; ++s) {
    sum[0].add_source(sources.key(s), sources.value(s));
  }
  store_sums(sum, ends + b * kSumParts * d + c, d);
}

/// The gradient of ring slots that no chunk writes: those without a source, and all where no position was added. One
/// thread a channel of a slot.
template <typename E>
__global__ void write_idle_ring(WindowBackward<E> p, Slots slots) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t i = cuda::thread_index(), d = s.channels;
  if (i >= s.batch * s.left * d) return;
  const int64_t c = i % d, b = i / d / s.left;
  const Sequence one = sequence_at(p.in, slots, b);
  const int64_t position = p.in.initial_state.position[b], slot = i / d % s.left;
  const bool holds = position >= s.left || slot < position;
  if (holds && one.time > 0) return;
  const auto asked = [&](const T* final_ring, int64_t at) {
    return holds && final_ring != nullptr ? final_ring[at] : T(0);
  };
  const StateGrad<T>& to = p.grad_initial_state;
  if (to.ring_value != nullptr) to.ring_value[i] = asked(p.grad_final_state.ring_value, i);
  if (to.ring_key == nullptr || (s.key_channels != d && c % (d / s.heads) != 0)) return;
  const int64_t at = (b * s.left + slot) * s.key_channels + key_of(s, c);
  to.ring_key[at] = asked(p.grad_final_state.ring_key, at);
}

template <typename T>
__global__ void clear_band(Band<T> band, int64_t heads, int64_t columns, int64_t rows) {
  const int64_t i = cuda::thread_index();
  if (i >= heads * rows * columns) return;
  band.data[i / columns / rows * band.head_stride + i / columns % rows * band.row_stride + i % columns] = 0;
}

/// Calls run(first slot, count, first slot with targets that its sources see) for every wave: sequences in order, where
/// `backwards` the parts of one from its end.
template <typename E, typename Run>
void for_each_wave(const WindowShape& s, const Slots& slots, bool backwards, const Run& run) {
  const Waves<E> waves(s);
  if (waves.slots == 0) return;
  if (!backwards) {
    for (int64_t first = 0; first < slots.count; first += waves.slots) {
      run(first, std::min(waves.slots, slots.count - first), std::max<int64_t>(0, first - waves.overlap));
    }
    return;
  }
  const int64_t at_once = std::max<int64_t>(1, waves.slots / slots.chunks);  // sequences
  for (int64_t b = 0; b < s.batch; b += at_once) {
    const int64_t begin = b * slots.chunks, end = std::min(b + at_once, s.batch) * slots.chunks;
    for (int64_t to = end; to > begin;) {
      const int64_t first = std::max(begin, to - waves.slots);
      run(first, to - first, std::max(begin, first - waves.overlap));
      to = first;
    }
  }
}

}  // namespace

template <typename E>
void backward_band(const WindowBackward<E>& p, const Cuda& cuda) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t columns = s.left + 1 + s.right;
  const int64_t table_rows = p.in.band.row_stride == 0 ? 1 : p.in.band.rows;
  const bool wants_band = p.grad_band.data != nullptr;
  if (wants_band) {
    cuda::launch(cuda, kBackwardName, s.heads * table_rows * columns, clear_band<T>, p.grad_band, s.heads, columns,
                 table_rows);
  }
  if (s.channels == 0 || s.batch == 0) return;
  cuda::Workspace workspace(cuda.workspace);
  const BandBackwardMemory<E> memory(s, workspace);
  const Slots slots(s);
  const bool packs = inputs_move_in_lanes(p.in) && moves_in_lanes(s, p.grad_y) && moves_in_lanes(s, p.grad_v) &&
                     (s.key_channels != s.channels || moves_in_lanes(s, p.grad_k)) &&
                     (s.gate == Gate::kNone || moves_in_lanes(s, p.grad_q));
  const BandBackward<E> call = {p, slots, memory, cuda, packs};
  const auto sum = [&](const ChunkSums<T>& sums, int64_t shift, bool from_the_right, T* ends) {
    cuda::launch(cuda, kBackwardName, slots.count * s.channels, sum_chunks<E, 1>, p.in, slots, shift, sums.chunks);
    fold_chunks(cuda, kBackwardName, p.in, slots, sums, from_the_right, ends);
  };
  if (!saves_sums(s)) sum(memory.before, -s.left, false, memory.ends);
  if (!s.causal) sum(memory.after, s.right, true, nullptr);
  const auto& final = p.grad_final_state;
  if (saves_sums(s) && (final.num != nullptr || final.den != nullptr)) {
    cuda::launch(cuda, kBackwardName, s.batch * s.channels, sum_ends<E>, p, slots, memory.ends);
  }
  const bool once = goes_once(s);
  if (once) {
    cuda::launch(cuda, kBackwardName, s.batch * s.channels, begin_waves<E>, p, slots, memory.ends, memory.carry,
                 memory.at_start);
  } else {
    run_band_targets(call, 0, slots.count, {.first_slot = 0, .ends = true, .pairs = false}, {});
    if (!s.causal) {
      cuda::launch(cuda, kBackwardName, slots.groups * s.channels, fold_groups<E>, p.in, slots, memory.earlier, false,
                   static_cast<T>(-INFINITY));
      cuda::launch(cuda, kBackwardName, s.batch * s.channels, fold_earlier<E>, p.in, slots, memory.earlier);
    }
    fold_targets(cuda, kBackwardName, p, slots, memory);
  }
  for_each_wave<E>(s, slots, once, [&](int64_t first, int64_t count, int64_t from) {
    const WaveRows<T> rows = {memory.rows, from, s.channels};
    run_band_targets(call, from, first + count - from, {.first_slot = first, .ends = once, .pairs = wants_band}, rows);
    if (once) {
      cuda::launch(cuda, kBackwardName, s.batch * s.channels, fold_wave<E>, p, slots, first, count, memory.later,
                   memory.carry, memory.at_start);
    }
    run_band_sources(call, first, count, rows);
    if (wants_band) run_band_pairs(call, first, count);
  });
  if (wants_band) finish_band_pairs(call);
  run_band_keys(call);
  if (p.in.initial_state.position == nullptr) return;
  const StateGrad<T>& initial = p.grad_initial_state;
  if (initial.num != nullptr || initial.den != nullptr) {
    cuda::launch(cuda, kBackwardName, s.batch * s.key_channels, write_initial<E>, p, memory.at_start);
  }
  cuda::launch(cuda, kBackwardName, s.batch * s.left * s.channels, write_idle_ring<E>, p, slots);
}

#define AFT_INSTANTIATE(E) template void backward_band<E>(const WindowBackward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace window
}  // namespace aft::ops

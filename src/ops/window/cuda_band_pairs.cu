// The gradient of the band from that of each row (cuda_band_pairs.cuh), which is pairs [slots of the wave][blocks of a
// head][kChunk][H][J].

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/cuda_backward_band.cuh"

namespace aft::ops::window {
namespace {

/// to [slots][H][J]: the sums over the rows of the wave's slots. One thread a weight of a slot.
template <typename E>
__global__ void sum_rows(WindowInputs<E> in, Slots slots, int64_t first_slot, int64_t count, int64_t groups,
                         int64_t band, const Accumulate<E>* pairs, Accumulate<E>* to) {
  const int64_t i = cuda::thread_index(), local = i / band;
  Slot slot;
  if (local >= count || !find_slot(in, slots, first_slot + local, slot)) return;
  Accumulate<E> sum = 0;
  for (int64_t group = 0; group < groups; ++group) {
    const Accumulate<E>* at = pairs + (local * groups + group) * kChunk * band + i % band;
#pragma unroll 8
    for (int64_t t = slot.begin; t < slot.end; ++t, at += band) sum += *at;
  }
  to[first_slot * band + i] = sum;
}

/// to [B][H][J]: the sums over every sequence's slots. One thread a weight of a sequence.
template <typename E>
__global__ void sum_slots(WindowInputs<E> in, Slots slots, int64_t band, const Accumulate<E>* of_slots,
                          Accumulate<E>* to) {
  const int64_t i = cuda::thread_index(), b = i / band;
  if (b >= in.shape.batch) return;
  const Accumulate<E>* at = of_slots + first_slot(in, slots, b) * band + i % band;
  Accumulate<E> sum = 0;
  const int64_t chunks = Slots::chunks_of(sequence_at(in, slots, b).time);
#pragma unroll 8
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += at[chunk * band];
  to[i] = sum;
}

/// Adds what the sequences have for a weight, in order, to the gradient of a row that all positions share. One thread a
/// weight.
template <typename E>
__global__ void add_sequences(const __grid_constant__ WindowBackward<E> p, const Accumulate<E>* of_sequences) {
  const WindowShape& s = p.in.shape;
  const int64_t columns = s.left + 1 + s.right, band = s.heads * columns, i = cuda::thread_index();
  if (i >= band) return;
  Accumulate<E>& gradient = p.grad_band.data[i / columns * p.grad_band.head_stride + i % columns];
  Accumulate<E> total = gradient;
#pragma unroll 8
  for (int64_t b = 0; b < s.batch; ++b) total += of_sequences[b * band + i];
  gradient = total;
}

/// Adds what a wave's slots have for a weight of a table, sequence by sequence, to the gradient. A position of a
/// sequence is in one wave, and later sequences are in no earlier one, so the order is that of the batch. One thread a
/// weight.
template <typename E>
__global__ void add_pairs(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                          int64_t first_slot, int64_t count, int64_t groups, const Accumulate<E>* pairs) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t columns = s.left + 1 + s.right, band = s.heads * columns, rows = p.in.band.rows;
  const int64_t i = cuda::thread_index(), column = i % columns, row = i / columns % rows, head = i / columns / rows;
  if (i >= band * rows) return;
  T& gradient = p.grad_band.data[head * p.grad_band.head_stride + row * p.grad_band.row_stride + column];
  T total = gradient;
  const auto sequence_of = [&](int64_t slot) {
    return s.packed ? find_sequence(s.batch, slot, [&](int64_t m) { return window::first_slot(p.in, slots, m); })
                    : slot / slots.chunks;
  };
  const int64_t end = first_slot + count;
  for (int64_t b = sequence_of(first_slot); b < s.batch; ++b) {
    const int64_t begin_of_b = window::first_slot(p.in, slots, b);
    if (begin_of_b >= end) break;
    const Sequence one = sequence_at(p.in, slots, b);
    const int64_t position = p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[b];
    const int64_t t = row - position, source = t - s.left + column, slot = begin_of_b + t / kChunk;
    if (t < 0 || t >= one.time || slot < first_slot || slot >= end) continue;
    if (source < -min(position, s.left) || source >= one.time) continue;
    T sum = 0;
    for (int64_t group = 0; group < groups; ++group) {
      sum += pairs[(((slot - first_slot) * groups + group) * kChunk + t % kChunk) * band + head * columns + column];
    }
    total += sum;
  }
  gradient = total;
}

}  // namespace

template <typename E>
void run_band_pairs(const BandBackward<E>& call, int64_t first, int64_t count) {
  const WindowShape& s = call.p.in.shape;
  const int64_t band = s.heads * (s.left + 1 + s.right), groups = band_groups(s, kBackwardStrips);
  const auto& memory = call.memory;
  if (call.shares_row()) {
    cuda::launch(call.cuda, kBackwardName, count * band, sum_rows<E>, call.p.in, call.slots, first, count, groups, band,
                 memory.pairs, memory.slot_pairs);
  } else {
    cuda::launch(call.cuda, kBackwardName, band * call.p.in.band.rows, add_pairs<E>, call.p, call.slots, first, count,
                 groups, memory.pairs);
  }
}

template <typename E>
void finish_band_pairs(const BandBackward<E>& call) {
  const WindowShape& s = call.p.in.shape;
  const int64_t band = s.heads * (s.left + 1 + s.right);
  if (!call.shares_row()) return;
  cuda::launch(call.cuda, kBackwardName, s.batch * band, sum_slots<E>, call.p.in, call.slots, band,
               call.memory.slot_pairs, call.memory.sequence_pairs);
  cuda::launch(call.cuda, kBackwardName, band, add_sequences<E>, call.p, call.memory.sequence_pairs);
}

#define AFT_INSTANTIATE(E)                                                   \
  template void run_band_pairs<E>(const BandBackward<E>&, int64_t, int64_t); \
  template void finish_band_pairs<E>(const BandBackward<E>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window

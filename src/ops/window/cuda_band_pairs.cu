// The gradient of the band from that of each row (cuda_band_pairs.cuh), which is pairs [slots of the wave][blocks of a
// head][kChunk][H][J].

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/cuda_backward_band.cuh"

namespace aft::ops::window {
namespace {

/// to [slots of the wave][H][J]: the sums over every slot's rows. One thread a weight of a slot.
template <typename E>
__global__ void sum_rows(WindowInputs<E> in, Slots slots, int64_t first_slot, int64_t count, int64_t groups,
                         int64_t band, const Accumulate<E>* pairs, Accumulate<E>* to) {
  const int64_t i = cuda::thread_index(), local = i / band;
  Slot slot;
  if (local >= count) return;
  Accumulate<E> sum = 0;
  if (find_slot(in, slots, first_slot + local, slot)) {
    for (int64_t group = 0; group < groups; ++group) {
      const Accumulate<E>* at = pairs + (local * groups + group) * kChunk * band + i % band;
#pragma unroll 8
      for (int64_t t = slot.begin; t < slot.end; ++t, at += band) sum += *at;
    }
  }
  to[i] = sum;
}

/// Adds what a wave's slots have for a weight, sequence by sequence from the last, to the gradient, so in one order
/// however the waves are cut. Where all positions share a row, `pairs` is [slots][H][J], and what a sequence has so far
/// is kept in `sequence_pairs`. One thread a weight.
template <typename E>
__global__ void add_pairs(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                          int64_t first_slot, int64_t count, int64_t rows, int64_t groups,
                          const Accumulate<E>* pairs, Accumulate<E>* sequence_pairs) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t columns = s.left + 1 + s.right, band = s.heads * columns, i = cuda::thread_index();
  if (i >= band * rows) return;
  const int64_t column = i % columns, row = i / columns % rows, head = i / columns / rows;
  const bool shared_row = p.in.band.row_stride == 0;
  T& gradient = p.grad_band.data[head * p.grad_band.head_stride + row * p.grad_band.row_stride + column];
  const int64_t end = first_slot + count;
  T total = gradient, sum = shared_row && end < slots.count ? sequence_pairs[i] : T(0);
  const auto sequence_of = [&](int64_t slot) {
    return s.packed ? find_sequence(s.batch, slot, [&](int64_t m) { return window::first_slot(p.in, slots, m); })
                    : slot / slots.chunks;
  };
  for (int64_t b = sequence_of(end - 1); b >= 0; --b) {
    const int64_t begin_of_b = window::first_slot(p.in, slots, b);
    const Sequence one = sequence_at(p.in, slots, b);
    const int64_t end_of_b = begin_of_b + Slots::chunks_of(one.time);
    if (end_of_b <= end) {  // the sequence after is complete
      total += sum;
      sum = 0;
    }
    if (shared_row) {
      const int64_t from = max(begin_of_b, first_slot), to = min(end_of_b, end);
#pragma unroll 4
      for (int64_t slot = to - 1; slot >= from; --slot) sum += pairs[(slot - first_slot) * band + i];
    } else {
      const int64_t position = p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[b];
      const int64_t t = row - position, source = t - s.left + column, slot = begin_of_b + t / kChunk;
      const bool there = t >= 0 && t < one.time && slot >= first_slot && slot < end &&
                         source >= -min(position, s.left) && source < one.time;
      for (int64_t group = 0; there && group < groups; ++group) {
        sum += pairs[(((slot - first_slot) * groups + group) * kChunk + t % kChunk) * band + head * columns + column];
      }
    }
    if (begin_of_b <= first_slot) break;
  }
  if (!shared_row || first_slot == 0) {
    total += sum;
  } else {
    sequence_pairs[i] = sum;
  }
  gradient = total;
}

}  // namespace

template <typename E>
void run_band_pairs(const BandBackward<E>& call, int64_t first, int64_t count) {
  const WindowShape& s = call.p.in.shape;
  const int64_t band = s.heads * (s.left + 1 + s.right), groups = band_groups(s, kBackwardStrips);
  const auto& memory = call.memory;
  const bool shared_row = call.p.in.band.row_stride == 0;
  if (shared_row) {
    cuda::launch(call.cuda, kBackwardName, count * band, sum_rows<E>, call.p.in, call.slots, first, count, groups, band,
                 memory.pairs, memory.slot_pairs);
  }
  const int64_t table_rows = shared_row ? 1 : call.p.in.band.rows;
  cuda::launch(call.cuda, kBackwardName, band * table_rows, add_pairs<E>, call.p, call.slots, first, count, table_rows,
               groups, shared_row ? memory.slot_pairs : memory.pairs, memory.sequence_pairs);
}

#define AFT_INSTANTIATE(E) template void run_band_pairs<E>(const BandBackward<E>&, int64_t, int64_t);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window

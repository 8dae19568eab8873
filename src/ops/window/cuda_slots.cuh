#pragma once

// Slots on the device, and the columns of a sequence that a thread reads.

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/cuda/element.cuh"
#include "ops/common/cuda/exp.cuh"
#include "ops/window/cuda_memory.h"

namespace aft::ops::window {

/// Rows [begin, end) of a sequence.
struct Slot {
  Sequence sequence;
  int64_t index;  // of the chunk in its sequence
  int64_t group;  // of the chunk, among all
  int64_t begin, end;
};

/// Sequence b as plan.h has it, with cu_seqlens on the device.
template <typename E>
__device__ Sequence sequence_at(const WindowInputs<E>& in, const Slots& slots, int64_t b) {
  const WindowShape& s = in.shape;
  if (!s.packed) return {b, b, 0, s.time, b * (slots.chunks > 0 ? slots.chunks - 1 : 0)};
  const int64_t first = in.cu_seqlens[b];
  return {b, 0, first, in.cu_seqlens[b + 1] - first, first / kChunk};
}

/// The slot of a sequence's first chunk. Packed: floor((a + b) / c) >= floor(a / c) + ceil(b / c) - 1, so one slot more
/// a sequence keeps them apart.
template <typename E>
__device__ int64_t first_slot(const WindowInputs<E>& in, const Slots& slots, int64_t b) {
  return in.shape.packed ? in.cu_seqlens[b] / kChunk + b : b * slots.chunks;
}

/// The group of a sequence's first chunk. Packed: as first_slot has it.
template <typename E>
__device__ int64_t first_group(const WindowInputs<E>& in, const Slots& slots, int64_t b) {
  return in.shape.packed ? first_slot(in, slots, b) / Slots::kGroup + b : b * Slots::groups_of(slots.chunks);
}

/// The last sequence b with first(b) <= i.
template <typename First>
__device__ int64_t find_sequence(int64_t batch, int64_t i, const First& first) {
  int64_t b = 0;
  for (int64_t end = batch; b + 1 < end;) {
    const int64_t middle = (b + end) / 2;
    (first(middle) <= i ? b : end) = middle;
  }
  return b;
}

/// False where slot i has no rows.
template <typename E>
__device__ bool find_slot(const WindowInputs<E>& in, const Slots& slots, int64_t i, Slot& slot) {
  const int64_t b = in.shape.packed
                        ? find_sequence(in.shape.batch, i, [&](int64_t m) { return first_slot(in, slots, m); })
                        : i / slots.chunks;
  slot.sequence = sequence_at(in, slots, b);
  slot.index = i - first_slot(in, slots, b);
  slot.group = first_group(in, slots, b) + slot.index / Slots::kGroup;
  slot.begin = slot.index * kChunk;
  slot.end = min(slot.begin + kChunk, slot.sequence.time);
  return slot.begin < slot.end;
}

/// The key channel of channel c: its own, or its head's.
inline __device__ int64_t key_of(const WindowShape& s, int64_t c) {
  return s.key_channels == s.channels ? c : c / (s.channels / s.heads);
}

/// N channels from `begin` on of a sequence: where their rows lie. The keys are those of the channels, or that of their
/// head for all.
template <typename E, int N>
struct Columns {
  using T = Accumulate<E>;

  const E* k;
  const E* v;
  int64_t k_stride, v_stride;
  const bool* mask;  // null: all are seen
  bool shares_key;

  __device__ Columns(const WindowInputs<E>& in, const Sequence& one, int64_t begin)
      : k_stride(in.k.time_stride),
        v_stride(in.v.time_stride),
        mask(in.key_mask.data == nullptr ? nullptr : in.key_mask.data + one.row * in.key_mask.batch_stride + one.first),
        shares_key(in.shape.key_channels != in.shape.channels) {
    k = in.k.data + one.row * in.k.batch_stride + one.first * k_stride + key_of(in.shape, begin);
    v = in.v.data + one.row * in.v.batch_stride + one.first * v_stride + begin;
  }

  /// As the elements lie in memory, so that loads may run ahead of what is done with them. A shared key is in every
  /// lane.
  struct Source {
    cuda::Pack<E, N> k, v;
    bool seen;
  };
  __device__ Source read(int64_t t) const {
    Source s;
    if (shares_key) {
      const E own = k[t * k_stride];
#pragma unroll
      for (int i = 0; i < N; ++i) s.k.lane[i] = own;
    } else {
      s.k = cuda::load<N>(k + t * k_stride);
    }
    s.v = cuda::load<N>(v + t * v_stride);
    s.seen = mask == nullptr || mask[t];
    return s;
  }
  /// Absent where it is masked.
  static __device__ T key(const Source& s, int i) { return s.seen ? cuda::widen(s.k.lane[i]) : -INFINITY; }
  static __device__ T value(const Source& s, int i) { return cuda::widen(s.v.lane[i]); }
};

/// The ring of the initial state, at channel `begin` of a sequence: sources [first, 0).
template <typename E>
struct Ring {
  using T = Accumulate<E>;

  const T* keys;
  const T* values;
  int64_t key_stride, value_stride, capacity, position = 0, first = 0;
  bool shares_key;

  __device__ Ring(const WindowInputs<E>& in, const Sequence& one, int64_t begin)
      : key_stride(in.shape.key_channels),
        value_stride(in.shape.channels),
        capacity(in.shape.left),
        shares_key(key_stride != value_stride) {
    const int64_t slots = one.index * capacity;
    keys = in.initial_state.ring_key + slots * key_stride + key_of(in.shape, begin);
    values = in.initial_state.ring_value + slots * value_stride + begin;
    if (in.initial_state.position == nullptr) return;
    position = in.initial_state.position[one.index];
    first = -min(position, capacity);
  }
  __device__ int64_t slot(int64_t s) const { return (position + s) % capacity; }
  __device__ T key(int64_t s, int lane = 0) const { return keys[slot(s) * key_stride + (shares_key ? 0 : lane)]; }
  __device__ T value(int64_t s, int lane = 0) const { return values[slot(s) * value_stride + lane]; }
};

/// N elements of rows that have as many channels as y, at channel `begin` of a sequence.
template <typename E>
__device__ E* column(const Rows<E>& rows, const Sequence& one, int64_t begin) {
  return first_row(rows, one) + begin;
}

}  // namespace aft::ops::window

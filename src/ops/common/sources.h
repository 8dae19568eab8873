#pragma once

#include <cstdint>

#include "aft/ops/operands.h"

// Where the sources of one sequence lie, and where their gradients go: source s >= 0 in row s of the call's tensors,
// s < 0 in the ring of a state, in slot (position + s) mod capacity.

namespace aft::ops {

/// Pointers are of row or slot 0, at the first channel (of a key: the first key channel) that the reader counts from.
template <typename E>
struct SourceRows {
  const E* k = nullptr;
  const E* v = nullptr;
  int64_t k_stride = 0, v_stride = 0;
  const bool* mask = nullptr;  // null: all are seen
  const Accumulate<E>* ring_k = nullptr;
  const Accumulate<E>* ring_v = nullptr;
  int64_t ring_k_stride = 0, ring_v_stride = 0;
  int64_t capacity = 0, position = 0;

  int64_t slot(int64_t s) const { return (position + s) % capacity; }
  /// The ring keeps a masked source as absent: it knows nothing of masks.
  bool masked(int64_t s) const { return mask != nullptr && s >= 0 && !mask[s]; }
};

template <typename E>
struct SourceGradRows {
  using T = Accumulate<E>;
  E* k = nullptr;
  E* v = nullptr;
  int64_t k_stride = 0, v_stride = 0;
  bool streams_k = false, streams_v = false;  // written past the caches
  const T* final_ring_k = nullptr;            // gradient of the ring after the call, which is a copy; null: zero
  const T* final_ring_v = nullptr;
  T* initial_ring_k = nullptr;  // of the ring before; null: not wanted
  T* initial_ring_v = nullptr;
  int64_t ring_begin = 0;  // the first source in the ring after the call
};

/// The channels that a vector holds: `count` from `begin` on. Their keys are those from `key` on, or that one for all.
struct ChannelVector {
  int64_t begin = 0, count = 0, key = 0;
  bool shares_key = false;

  int64_t key_count() const { return shares_key ? 1 : count; }
};

}  // namespace aft::ops

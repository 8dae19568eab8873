#pragma once

#include "aft/ops/full.h"

// What a kernel must not be handed. All throw aft::Error.

namespace aft::ops::full {

/// Sizes, strides, missing pointers: reads no memory that a pointer leads to, so it serves every device.
template <typename E>
void check_sizes(const FullForward<E>& p);
template <typename E>
void check_sizes(const FullBackward<E>& p);
template <typename E>
void check_sizes(const FullStep<E>& p);

/// Positions past the weights or the state's ring, cu_seqlens that do not fit: reads both, which must lie in the host's
/// memory.
template <typename E>
void check_values(const FullInputs<E>& in);

}  // namespace aft::ops::full

#pragma once

#include "aft/ops/window.h"

// What a kernel must not be handed. All throw aft::Error.

namespace aft::ops::window {

/// Sizes, strides, missing pointers: reads no memory that a pointer leads to, so it serves every device.
template <typename E>
void check_sizes(const WindowForward<E>& p);
template <typename E>
void check_sizes(const WindowBackward<E>& p);
template <typename E>
void check_sizes(const WindowStep<E>& p);

/// Positions past the table or below 0, cu_seqlens that do not fit: reads both, which must lie in the host's memory.
template <typename E>
void check_values(const WindowInputs<E>& in);

}  // namespace aft::ops::window

#pragma once

#include "aft/ops/window.h"

namespace aft::ops {

/// Throw aft::Error on what a kernel must not be handed: sizes, strides, missing pointers, positions past the table.
template <typename E>
void check_forward(const WindowForward<E>& p);
template <typename E>
void check_backward(const WindowBackward<E>& p);
template <typename E>
void check_step(const WindowStep<E>& p);

}  // namespace aft::ops

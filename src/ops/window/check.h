#pragma once

#include "aft/ops/window.h"

namespace aft::ops {

/// Throw aft::Error on what a kernel must not be handed: sizes, strides, missing pointers, positions past the table.
template <typename T>
void check_forward(const WindowForward<T>& p);
template <typename T>
void check_backward(const WindowBackward<T>& p);
template <typename T>
void check_step(const WindowStep<T>& p);

}  // namespace aft::ops

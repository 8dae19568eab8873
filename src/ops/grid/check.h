#pragma once

#include "aft/ops/grid.h"

namespace aft::ops {

/// Throw aft::Error on what a kernel must not be handed: sizes, missing pointers.
template <typename E>
void check_grid_forward(const GridForward<E>& p);
template <typename E>
void check_grid_backward(const GridBackward<E>& p);

}  // namespace aft::ops

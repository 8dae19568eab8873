#pragma once

#include "aft/ops/grid.h"

namespace aft::ops::grid {

/// Throw aft::Error on what a kernel must not be handed: sizes, missing pointers. They read no memory that a pointer
/// leads to, so they serve every device.
template <typename E>
void check_sizes(const GridForward<E>& p);
template <typename E>
void check_sizes(const GridBackward<E>& p);

}  // namespace aft::ops::grid

#pragma once

#include "aft/ops/full.h"

namespace aft::ops {

/// Throw aft::Error on what a kernel must not be handed: sizes, strides, missing pointers, positions past the weights.
template <typename E>
void check_forward(const FullForward<E>& p);
template <typename E>
void check_backward(const FullBackward<E>& p);
template <typename E>
void check_step(const FullStep<E>& p);

}  // namespace aft::ops

#pragma once

#include "aft/ops/window.h"
#include "ops/window/plan.h"

namespace aft::ops::window {

/// The backward for the SIMD target of this machine: of one task without a band, and of a whole call with one.
template <typename E>
void backward_simple_task(const WindowBackward<E>& p, const WindowTask& task);
template <typename E>
void backward_band(const WindowBackward<E>& p, const Cpu& cpu);

}  // namespace aft::ops::window

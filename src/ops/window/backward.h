#pragma once

#include "aft/ops/window.h"
#include "ops/window/plan.h"

namespace aft::ops {

/// The backward of one task, each for the targets of this machine: without a band, and with one.
template <typename T>
void backward_simple_task(const WindowBackward<T>& p, const WindowTask& task);
/// grad_band: [panels][T][J] of this task alone, zeroed; null: not wanted.
template <typename T>
void backward_band_task(const WindowBackward<T>& p, const WindowTask& task, T* grad_band);

}  // namespace aft::ops

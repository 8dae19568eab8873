#pragma once

#include "aft/ops/window.h"
#include "ops/window/plan.h"

namespace aft::ops {

/// Rows of the band's gradient that a panel of a sequence sums: one a position, or one for all of them (conv1d).
template <typename E>
int64_t band_gradient_rows(const WindowBackward<E>& p, const Sequence& sequence) {
  return p.grad_band.row_stride == 0 ? 1 : sequence.time;
}

/// The backward of one task, each for the targets of this machine: without a band, and with one.
template <typename E>
void backward_simple_task(const WindowBackward<E>& p, const WindowTask& task);
/// grad_band: [panels][band_gradient_rows()][J] of this task alone, zeroed; null: not wanted.
template <typename E>
void backward_band_task(const WindowBackward<E>& p, const WindowTask& task, Accumulate<E>* grad_band);

}  // namespace aft::ops

#pragma once

#include "tests/ops/window_run.h"

namespace aft::ops::test {

/// The plain computation that the error rule compares with: dense, in the accumulation type of its inputs, with the
/// exact row maximum, N and D apart, and the gradients that differentiating just that gives; sums run in the order of
/// sources, targets and channels; tensors of 16-bit elements are rounded once, at the end.
template <typename E>
struct WindowPlain {
  WindowOutputs<E> outputs;
  WindowOutputs<double> scale;  // of the error of every output element (plain_number.h)
};

template <typename E>
WindowPlain<E> run_plain(const WindowInputs<E>& in);

}  // namespace aft::ops::test

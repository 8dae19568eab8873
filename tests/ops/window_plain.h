#pragma once

#include "tests/ops/window_run.h"

namespace aft::ops::test {

/// The plain computation that the error rule compares with: dense, in the dtype of its inputs, with the exact row
/// maximum, N and D apart, and the gradients that differentiating just that gives; sums run in the order of sources,
/// targets and channels.
template <typename T>
struct WindowPlain {
  WindowOutputs<T> outputs;
  WindowOutputs<double> largest_summand;  // for every output element, the largest absolute summand that it is made of
};

/// T: float or double.
template <typename T>
WindowPlain<T> run_plain(const WindowInputs<T>& in);

}  // namespace aft::ops::test

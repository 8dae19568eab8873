#pragma once

#include <algorithm>
#include <cmath>

#include "tests/ops/window_run.h"

namespace aft::ops::test {

/// The plain computation that the error rule compares with: dense, in the accumulation type of its inputs, with the
/// exact row maximum, N and D apart, and the gradients that differentiating just that gives; sums run in the order of
/// sources, targets and channels; tensors of 16-bit elements are rounded once, at the end.
template <typename E>
struct WindowPlain {
  WindowOutputs<E> outputs;
  WindowOutputs<double> largest_summand;  // for every output element, the largest absolute summand that it is made of
};

template <typename E>
WindowPlain<E> run_plain(const WindowInputs<E>& in);

// What the plain computations of all families share.

template <typename T>
T plain_gate(Gate gate, T q) {
  return gate == Gate::kSigmoid ? 1 / (1 + std::exp(-q)) : gate == Gate::kRelu ? std::max(q, T(0)) : T(1);
}

template <typename T>
T plain_slope(Gate gate, T q) {
  const T g = plain_gate(gate, q);
  return gate == Gate::kSigmoid ? g * (1 - g) : T(q > 0);
}

/// One summand more of a sum and of its largest summand.
template <typename T>
void add(T& sum, double& largest, T summand) {
  sum += summand;
  largest = std::max(largest, std::abs(double(summand)));
}

}  // namespace aft::ops::test

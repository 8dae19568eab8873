#pragma once

#include <cmath>
#include <limits>
#include <numbers>

#include "aft/ops/operands.h"

// The gates, their slopes and the exponential of a pair as the references take them: plain, and separate from the
// kernels' (gate-inl.h, exp-inl.h).

namespace aft::ops {

/// e^x, x <= 0. Where the result is 0 the library takes a hundred times as long to say so.
template <typename T>
T exp_of(T x) {
  constexpr T kLeast =
      (std::numeric_limits<T>::min_exponent - std::numeric_limits<T>::digits - 2) * std::numbers::ln2_v<T>;
  return x < kLeast ? T(0) : std::exp(x);
}

template <typename T>
T gate_value(Gate gate, T q) {
  switch (gate) {
    case Gate::kSigmoid:
      return q >= 0 ? 1 / (1 + std::exp(-q)) : std::exp(q) / (1 + std::exp(q));
    case Gate::kRelu:
      return q > 0 ? q : (std::isnan(q) ? q : T(0));
    case Gate::kNone:
      return 1;
  }
  return 1;
}

template <typename T>
T gate_slope(Gate gate, T q) {
  switch (gate) {
    case Gate::kSigmoid:
      return gate_value(gate, q) * gate_value(gate, -q);
    case Gate::kRelu:
      return q > 0 ? T(1) : (std::isnan(q) ? q : T(0));
    case Gate::kNone:
      return 0;
  }
  return 0;
}

}  // namespace aft::ops

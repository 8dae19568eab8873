#pragma once

#include <cmath>

#include "aft/ops/operands.h"

// The gates and their slopes as the references take them: plain, and separate from the kernels' (gate-inl.h).

namespace aft::ops {

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

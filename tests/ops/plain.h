#pragma once

#include "tests/ops/inputs.h"

namespace aft::ops::test {

/// The plain computation that the error rule compares with: dense, in the accumulation type of its inputs, with the
/// exact row maximum, N and D apart, and the gradients that differentiating just that gives; sums run in the order of
/// sources, targets and channels; tensors of 16-bit elements are rounded once, at the end. Factors give a dense w, and
/// take their gradients from a dense dw.
template <typename E>
struct Plain {
  Outputs<E> outputs;     // but the exact part of a final state: position, max, ring
  Arrays<double> scales;  // of the error of every output element (plain_number.h)
};

template <typename E>
Plain<E> run_plain(const Inputs<E>& in);

}  // namespace aft::ops::test

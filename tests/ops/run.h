#pragma once

#include "aft/ops/device.h"
#include "tests/ops/backend.h"
#include "tests/ops/inputs.h"

// Runs of an operator as dense numbers in, dense numbers out.

namespace aft::ops::test {

struct RunOptions {
  const Backend* backend = &current_backend();  // null: the reference, in E
  ParallelFor parallel = {};
  RedoCount* redone = nullptr;
  bool backward = true;
  bool grad_weights = true;  // false: the gradient of the weights is not wanted
  bool alias_state = false;  // final_state is the initial state's own memory
  bool check_values = true;  // on CUDA: positions and cu_seqlens (the CPU's kernels always do)
  int64_t shift = 1;         // elements before the first row in its buffer; 0: rows are dense and on a cache line
};

/// Forward and backward, by the operator of the case. Fails the test if anything was written but the outputs.
template <typename E>
Outputs<E> run(const Inputs<E>& in, const RunOptions& options = {});

/// The same through the step, position by position, from the initial or the neutral state. Forward only.
template <typename E>
Outputs<E> run_steps(const Inputs<E>& in, const RunOptions& options = {});

/// Rows that share a scale on the current backend, in tiles that may begin anywhere where states stand apart: a future
/// key leaves those of earlier tiles alone, bit for bit. On the CPU every row has its own.
int64_t rows_of_a_scale(const Case& c);

/// R: double or long double.
template <typename R>
Outputs<R> run_reference(const Inputs<R>& in, bool backward = true) {
  return run(in, {.backend = nullptr, .backward = backward});
}

}  // namespace aft::ops::test

#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "aft/ops/grid.h"
#include "tests/ops/grid_cases.h"

// Runs of the grid operator as dense numbers in, dense numbers out: through the kernels (strided views inside larger
// buffers filled with NaN), through the reference, or by the plain computation.

namespace aft::ops::test {

/// All arrays dense: [B, T, width], kernel [H, s, s], mask [B, T] or empty. Tensors of E hold their numbers in the
/// accumulation type T, here and in the outputs.
template <typename E>
struct GridInputs {
  using T = Accumulate<E>;
  GridShape shape;
  std::vector<T> q, k, v, grad_y, kernel;
  std::vector<uint8_t> mask;
};

enum GridOutput { kGridY, kGridGradQ, kGridGradK, kGridGradV, kGridGradKernel, kGridOutputs };
constexpr std::array<const char*, kGridOutputs> kGridOutputNames = {"y", "grad_q", "grad_k", "grad_v", "grad_kernel"};

template <typename E>
struct GridOutputs {
  using T = Accumulate<E>;
  std::array<std::vector<T>, kGridOutputs> of;  // dense; empty where not wanted
};

struct GridRunOptions {
  ParallelFor parallel = {};
  RedoCount* redone = nullptr;
  bool backward = true;
  bool grad_kernel = true;
  int64_t shift = 1;  // elements between the start of the buffers and the first row
};

/// Inputs of the case's class rounded to E, those of the windowed operator with its band as the kernel.
template <typename E>
GridInputs<E> make_grid_inputs(const GridCase& c);

template <typename R, typename E>
GridInputs<R> convert(const GridInputs<E>& in);

/// Forward and backward through the kernels. Fails the test if anything between the rows of an output was written.
template <typename E>
GridOutputs<E> run_grid(const GridInputs<E>& in, const GridRunOptions& options = {});

/// R: double or long double.
template <typename R>
GridOutputs<R> run_grid_reference(const GridInputs<R>& in, bool backward = true);

/// Dense, with the exact row maximum, N and D apart, gradients by differentiating that; in T, rounded once to E.
template <typename E>
struct GridPlain {
  GridOutputs<E> outputs;
  std::array<std::vector<double>, kGridOutputs> scale;  // of the error of every output element (plain_number.h)
};
template <typename E>
GridPlain<E> run_grid_plain(const GridInputs<E>& in);

/// Row b of the batch alone.
template <typename E>
GridInputs<E> slice_batch(const GridInputs<E>& in, int64_t b);

}  // namespace aft::ops::test

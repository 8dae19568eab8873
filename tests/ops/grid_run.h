#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "aft/ops/grid.h"
#include "tests/ops/grid_cases.h"

// Runs of the grid operator as dense numbers in, dense numbers out: through the kernels (strided views inside larger
// buffers filled with NaN), through the reference, or by the plain computation.

namespace aft::ops::test {

/// All arrays dense: [B, T, width], kernel [H, s, s], mask [B, T] or empty.
template <typename T>
struct GridInputs {
  GridShape shape;
  std::vector<T> q, k, v, grad_y, kernel;
  std::vector<uint8_t> mask;
};

enum GridOutput { kGridY, kGridGradQ, kGridGradK, kGridGradV, kGridGradKernel, kGridOutputs };
constexpr std::array<const char*, kGridOutputs> kGridOutputNames = {"y", "grad_q", "grad_k", "grad_v", "grad_kernel"};

template <typename T>
struct GridOutputs {
  std::array<std::vector<T>, kGridOutputs> of;  // dense; empty where not wanted
};

struct GridRunOptions {
  ParallelFor parallel = {};
  bool backward = true;
  bool grad_kernel = true;
  int64_t shift = 1;  // elements between the start of the buffers and the first row
};

/// Inputs of the case's class, those of the windowed operator with its band as the kernel.
template <typename T>
GridInputs<T> make_grid_inputs(const GridCase& c);

template <typename R, typename T>
GridInputs<R> convert(const GridInputs<T>& in);

/// Forward and backward through the kernels. Fails the test if anything between the rows of an output was written.
template <typename T>
GridOutputs<T> run_grid(const GridInputs<T>& in, const GridRunOptions& options = {});

/// R: double or long double.
template <typename R>
GridOutputs<R> run_grid_reference(const GridInputs<R>& in, bool backward = true);

/// Dense, with the exact row maximum, N and D apart, gradients by differentiating that; in T.
template <typename T>
struct GridPlain {
  GridOutputs<T> outputs;
  std::array<std::vector<double>, kGridOutputs> largest_summand;
};
template <typename T>
GridPlain<T> run_grid_plain(const GridInputs<T>& in);

/// Row b of the batch alone.
template <typename T>
GridInputs<T> slice_batch(const GridInputs<T>& in, int64_t b);

}  // namespace aft::ops::test

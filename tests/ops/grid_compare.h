#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/ops/grid_run.h"
#include "tests/ops/window_compare.h"

namespace aft::ops::test {

/// A case with its truth, worked out once for all runs of it.
template <typename E>
struct JudgedGrid {
  GridCase grid_case;
  GridInputs<E> inputs;
  GridPlain<E> plain;
  GridOutputs<Truth<E>> reference;

  explicit JudgedGrid(const GridCase& c)
      : grid_case(c),
        inputs(make_grid_inputs<E>(c)),
        plain(run_grid_plain(inputs)),
        reference(run_grid_reference(convert<Truth<E>>(inputs))) {}
};

/// The absolute floor of the contract: 2^-60 of the largest value (f32, whose exponents end at 2^-149).
template <typename E>
double contract_floor(const GridInputs<E>& in, GridOutput output) {
  if (!std::is_same_v<Accumulate<E>, float>) return 0;
  double value = 0, grad = 0;
  for (const Accumulate<E> x : in.v) value = std::max(value, std::abs(double(x)));
  for (const Accumulate<E> x : in.grad_y) grad = std::max(grad, std::abs(double(x)));
  return std::ldexp(output == kGridY ? value : output == kGridGradV ? grad : grad * value, -60);
}

/// Judges a run's outputs; `pooled`: the SIMD target.
template <typename E>
void judge(ErrorRule<E>& rule, const JudgedGrid<E>& c, const GridOutputs<E>& out, const std::string& pooled) {
  const std::string key = std::string("conv2d, ") + kDtype<E> + ", " + c.grid_case.input + ", " + pooled;
  for (int o = 0; o < kGridOutputs; ++o) {
    if (c.reference.of[o].empty() && out.of[o].empty()) continue;
    rule.add(key, kGridOutputNames[o], describe(c.grid_case), out.of[o], c.plain.outputs.of[o], c.plain.scale[o],
             c.reference.of[o], contract_floor(c.inputs, GridOutput(o)));
  }
}

/// Runs the case as every SIMD target of the machine and adds the results to `rule`.
template <typename E>
void run_and_judge(ErrorRule<E>& rule, const JudgedGrid<E>& c, const GridRunOptions& options = {}) {
  for (const int64_t target : machine_targets()) {
    const TargetScope scope(target);
    judge(rule, c, run_grid(c.inputs, options), hwy::TargetName(target));
  }
}

template <typename E>
void expect_same_bits(const GridOutputs<E>& a, const GridOutputs<E>& b, const std::string& what,
                      bool except_kernel = false) {
  for (int o = 0; o < kGridOutputs; ++o) {
    if (except_kernel && o == kGridGradKernel) continue;
    EXPECT_EQ(first_difference(a.of[o], b.of[o]), -1) << kGridOutputNames[o] << "; " << what;
  }
}

}  // namespace aft::ops::test

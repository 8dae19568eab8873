// Gradients of the grid operator against central differences of the forward, in f64: the reference's own and the
// kernels' own.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/ops/grid_run.h"

namespace aft::ops::test {
namespace {

using Inputs = GridInputs<double>;
using Outputs = GridOutputs<double>;
using Run = std::function<Outputs(const Inputs&, bool backward)>;

void expect_central_differences(const GridCase& c, const Run& run) {
  Inputs in = make_grid_inputs<double>(c);
  const Outputs base = run(in, true);
  const auto check = [&](GridOutput output, std::vector<double>& x) {
    const std::vector<double>& gradient = base.of[output];
    ASSERT_EQ(x.size(), gradient.size()) << kGridOutputNames[output] << "; " << describe(c);
    for (size_t i = 0; i < x.size(); ++i) {
      const double at = x[i];
      long double size = 0;
      const auto loss = [&] {
        const Outputs out = run(in, false);
        long double sum = 0;
        size = 0;
        for (size_t n = 0; n < in.grad_y.size(); ++n) {
          const long double term = (long double)in.grad_y[n] * out.of[kGridY][n];
          sum += term, size += std::abs(term);
        }
        return sum;
      };
      const auto difference = [&](double h) {
        x[i] = at + h;
        const double x_up = x[i];
        const long double up = loss();
        x[i] = at - h;
        const double width = x_up - x[i];
        const long double down = loss();
        x[i] = at;
        return double((up - down) / width);
      };
      // Two steps and Richardson's combination: the error is of order h^4, and their difference (order h^2) shows how
      // smooth the loss is there.
      const double h = 1e-3;
      const double coarse = difference(2 * h);
      const double fine = difference(h);
      const double rounding = 16 * 0x1p-53 * double(size) / h;
      EXPECT_NEAR(gradient[i], (4 * fine - coarse) / 3, rounding + 1e-3 * std::abs(coarse - fine))
          << kGridOutputNames[output] << '[' << i << "]; " << describe(c);
    }
  };
  check(kGridGradQ, in.q);
  check(kGridGradK, in.k);
  check(kGridGradV, in.v);
  check(kGridGradKernel, in.kernel);
}

std::vector<GridCase> small_cases() {
  constexpr int64_t kGrids[][2] = {{1, 1}, {1, 5}, {3, 2}, {2, 6}};
  std::vector<GridCase> cases;
  uint64_t seed = 100;
  for (const auto& grid : kGrids) {
    for (const int64_t kernel : {1, 3, 7}) {
      GridCase c{.batch = 2, .height = grid[0], .width = grid[1], .channels = 3, .kernel = kernel, .seed = ++seed};
      if (seed % 2 == 0) c.channels = 6, c.heads = 3;
      c.key_per_head = seed % 3 == 0;
      c.masked = seed % 5 == 0;
      c.gate = seed % 4 == 1 ? Gate::kRelu : seed % 4 == 3 ? Gate::kNone : Gate::kSigmoid;
      cases.push_back(c);
    }
  }
  return cases;
}

TEST(GridGradient, ReferenceAgreesWithCentralDifferences) {
  for (const GridCase& c : small_cases()) {
    expect_central_differences(c, [](const Inputs& in, bool backward) { return run_grid_reference(in, backward); });
  }
}

TEST(GridGradient, KernelsAgreeWithCentralDifferences) {
  for (const GridCase& c : small_cases()) {
    expect_central_differences(c, [](const Inputs& in, bool backward) { return run_grid(in, {.backward = backward}); });
  }
}

// An image that fails the certificate is done by other code.
TEST(GridGradient, ExactBackwardAgreesWithCentralDifferences) {
  GridCase c{.batch = 2, .height = 3, .width = 4, .channels = 4, .heads = 2, .kernel = 3, .seed = 7};
  RedoCount redone;
  expect_central_differences(c, [&redone](const Inputs& in, bool backward) {
    Inputs shifted = in;
    for (size_t i = 0; i < 4; ++i) shifted.k[i] += 900;  // position 0 of image 0 outweighs all,
    for (size_t h = 0; h < 2; ++h)
      shifted.kernel[9 * h] -= 900;  // but not for the target that sees it one up, one left
    return run_grid(shifted, {.redone = &redone, .backward = backward});
  });
  EXPECT_GT(redone.redone, 0);
}

}  // namespace
}  // namespace aft::ops::test

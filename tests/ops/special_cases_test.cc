// What holds of one operator alone: what it must equal, and what no other has.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "aft/ops/local_bias.h"
#include "tests/ops/judge.h"

namespace aft::ops::test {
namespace {

template <typename T>
class SpecialCases : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(SpecialCases, Dtypes);

// On a grid of one row the middle row of the kernel is the band of conv1d without `causal`.
TYPED_TEST(SpecialCases, GridOfOneRowIsConv1d) {
  using T = TypeParam;
  ErrorRule<T> rule;
  for (const int64_t width : {1, 9, 40, 97}) {
    for (const int64_t kernel : {1, 7, 31, 201}) {
      Case c{.op = Operator::kConv1d, .batch = 3, .time = width, .channels = 12, .heads = 3, .causal = false};
      const int64_t reach = c.left = c.right = kernel / 2;
      c.seed = 900 + width + kernel;
      const Judged<T> judged(c);
      Inputs<T> grid = judged.inputs;
      set_grid(grid.c, 1, width, kernel);
      grid.c.left = grid.c.right = grid.ring = 0;
      grid.rows = grid.columns = kernel;
      const int64_t size = c.heads * kernel * kernel;
      grid.set("weights", {Along::kNothing, size, std::vector<T>(size, T(77))});  // rows that meet nothing
      const auto middle = [&](auto& x, int64_t h) { return x.begin() + (h * kernel + reach) * kernel; };
      for (int64_t h = 0; h < c.heads; ++h) {
        std::copy_n(judged.inputs["weights"].begin() + h * kernel, kernel, middle(grid["weights"], h));
      }
      Outputs<T> out = run(grid);
      const std::vector<T> grad_kernel = out["grad_weights"];
      out["grad_weights"].clear();
      for (int64_t h = 0; h < c.heads; ++h) {
        const auto from = middle(grad_kernel, h);
        out["grad_weights"].insert(out["grad_weights"].end(), from, from + kernel);
      }
      judge(rule, judged, out, "as conv2d");
      for (int64_t i = 0; i < size; ++i) {
        if (i / kernel % kernel == reach) continue;
        ASSERT_EQ(grad_kernel[i], 0) << "grad_kernel[" << i << "]";
      }
    }
  }
  rule.check();
}

// The kernel of weights 0, whatever its size, is no kernel at all.
TYPED_TEST(SpecialCases, KernelOfZerosIsAveraging) {
  using T = TypeParam;
  ErrorRule<T> rule;
  for (const int64_t kernel : {1, 3, 9, 31}) {
    Case c{.batch = 2, .channels = 9, .heads = 9, .seed = 70};
    set_grid(c, 6, 7, kernel);
    Inputs<T> in = make_inputs<T>(c);
    std::fill(in["weights"].begin(), in["weights"].end(), T(0));
    Inputs<T> none = in;
    none.c.kernel = none.rows = none.columns = 1;
    none.set("weights", {Along::kNothing, 9, std::vector<T>(9, T(0))});
    Outputs<T> out = run(in);
    const Outputs<T> average = run(none);
    for (const char* name : {"y", "grad_k"}) out[name] = average[name];
    judge(rule, Judged<T>(in), out, "s=1");
  }
  rule.check();
}

// The factor whose gradient is not wanted is all that the other's needs.
TYPED_TEST(SpecialCases, LocalBiasMissesNoUnwantedGradient) {
  using T = TypeParam;
  const Inputs<T> in = make_inputs<T>(
      {.op = Operator::kLocalBias, .time = 50, .heads = 2, .left = 6, .right = 2, .factors = 9, .seed = 4});
  const Outputs<T> both = run(in);
  const LocalBiasShape shape = {.heads = 2, .rows = 50, .width = 9, .left = 6, .right = 2};
  std::vector<T> only(in["u"].size());
  local_bias_backward<T>({{shape, nullptr, in["v"].data()}, in["grad_band"].data(), only.data(), nullptr});
  EXPECT_EQ(only, both["grad_u"]);
  local_bias_backward<T>({{shape, in["u"].data(), nullptr}, in["grad_band"].data(), nullptr, only.data()});
  EXPECT_EQ(only, both["grad_v"]);
}

TYPED_TEST(SpecialCases, LocalBiasNanReachesOnlyWhatSeesIt) {
  using T = TypeParam;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const Case c{.op = Operator::kLocalBias, .time = 40, .left = 5, .right = 2, .factors = 21, .seed = 6};
  const int64_t columns = c.left + 1 + c.right;
  Inputs<T> in = make_inputs<T>(c);
  in["u"][13 * c.factors + 20] = nan;
  in["v"][20 * c.factors + 3] = nan;
  // Outside the sequence anything may stand.
  for (int64_t j = 0; j < c.left; ++j) in["grad_band"][j] = nan;
  in["grad_band"].back() = nan;
  const Outputs<T> out = run(in);
  for (int64_t t = 0; t < c.time; ++t) {
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t source = t - c.left + j;
      const bool inside = source >= 0 && source < c.time;
      EXPECT_EQ(std::isnan(out["band"][t * columns + j]), inside && (t == 13 || source == 20)) << t << ' ' << source;
    }
    for (int64_t f = 0; f < c.factors; ++f) {
      const auto sees = [&](int64_t target, int64_t source) {
        return source >= target - c.left && source <= target + c.right;
      };
      EXPECT_EQ(std::isnan(out["grad_u"][t * c.factors + f]), f == 3 && sees(t, 20)) << t << ' ' << f;
      EXPECT_EQ(std::isnan(out["grad_v"][t * c.factors + f]), f == 20 && sees(13, t)) << t << ' ' << f;
    }
  }
}

}  // namespace
}  // namespace aft::ops::test

// The grid operator over the whole list of cases, judged by the error rule, as every SIMD target of the machine; hard
// numbers; and what it must equal.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "aft/error.h"
#include "ops/common/scratch.h"
#include "tests/ops/grid_compare.h"
#include "tests/ops/redo_off.h"
#include "tests/ops/threads.h"

namespace aft::ops::test {
namespace {

template <typename T>
class GridTest : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(GridTest, Dtypes);

template <typename E>
class GridEveryDtype : public ::testing::Test {};
using EveryDtype = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(GridEveryDtype, EveryDtype);

TYPED_TEST(GridEveryDtype, ErrorRuleHoldsForEveryGridAndKernel) {
  using E = TypeParam;
  ErrorRule<E> rule;
  Threads threads(3);
  int64_t n = 0;
  for (const GridCase& c : grid_cases()) {
    const GridRunOptions serial;
    const GridRunOptions parallel = {.parallel = threads.parallel_for(), .shift = 3};
    run_and_judge(rule, JudgedGrid<E>(c), ++n % 4 == 0 ? parallel : serial);
  }
  // grad_q and grad_k come from values less the mean of their image: small ones are less exact than the plain ones.
  rule.check_each_element(/*maxima=*/false);
}

TYPED_TEST(GridEveryDtype, ErrorRuleHoldsForHardNumbers) {
  using E = TypeParam;
  for (const std::string& input : hard_inputs()) {
    SCOPED_TRACE(input);
    ErrorRule<E> rule;
    for (const GridCase& c : hard_grid_cases(input)) run_and_judge(rule, JudgedGrid<E>(c));
    rule.check();
  }
}

TYPED_TEST(GridTest, EmptyBatchAndNoChannels) {
  using T = TypeParam;
  EXPECT_TRUE(run_grid(make_grid_inputs<T>({.batch = 0, .height = 3, .width = 4, .channels = 3, .kernel = 3}))
                  .of[kGridY]
                  .empty());
  EXPECT_TRUE(run_grid(make_grid_inputs<T>({.batch = 2, .height = 3, .width = 4, .channels = 0, .kernel = 3}))
                  .of[kGridY]
                  .empty());
  // No position: the kernel's gradient is still written.
  const GridOutputs<T> out = run_grid(make_grid_inputs<T>({.height = 0, .width = 4, .channels = 2, .kernel = 3}));
  EXPECT_EQ(out.of[kGridGradKernel], std::vector<T>(9, T(0)));
}

// On a grid of one row the middle row of the kernel is the band of conv1d without `causal`.
TYPED_TEST(GridTest, OneRowIsConv1d) {
  using T = TypeParam;
  ErrorRule<T> rule;
  for (const int64_t width : {1, 9, 40, 97}) {
    for (const int64_t kernel : {1, 7, 31, 201}) {
      const int64_t reach = (kernel - 1) / 2;
      const WindowCase c{.batch = 3,
                         .time = width,
                         .channels = 12,
                         .heads = 3,
                         .causal = false,
                         .has_band = true,
                         .left = reach,
                         .right = reach,
                         .shared_row = true,
                         .seed = 900 + static_cast<uint64_t>(width + kernel)};
      const JudgedCase<T> judged(c);
      const WindowInputs<T>& in = judged.inputs;
      GridInputs<T> grid{
          {c.batch, 1, width, c.channels, c.heads, c.channels, kernel}, in.q, in.k, in.v, in.grad_y, {}, {}};
      grid.kernel.assign(c.heads * kernel * kernel, T(77));  // rows that meet nothing
      const auto middle = [&](auto& x, int64_t h) { return x.begin() + (h * kernel + reach) * kernel; };
      for (int64_t h = 0; h < c.heads; ++h) {
        std::copy_n(in.band.begin() + h * kernel, kernel, middle(grid.kernel, h));
      }
      const GridOutputs<T> got = run_grid(grid);
      WindowOutputs<T> out;
      out.of[kY] = got.of[kGridY];
      out.of[kGradQ] = got.of[kGridGradQ];
      out.of[kGradK] = got.of[kGridGradK];
      out.of[kGradV] = got.of[kGridGradV];
      for (int64_t h = 0; h < c.heads; ++h) {
        const auto from = middle(got.of[kGridGradKernel], h);
        out.of[kGradBand].insert(out.of[kGradBand].end(), from, from + kernel);
      }
      judge(rule, judged, out, "as conv2d");
      for (int64_t i = 0; i < c.heads * kernel * kernel; ++i) {
        if (i / kernel % kernel == reach) continue;
        ASSERT_EQ(got.of[kGridGradKernel][i], 0) << "grad_kernel[" << i << "]";
      }
    }
  }
  rule.check();
}

// The kernel of weights 0, whatever its size, is no kernel at all.
TYPED_TEST(GridTest, KernelOfZerosIsAveraging) {
  using T = TypeParam;
  ErrorRule<T> rule;
  for (const int64_t kernel : {1, 3, 9, 31}) {
    GridCase c{.batch = 2, .height = 6, .width = 7, .channels = 9, .heads = 9, .kernel = kernel, .seed = 70};
    JudgedGrid<T> judged(c);
    GridInputs<T> none = judged.inputs;
    none.shape.kernel = 1;
    none.kernel.assign(9, T(0));
    judged.inputs.kernel.assign(9 * kernel * kernel, T(0));
    judged.plain = run_grid_plain(judged.inputs);
    judged.reference = run_grid_reference(convert<Truth<T>>(judged.inputs));
    GridOutputs<T> out = run_grid(judged.inputs);
    const GridOutputs<T> plain_average = run_grid(none);
    out.of[kGridY] = plain_average.of[kGridY];
    out.of[kGridGradK] = plain_average.of[kGridGradK];
    judge(rule, judged, out, "s=1");
  }
  rule.check();
}

TYPED_TEST(GridEveryDtype, RowsAreTheSameAloneAndWithAnyThreadsBitForBit) {
  using E = TypeParam;
  uint64_t seed = 300;
  for (const char* input : {"normal", "apart_1e4", "absent"}) {
    for (const int64_t kernel : {1, 3, 11, 31}) {
      for (const bool key_per_head : {false, true}) {
        const GridCase c{.input = input,
                         .batch = 5,
                         .height = 6,
                         .width = 7,
                         .channels = 69,
                         .heads = 3,
                         .key_per_head = key_per_head,
                         .kernel = kernel,
                         .masked = kernel == 3,
                         .seed = ++seed};
        const GridInputs<E> in = make_grid_inputs<E>(c);
        const GridOutputs<E> together = run_grid(in);
        for (const int64_t threads : {2, 3, 7}) {
          Threads pool(threads);
          expect_same_bits(together, run_grid(in, {.parallel = pool.parallel_for(), .shift = threads}),
                           describe(c) + " threads=" + std::to_string(threads));
        }
        for (int64_t b = 0; b < c.batch; ++b) {
          const GridOutputs<E> alone = run_grid(slice_batch(in, b));
          for (int o = 0; o < kGridGradKernel; ++o) {
            const int64_t size = alone.of[o].size();
            const std::vector<Accumulate<E>> row(together.of[o].begin() + b * size,
                                                 together.of[o].begin() + (b + 1) * size);
            EXPECT_EQ(first_difference(alone.of[o], row), -1) << kGridOutputNames[o] << "; " << describe(c);
          }
        }
        scratch_set_poison(true);
        expect_same_bits(together, run_grid(in), describe(c) + " scratch poisoned");
        scratch_set_poison(false);
        expect_same_bits(together, run_grid(in, {.grad_kernel = false}), describe(c) + " no grad_kernel", true);
      }
    }
  }
}

TYPED_TEST(GridTest, RedoMattersAndIsCounted) {
  using T = TypeParam;
  // The largest keys carry the smallest weights: every row's certificate fails.
  GridCase c{.batch = 2, .height = 5, .width = 6, .channels = 9, .kernel = 11, .seed = 5};
  JudgedGrid<T> judged(c);
  for (size_t i = 0; i < judged.inputs.k.size(); ++i) judged.inputs.k[i] += i / 9 % 30 == 14 ? T(1e4) : T(0);
  judged.inputs.kernel.assign(judged.inputs.kernel.size(), T(-2e4));
  judged.inputs.kernel[60] = 1;
  judged.reference = run_grid_reference(convert<Truth<T>>(judged.inputs));
  RedoCount redone;
  const auto largest_error = [&](std::initializer_list<GridOutput> outputs) {
    const GridOutputs<T> out = run_grid(judged.inputs, {.redone = &redone});
    double largest = 0;
    for (const GridOutput o : outputs) {
      for (size_t i = 0; i < out.of[o].size(); ++i) {
        const double error = double(std::abs(out.of[o][i] - judged.reference.of[o][i]));
        largest = std::max(largest, std::isfinite(error) ? error : 1e30);
      }
    }
    return largest;
  };
  EXPECT_LT(largest_error({kGridY, kGridGradQ, kGridGradK, kGridGradV, kGridGradKernel}), 1e-4);
  EXPECT_GT(redone.redone, 0);
  EXPECT_LE(redone.redone, redone.total);
  RedoCount ordinary;
  run_grid(make_grid_inputs<T>({.batch = 2, .height = 14, .width = 14, .channels = 9, .kernel = 11, .seed = 6}),
           {.redone = &ordinary});
  EXPECT_EQ(ordinary.redone, 0) << "ordinary numbers were redone";
  EXPECT_GT(ordinary.total, 0);
  const RedoOff off;
  EXPECT_GT(largest_error({kGridY}), 0.01) << "forward: nothing went wrong without the redo";
  EXPECT_GT(largest_error({kGridGradV}), 0.01) << "backward: nothing went wrong without the redo";
}

TYPED_TEST(GridTest, FiniteBeyondTheRange) {
  using T = TypeParam;
  for (const T huge : {T(1e30), std::numeric_limits<T>::max()}) {
    for (const int which : {0, 1, 2, 3}) {  // keys, weights, both, values
      for (const int64_t kernel : {1, 5, 31}) {
        const GridCase c{.batch = 2, .height = 4, .width = 9, .channels = 5, .kernel = kernel, .seed = 11};
        GridInputs<T> in = make_grid_inputs<T>(c);
        const auto blow_up = [&](std::vector<T>& x, T size) {
          for (size_t i = 0; i < x.size(); i += 3) x[i] = i % 2 == 0 ? size : -size;
        };
        if (which == 0 || which == 2) blow_up(in.k, huge);
        if (which == 1 || which == 2) blow_up(in.kernel, huge);
        if (which == 3) blow_up(in.v, T(1e30));
        const GridOutputs<T> out = run_grid(in);
        for (int o = 0; o < kGridOutputs; ++o) {
          for (const T x : out.of[o]) {
            ASSERT_TRUE(std::isfinite(x))
                << kGridOutputNames[o] << ", huge = " << huge << ", which = " << which << "; " << describe(c);
          }
        }
      }
    }
  }
}

// NaN and +inf reach what sees them and nothing else: one batch row's channel, and of a weight the targets it serves.
TYPED_TEST(GridTest, NonFiniteReachesOnlyTheRowsThatSeeIt) {
  using T = TypeParam;
  const GridCase c{.batch = 3, .height = 5, .width = 6, .channels = 21, .heads = 21, .kernel = 5, .seed = 21};
  const int64_t time = c.height * c.width;
  const GridInputs<T> in = make_grid_inputs<T>(c);
  const GridOutputs<T> clean = run_grid(in);
  for (const T x : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
    for (const bool in_key : {true, false}) {
      GridInputs<T> bad = in;
      (in_key ? bad.k : bad.v)[(time + 8) * c.channels + 4] = x;
      const GridOutputs<T> out = run_grid(bad);
      for (const GridOutput o : {kGridY, kGridGradQ, kGridGradK, kGridGradV}) {
        for (size_t i = 0; i < out.of[o].size(); ++i) {
          const bool sees = int64_t(i) / c.channels / time == 1 && i % c.channels == 4;
          if (sees && o <= kGridGradQ) {
            ASSERT_FALSE(std::isfinite(out.of[o][i])) << kGridOutputNames[o] << '[' << i << ']';
          }
          if (!sees) {
            ASSERT_TRUE(same_bits(out.of[o][i], clean.of[o][i])) << kGridOutputNames[o] << '[' << i << ']';
          }
        }
      }
    }
    // The weight one row up and two columns left: targets in row 0 and columns 0 and 1 have no such source.
    GridInputs<T> bad = in;
    bad.kernel[(4 * c.kernel + 1) * c.kernel] = x;
    const GridOutputs<T> out = run_grid(bad);
    for (int64_t i = 0; i < int64_t(out.of[kGridY].size()); ++i) {
      const int64_t t = i / c.channels % time;
      const bool sees = i % c.channels == 4 && t >= c.width && t % c.width >= 2;
      ASSERT_EQ(std::isfinite(out.of[kGridY][i]), !sees) << "y[" << i << "] with w = " << x;
    }
  }
}

// What is absent has no value, it may be NaN; hidden by the mask is the same as absent; nothing to see gives zero.
TYPED_TEST(GridTest, AbsentSourcesMayHoldAnything) {
  using T = TypeParam;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (const int64_t kernel : {1, 5, 31}) {
    GridCase c{.batch = 3, .height = 5, .width = 6, .channels = 6, .kernel = kernel, .masked = true, .seed = 31};
    const GridInputs<T> masked = make_grid_inputs<T>(c);
    GridInputs<T> absent = masked;
    absent.mask.clear();
    GridInputs<T> filled = masked;
    for (size_t i = 0; i < masked.k.size(); ++i) {
      if (masked.mask[i / c.channels] != 0) continue;
      absent.k[i] = -std::numeric_limits<T>::infinity();
      absent.v[i] = filled.v[i] = filled.k[i] = nan;
    }
    const int64_t size = c.height * c.width * c.channels;
    for (int64_t i = 2 * size; i < 3 * size; ++i) {  // the last batch row sees nothing
      filled.q[i] = nan;
      filled.grad_y[i] = i % 2 == 0 ? nan : std::numeric_limits<T>::infinity();
    }
    const GridOutputs<T> out = run_grid(masked);
    expect_same_bits(out, run_grid(absent), describe(c) + " absent");
    expect_same_bits(out, run_grid(filled), describe(c) + " filled");
    for (const GridOutput o : {kGridY, kGridGradQ, kGridGradK, kGridGradV}) {
      for (int64_t i = 2 * size; i < 3 * size; ++i) ASSERT_EQ(out.of[o][i], 0) << kGridOutputNames[o];
    }
  }
}

template <typename Change>
std::string forward_error(const Change& change) {
  GridForward<float> p;
  std::vector<float> x(100);
  p.in.shape = {1, 2, 3, 4, 2, 4, 3};
  p.in.q = p.in.k = p.in.v = {x.data(), 24, 4};
  p.y = {x.data(), 24, 4};
  p.in.kernel = x.data();
  change(p);
  try {
    grid_forward(p);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(GridErrors, NameTheArgumentAndTheRemedy) {
  using P = GridForward<float>;
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.kernel = 4; }),
            "kernel: expected an odd size, so that it has a centre, got 4; use 5");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.kernel = 0; }),
            "kernel: expected an odd size, so that it has a centre, got 0; use 1");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.heads = 3; }), "heads: expected a divisor of channels = 4, got 3");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.key_channels = 3; }),
            "key_channels: expected channels = 4 or heads = 2, got 3");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.channels = 0; }), "key_channels: expected channels = 0, got 4");
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.height = -1; }), "height: expected at least 0, got -1");
  // Their product is 2 in 64 bits.
  EXPECT_EQ(forward_error([](P& p) { p.in.shape.height = 3, p.in.shape.width = 6148914691236517206; }),
            "height, width: expected a grid of fewer than 2^63 positions, got 3 x 6148914691236517206");
  EXPECT_EQ(forward_error([](P& p) { p.in.q.data = nullptr; }), "q: expected a tensor, got null");
  EXPECT_EQ(forward_error([](P& p) { p.in.kernel = nullptr; }), "kernel: expected weights, got null");
}

}  // namespace
}  // namespace aft::ops::test

// The windowed operator over the whole list of cases, judged by the error rule, as every SIMD target of the machine.

#include <gtest/gtest.h>

#include "tests/ops/threads.h"
#include "tests/ops/window_compare.h"

namespace aft::ops::test {
namespace {

template <typename T>
class WindowTest : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(WindowTest, Dtypes);

// The plain computation is itself an independent one: in f64 it must agree with the reference closely.
TYPED_TEST(WindowTest, PlainComputationAgreesWithReference) {
  using E = TypeParam;
  for (const WindowCase& c : other_shape_cases()) {
    const JudgedCase<E> judged(c);
    for (int output = 0; output < kOutputs; ++output) {
      ASSERT_EQ(judged.plain.outputs.of[output].size(), judged.reference.of[output].size()) << kOutputNames[output];
      for (size_t i = 0; i < judged.reference.of[output].size(); ++i) {
        ASSERT_NEAR(double(judged.plain.outputs.of[output][i]), double(judged.reference.of[output][i]),
                    1000 * judged.plain.scale.of[output][i])
            << kOutputNames[output] << '[' << i << "]; " << describe(c);
      }
    }
  }
}

TYPED_TEST(WindowTest, ErrorRuleHoldsForEveryLengthAndWindow) {
  using E = TypeParam;
  ErrorRule<E> rule;
  Threads threads(3);
  int64_t n = 0;
  for (const WindowCase& c : window_cases()) {
    const RunOptions serial;
    const RunOptions parallel = {.parallel = threads.parallel_for(), .shift = 3};
    run_and_judge(rule, JudgedCase<E>(c), ++n % 4 == 0 ? parallel : serial);
  }
  rule.check_each_element();
}

TYPED_TEST(WindowTest, EmptyBatchAndNoChannels) {
  using E = TypeParam;
  for (const bool band : {false, true}) {
    WindowCase c{.batch = 0, .time = 5, .channels = 3, .seed = 1};
    if (band) set_window(c, 3);
    EXPECT_TRUE(run_kernel(make_inputs<E>(c)).of[kY].empty());
    c = {.batch = 2, .time = 5, .channels = 0, .seed = 1};
    if (band) set_window(c, 3);
    EXPECT_TRUE(run_kernel(make_inputs<E>(c)).of[kY].empty());
  }
}

TYPED_TEST(WindowTest, RepeatedRunsAndAlignmentsAgreeBitForBit) {
  using E = TypeParam;
  for (const WindowCase& c : other_shape_cases()) {
    const WindowInputs<E> in = make_inputs<E>(c);
    const WindowOutputs<E> first = run_kernel(in);
    for (const int64_t shift : {1, 0, 5, 16}) {
      expect_same_bits(first, run_kernel(in, {.shift = shift}), describe(c) + " shift=" + std::to_string(shift));
    }
  }
}

}  // namespace
}  // namespace aft::ops::test

// The rule that judges the operators, judged: it passes what rounds as the plain computation does, and fails what loses
// some bits in one place.

#include "tests/ops/error_rule.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>

#include "tests/ops/judge.h"
#include "tests/ops/plain_number.h"

namespace aft::ops::test {
namespace {

template <typename T>
T without_bits(T x, int bits) {
  const double unit = std::ldexp(ulp_of<T>(std::abs(double(x))), bits);
  return T(std::trunc(double(x) / unit) * unit);
}

template <typename T>
class ErrorRuleTest : public ::testing::Test {
  // What is judged here shall fail: nothing for the report.
 protected:
  static void SetUpTestSuite() { unsetenv("AFT_ERROR_REPORT"); }
};
using Dtypes = ::testing::Types<float, double>;
TYPED_TEST_SUITE(ErrorRuleTest, Dtypes);

// Few roundings where one source outweighs all others, many of ordinary numbers.
TYPED_TEST(ErrorRuleTest, CatchesThreeLostBitsInOneOutput) {
  using T = TypeParam;
  for (const char* input : {"both_65504", "normal"}) {
    for (const std::string lossy : {"", "y", "grad_q", "grad_v"}) {
      ErrorRule<T> rule;
      for (uint64_t seed = 1; seed <= 11; seed += 2) {  // odd: no final state, where plain itself is far off at 65504
        Case c{.input = input, .batch = 3, .time = 40, .channels = 11, .seed = seed};
        set_window(c, 7);
        const Judged<T> judged(c);
        Outputs<T> out = run(judged.inputs);
        if (!lossy.empty()) {
          for (T& x : out[lossy]) x = without_bits(x, 3);
        }
        judge(rule, judged, out);
      }
      SCOPED_TRACE(input);
      if (lossy.empty()) {
        rule.check_each_element(/*maxima=*/false);
        continue;
      }
      ::testing::TestPartResultArray failures;
      {
        const ::testing::ScopedFakeTestPartResultReporter reporter(&failures);
        rule.check();
      }
      EXPECT_GT(failures.size(), 0) << lossy;
      for (int i = 0; i < failures.size(); ++i) {
        EXPECT_NE(std::string(failures.GetTestPartResult(i).message()).find(lossy), std::string::npos);
      }
    }
  }
}

// A product by 1 rounds nothing, but is charged a rounding: the kernel may differ by one, not by two.
TYPED_TEST(ErrorRuleTest, AllowsRoundingsWhereThePlainComputationIsExact) {
  using T = TypeParam;
  const T unit = std::numeric_limits<T>::epsilon();
  const std::vector<PlainNumber<T>> products(4, PlainNumber<T>(T(1.5)) * PlainNumber<T>(T(1)));
  std::vector<T> plain;
  std::vector<double> scale;
  store_plain<T>(products, plain, scale);
  EXPECT_EQ(plain, std::vector<T>(4, T(1.5)));
  EXPECT_NEAR(scale[0] / unit, 0.75, 1e-6);
  const std::vector<Truth<T>> reference(4, 1.5);
  const auto failures_of = [&](T error) {
    ErrorRule<T> rule;
    rule.add("product", "x", "", {plain[0], plain[1] + error, plain[2], plain[3]}, plain, scale, reference);
    ::testing::TestPartResultArray failures;
    const ::testing::ScopedFakeTestPartResultReporter reporter(&failures);
    rule.check();
    return failures.size();
  };
  EXPECT_EQ(failures_of(unit), 0);
  EXPECT_EQ(failures_of(2 * unit), 2);  // maximum and root mean square
}

// Errors of one scale, which a maximum may have, are too large for a mean: unless fewer cases make it up than it asks
// for, however many small ones there are.
TYPED_TEST(ErrorRuleTest, AMeanIsOfTheCasesThatMakeItUp) {
  using T = TypeParam;
  const double unit = 1024 * std::numeric_limits<T>::epsilon();
  const auto failures_of = [&](int large, double error, double cases) {
    ErrorRule<T> rule;
    for (int i = 0; i < 100; ++i) {
      const double scale = i < large ? unit : unit / 1024;
      rule.add("numbers", "x", "", std::vector<T>(30, T(1.5 + (i < large ? error * scale : 0))),
               std::vector<T>(30, T(1.5)), std::vector<double>(30, scale), std::vector<Truth<T>>(30, 1.5));
    }
    ::testing::TestPartResultArray failures;
    const ::testing::ScopedFakeTestPartResultReporter reporter(&failures);
    rule.check(/*smallest=*/1000, cases);
    return failures.size();
  };
  EXPECT_EQ(failures_of(1, 1, /*cases=*/0), 1);
  EXPECT_EQ(failures_of(1, 1, 2), 0);
  EXPECT_EQ(failures_of(1, 2.5, 2), 1);
  EXPECT_EQ(failures_of(11, 1, 12), 0);
  EXPECT_EQ(failures_of(13, 1, 12), 1);
  EXPECT_EQ(failures_of(13, 0.8, 12), 0);
  EXPECT_EQ(failures_of(13, 2.5, 12), 2);
}

// By hand: in the orders of 3, 4 and -5 the squares of the partial sums 3 7 2, 3 -2 2, 4 7 2, 4 -1 2, -5 -2 2, -5 -1 2
// come to 62, 17, 69, 21, 33 and 30, on average 232 / 6.
TYPED_TEST(ErrorRuleTest, ASumIsChargedTheMeanOverItsOrders) {
  using T = TypeParam;
  using Number = PlainNumber<T>;
  const Number sum = Number::sum({T(3), T(4), T(-5)});
  const double unit = std::numeric_limits<T>::epsilon() / 2;
  EXPECT_EQ(sum.value(), T(2));
  EXPECT_NEAR(double(sum.square()) / (unit * unit), 232.0 / 6, 1e-9);
  EXPECT_EQ(Number::sum({}).value(), T(0));
}

}  // namespace
}  // namespace aft::ops::test

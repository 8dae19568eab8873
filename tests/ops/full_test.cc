// The dense operator over the whole list of cases, judged by the error rule, as every SIMD target of the machine; its
// state, its independence, and what no tolerance covers.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <string>
#include <type_traits>

#include "aft/error.h"
#include "ops/common/scratch.h"
#include "tests/ops/element.h"
#include "tests/ops/error_rule.h"
#include "tests/ops/full_run.h"
#include "tests/ops/targets.h"
#include "tests/ops/threads.h"

namespace aft::ops::test {
namespace {

template <typename E>
using Judge = std::conditional_t<std::is_same_v<E, double>, long double, double>;

template <typename E>
std::string dtype_name() {
  return std::is_same_v<E, float>      ? "f32"
         : std::is_same_v<E, double>   ? "f64"
         : std::is_same_v<E, BFloat16> ? "bf16"
                                       : "f16";
}

// A case with its truth and the plain computation.
template <typename E>
struct Judged {
  using T = Accumulate<E>;
  FullCase full_case;
  FullInputs<T> inputs;
  FullPlain<E> plain;
  FullOutputs<Judge<E>> truth;

  explicit Judged(const FullCase& c)
      : full_case(c),
        inputs(make_full_inputs<E>(c)),
        plain(run_full_plain<E>(inputs)),
        truth(run_full_reference(convert<Judge<E>>(inputs))) {}

  double floor(int output) const {
    if (std::is_same_v<E, double>) return 0;
    const auto size = [](std::initializer_list<const std::vector<T>*> all) {
      double x = 0;
      for (const auto* values : all) {
        for (const T value : *values) x = std::max(x, std::abs(double(value)));
      }
      return x;
    };
    const double value = size({&inputs.v, &inputs.initial.ring_value});
    const double grad = size({&inputs.grad_y});
    const bool values = output == kFullGradV || output == kFullGradRingValue;
    return std::ldexp(output == kFullY ? value : values ? grad : grad * value, -60);
  }

  /// `pooled`: names of the pool beside operator, dtype and class of input.
  void judge(ErrorRule<E>& rule, const FullOutputs<T>& out, const std::string& pooled, bool backward = true) const {
    const std::string key = "full, " + dtype_name<E>() + ", " + full_case.input + ", " + pooled;
    for (int output = 0; output < (backward ? kFullOutputs : 1); ++output) {
      rule.add(key, kFullOutputNames[output], describe(full_case), out.of[output], plain.outputs.of[output],
               plain.scale[output], truth.of[output], floor(output));
    }
  }
};

template <typename T>
void expect_same(const std::vector<T>& a, const std::vector<T>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
    ASSERT_EQ(std::bit_cast<Bits>(a[i]), std::bit_cast<Bits>(b[i]))
        << what << " [" << i << "]: " << a[i] << " " << b[i];
  }
}

template <typename T>
void expect_same(const FullOutputs<T>& a, const FullOutputs<T>& b, const std::string& what) {
  for (int output = 0; output < kFullOutputs; ++output) {
    expect_same(a.of[output], b.of[output], what + ": " + kFullOutputNames[output]);
  }
  EXPECT_EQ(a.final.position, b.final.position) << what;
  expect_same(a.final.ring_key, b.final.ring_key, what + ": ring_key");
  expect_same(a.final.ring_value, b.final.ring_value, what + ": ring_value");
}

template <typename E>
class FullTest : public ::testing::Test {};
using Elements = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(FullTest, Elements);

TYPED_TEST(FullTest, ErrorRuleHoldsForEveryCaseAndTarget) {
  using E = TypeParam;
  Threads threads(3);
  ErrorRule<E> rule;
  int64_t n = 0;
  for (const FullCase& c : full_cases()) {
    const Judged<E> judged(c);
    for (const int64_t target : machine_targets()) {
      const TargetScope scope(target);
      FullOptions options;
      if (++n % 2 == 0) options = {.parallel = threads.parallel_for(), .shift = 3};
      judged.judge(rule, run_full<E>(judged.inputs, options), hwy::TargetName(target));
    }
  }
  rule.check_each_element();
}

TYPED_TEST(FullTest, ErrorRuleHoldsForHardNumbers) {
  using E = TypeParam;
  for (const std::string& input : hard_inputs()) {
    ErrorRule<E> rule;
    for (const FullCase& c : full_hard_cases(input)) {
      const Judged<E> judged(c);
      for (const int64_t target : machine_targets()) {
        const TargetScope scope(target);
        const std::string name = hwy::TargetName(target);
        judged.judge(rule, run_full<E>(judged.inputs), name);
        if (c.causal && judged.inputs.has_final) judged.judge(rule, run_full_steps<E>(judged.inputs), name, false);
      }
    }
    rule.check_each_element(/*maxima=*/false);
  }
}

TYPED_TEST(FullTest, StepsGiveTheOutputsOfTheWhole) {
  using E = TypeParam;
  ErrorRule<E> rule;
  for (const FullCase& c : full_cases()) {
    if (!c.causal || c.masked || !c.lengths.empty() || c.targets > 100) continue;
    const Judged<E> judged(c);
    if (!judged.inputs.has_final) continue;
    const auto whole = run_full<E>(judged.inputs, {.backward = false});
    const auto steps = run_full_steps<E>(judged.inputs);
    judged.judge(rule, steps, "steps", false);
    EXPECT_EQ(whole.final.position, steps.final.position);
    expect_same(whole.final.ring_key, steps.final.ring_key, describe(c));
    expect_same(whole.final.ring_value, steps.final.ring_value, describe(c));
  }
  rule.check_each_element();
}

TYPED_TEST(FullTest, ChunksGiveTheBitsOfTheWhole) {
  using E = TypeParam;
  for (const FullCase& c : full_cases()) {
    if (!c.causal || !c.lengths.empty() || c.targets < 3) continue;
    const auto in = make_full_inputs<E>(c);
    if (!in.has_final) continue;
    const auto whole = run_full<E>(in, {.backward = false});
    const int64_t middle = 1 + static_cast<int64_t>(c.seed) % (c.targets - 1);
    auto first_half = slice_time(in, 0, middle, in.initial);
    const auto first = run_full<E>(first_half, {.backward = false});
    const auto second = run_full<E>(slice_time(in, middle, c.targets, first.final), {.backward = false});
    for (int64_t b = 0; b < c.batch; ++b) {
      for (int64_t i = 0; i < c.targets * c.channels; ++i) {
        const int64_t t = i / c.channels;
        const auto& part = t < middle ? first.of[kFullY] : second.of[kFullY];
        const int64_t at =
            t < middle ? b * middle * c.channels + i : b * (c.targets - middle) * c.channels + i - middle * c.channels;
        ASSERT_EQ(part[at], whole.of[kFullY][b * c.targets * c.channels + i]) << describe(c) << " t=" << t;
      }
    }
    EXPECT_EQ(second.final.position, whole.final.position);
    expect_same(second.final.ring_key, whole.final.ring_key, describe(c));
  }
}

TYPED_TEST(FullTest, BitsDependOnNeitherThreadsNorScratchNorAlignment) {
  using E = TypeParam;
  Threads two(2), five(5);
  for (const FullCase& c : full_cases()) {
    if (c.seed % 3 != 0 && c.lengths.empty()) continue;
    const auto in = make_full_inputs<E>(c);
    const auto once = run_full<E>(in);
    expect_same(once, run_full<E>(in, {.parallel = two.parallel_for(), .shift = 0}), describe(c));
    scratch_set_poison(true);
    expect_same(once, run_full<E>(in, {.parallel = five.parallel_for(), .shift = 16}), describe(c));
    scratch_set_poison(false);
    if (in.has_final && !in.initial.position.empty()) {
      expect_same(once, run_full<E>(in, {.alias_state = true}), describe(c) + " state in place");
    }
  }
}

// Rows of a batch, and packed sequences, each alone: everything but the gradient of shared weights.
TYPED_TEST(FullTest, BitsDependOnNoOtherRow) {
  using E = TypeParam;
  for (const FullCase& c : full_cases()) {
    if (c.lengths.empty() && (c.batch == 1 || c.targets == 0 || c.seed % 2 == 0)) continue;
    const auto in = make_full_inputs<E>(c);
    const auto together = run_full<E>(in);
    for (int64_t b = 0; b < in.shape.batch; ++b) {
      const auto alone_in = slice_batch(in, b);
      const auto alone = run_full<E>(alone_in);
      for (const FullOutput output : {kFullY, kFullGradQ, kFullGradK, kFullGradV, kFullGradRingKey}) {
        const auto& whole = together.of[output];
        const auto size = static_cast<int64_t>(alone.of[output].size());
        if (size == 0) continue;
        int64_t begin = b * size;
        if (!in.cu_seqlens.empty()) {
          begin = in.cu_seqlens[b] * (output == kFullGradK ? in.shape.key_channels : in.shape.channels);
        }
        expect_same(alone.of[output], {whole.begin() + begin, whole.begin() + begin + size},
                    describe(c) + " row " + std::to_string(b) + " " + kFullOutputNames[output]);
      }
    }
  }
}

TYPED_TEST(FullTest, NoFutureKeyTouchesARow) {
  using E = TypeParam;
  using T = Accumulate<E>;
  for (const FullCase& c : full_cases()) {
    if (!c.causal || c.targets < 3 || !c.lengths.empty()) continue;
    auto in = make_full_inputs<E>(c);
    const auto before = run_full<E>(in, {.backward = false});
    const int64_t from = c.targets / 2;
    for (const T key : {T(60000), std::numeric_limits<T>::infinity(), std::numeric_limits<T>::quiet_NaN()}) {
      for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t i = (b * c.targets + from) * in.shape.key_channels;
             i < (b + 1) * c.targets * in.shape.key_channels; ++i) {
          in.k[i] = i % 2 == 0 ? rounded<E>(key) : in.k[i];
        }
        for (int64_t i = (b * c.targets + from) * c.channels; i < (b + 1) * c.targets * c.channels; ++i) {
          in.v[i] = rounded<E>(T(50000));
        }
      }
      const auto after = run_full<E>(in, {.backward = false});
      for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t i = b * c.targets * c.channels; i < (b * c.targets + from) * c.channels; ++i) {
          ASSERT_EQ(before.of[kFullY][i], after.of[kFullY][i]) << describe(c) << " key " << key;
        }
      }
    }
  }
}

TEST(Full, HandMadeExample) {
  // w = ln of whole numbers, k = 0: averages with the weights 1; 2, 1; 1, 3, 4 of v = 1, 3, 7.
  FullInputs<double> in;
  in.shape = {.batch = 1,
              .targets = 3,
              .sources = 3,
              .channels = 1,
              .heads = 1,
              .key_channels = 1,
              .causal = true,
              .gate = Gate::kNone};
  in.rows = in.columns = 3;
  in.k = {0, 0, 0};
  in.v = {1, 3, 7};
  in.grad_y = {1, 1, 1};
  const double never = 99;
  in.table = {std::log(5), never, never, std::log(2), std::log(1), never, std::log(1), std::log(3), std::log(4)};
  const FullOutputs<double> out = run_full<double>(in);
  const std::vector<double> y = {1, 5.0 / 3, 38.0 / 8};
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(out.of[kFullY][i], y[i], 1e-14);
  // dv = column sums of the averages; dw = a (v - y).
  const std::vector<double> dv = {1 + 2.0 / 3 + 1.0 / 8, 1.0 / 3 + 3.0 / 8, 0.5};
  for (int i = 0; i < 3; ++i) EXPECT_NEAR(out.of[kFullGradV][i], dv[i], 1e-14);
  const std::vector<double> dw = {
      0, 0, 0, 2.0 / 3 * (1 - y[1]), 1.0 / 3 * (3 - y[1]), 0, (1 - y[2]) / 8, 3 * (3 - y[2]) / 8, (7 - y[2]) / 2};
  for (int i = 0; i < 9; ++i) EXPECT_NEAR(out.of[kFullGradTable][i], dw[i], 1e-14) << i;
  for (int i = 0; i < 3; ++i) {
    double dk = 0;
    for (int t = 0; t < 3; ++t) dk += dw[t * 3 + i];
    EXPECT_NEAR(out.of[kFullGradK][i], dk, 1e-14);
  }
}

// What is not a number reaches the rows that see it and no others.
TYPED_TEST(FullTest, NonFiniteNumbersReachOnlyWhatSeesThem) {
  using E = TypeParam;
  using T = Accumulate<E>;
  const T inf = std::numeric_limits<T>::infinity();
  for (const bool causal : {true, false}) {
    const FullCase c = {.batch = 2, .targets = 230, .sources = 230, .channels = 20, .causal = causal, .seed = 7};
    for (const T bad : {std::numeric_limits<T>::quiet_NaN(), inf}) {
      for (const bool in_key : {true, false}) {
        auto in = make_full_inputs<E>(c);
        const int64_t source = 100, channel = 17;
        (in_key ? in.k : in.v)[source * 20 + channel] = bad;
        // Target 210 must not see it.
        in.table[210 * in.columns + source] = -inf;
        const auto out = run_full<E>(in);
        for (int64_t i = 0; i < 2 * 230 * 20; ++i) {
          const int64_t t = i / 20 % 230;
          const bool sees = i < 230 * 20 && i % 20 == channel && t != 210 && (!causal || t >= source);
          const T y = out.of[kFullY][i];
          if (!sees) {
            ASSERT_TRUE(std::isfinite(y)) << i << " " << y;
          }
          if (sees && std::isnan(bad)) {
            ASSERT_TRUE(std::isnan(y)) << i << " " << y;
          }
          if (sees && !in_key) {
            ASSERT_FALSE(std::isfinite(y)) << i << " " << y;
          }
        }
      }
    }
  }
}

// Whatever q and the gradient of y hold in a row that sees nothing: it is 0, and all else keeps its bits.
TYPED_TEST(FullTest, NothingToSeeGivesZero) {
  using E = TypeParam;
  using T = Accumulate<E>;
  for (const bool causal : {true, false}) {
    auto in = make_full_inputs<E>(
        {.batch = 2, .targets = 70, .sources = 70, .channels = 5, .causal = causal, .masked = true, .seed = 8});
    std::fill_n(in.table.begin() + 40 * in.columns, in.columns, -std::numeric_limits<T>::infinity());
    std::fill_n(in.mask.begin(), 70, uint8_t{0});
    const auto nothing = [](int64_t i) { return i < 70 * 5 || i / 5 % 70 == 40; };  // batch row 0, and target 40
    const auto clean = run_full<E>(in);
    for (const T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
      auto spoiled = in;
      for (int64_t i = 0; i < 2 * 70 * 5; ++i) {
        if (nothing(i)) spoiled.q[i] = spoiled.grad_y[i] = bad;
      }
      const auto out = run_full<E>(spoiled);
      for (const FullOutput o : {kFullY, kFullGradQ, kFullGradK, kFullGradV, kFullGradTable}) {
        for (int64_t i = 0; i < static_cast<int64_t>(out.of[o].size()); ++i) {
          ASSERT_EQ(out.of[o][i], clean.of[o][i]) << kFullOutputNames[o] << '[' << i << "] with " << bad;
          if ((o == kFullY || o == kFullGradQ) && nothing(i)) {
            ASSERT_EQ(out.of[o][i], 0) << kFullOutputNames[o] << '[' << i << ']';
          }
        }
      }
    }
  }
}

TYPED_TEST(FullTest, EmptyShapes) {
  using E = TypeParam;
  for (const FullCase& c : {FullCase{.batch = 0, .targets = 5, .sources = 5, .channels = 3},
                            FullCase{.batch = 2, .targets = 5, .sources = 5, .channels = 0},
                            FullCase{.batch = 2, .targets = 0, .sources = 5, .channels = 3, .causal = false}}) {
    EXPECT_TRUE(run_full<E>(make_full_inputs<E>(c)).of[kFullY].empty());
  }
  // Targets without sources see nothing.
  const auto out = run_full<E>(make_full_inputs<E>({.batch = 2, .targets = 5, .channels = 3, .causal = false}));
  for (const auto y : out.of[kFullY]) EXPECT_EQ(y, 0);
  for (const auto g : out.of[kFullGradQ]) EXPECT_EQ(g, 0);
}

TEST(Full, ErrorsNameTheArgument) {
  const auto message = [](auto&& change) {
    FullInputs<float> in = make_full_inputs<float>({.batch = 2, .targets = 4, .sources = 4, .channels = 6, .seed = 2});
    change(in);
    try {
      run_full<float>(in);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(message([](auto& in) { in.shape.heads = 4; }).find("heads: expected a divisor of channels = 6, got 4"),
            std::string::npos);
  EXPECT_NE(message([](auto& in) { in.rows = 3; }).find("row for every target up to 4, got 3"), std::string::npos);
  EXPECT_NE(message([](auto& in) {
              in = make_full_inputs<float>({.batch = 2, .targets = 4, .sources = 4, .channels = 0, .seed = 2});
              in.rows = 3;
            }).find("row for every target up to 4, got 3"),
            std::string::npos);
  EXPECT_NE(message([](auto& in) { in.columns = 3; }).find("column for every source up to 4, got 3"),
            std::string::npos);
  EXPECT_NE(message([](auto& in) { in.shape.capacity = 3; }).find("ring of at least 4"), std::string::npos);
  EXPECT_NE(message([](auto& in) {
              in.has_final = false, in.shape.packed = true, in.cu_seqlens = {0, 3, 2};
            }).find("cu_seqlens"),
            std::string::npos);
}

}  // namespace
}  // namespace aft::ops::test

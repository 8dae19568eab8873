// Numbers that break naive implementations: exponents far apart, infinities, NaN, absent sources, a huge future.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "ops/common/redo.h"
#include "tests/ops/judge.h"

namespace aft::ops::test {
namespace {

template <class Type>
class HardNumbers : public ::testing::Test {
 public:
  using Number = Accumulate<typename Type::E>;
  static constexpr Number kNan = std::numeric_limits<Number>::quiet_NaN();
  static constexpr Number kInfinity = std::numeric_limits<Number>::infinity();
  static constexpr bool kWindow = Type::kFamily == Family::kWindow, kGrid = Type::kFamily == Family::kGrid;

  // An operator of the family from a case that has its sizes: windows of several reaches, kernels of several sizes, or
  // a matrix; the grid has `time` positions in rows of 6.
  static std::vector<Case> variants(const Case& sizes, const std::vector<int64_t>& windows) {
    std::vector<Case> list;
    for (const bool causal : {true, false}) {
      Case c = sizes;
      c.causal = causal;
      if (!causal) c.state = false;
      if (kGrid && !causal) {
        for (const int64_t kernel : {1, 5, 31}) {
          set_grid(c, sizes.time / 6, 6, kernel);
          list.push_back(c);
        }
      } else if (kWindow) {
        for (const int64_t s : windows) {
          set_window(c, s);
          list.push_back(c);
        }
      } else if (!kGrid) {
        c.op = Operator::kFull;
        list.push_back(c);
      }
    }
    return list;
  }
  static bool sees(const Case& c, int64_t target, int64_t source) { return !c.causal || target >= source; }
};
TYPED_TEST_SUITE(HardNumbers, Attentions, OnName);

TYPED_TEST(HardNumbers, ErrorRuleHolds) {
  using E = typename TypeParam::E;
  for (const std::string& input : hard_inputs()) {
    SCOPED_TRACE(input);
    ErrorRule<E> rule;
    for (const Case& c : hard_cases(TypeParam::kFamily, input)) {
      const Judged<E> judged(c);
      run_and_judge(rule, judged);
      if (!judged.inputs.has_final) continue;
      for (const Backend& backend : backends()) {
        judge(rule, judged, run_steps(judged.inputs, {.backend = &backend}), backend.name + ", steps", false);
      }
    }
    if (TestFixture::kGrid) {
      rule.check();
    } else {
      rule.check_each_element(/*maxima=*/false);
    }
  }
}

/// The exact redo is off while this lives.
struct RedoOff {
  RedoOff() { set_redo(false); }
  ~RedoOff() { set_redo(true); }
};

// Where every row's certificate must fail: the largest keys carry the smallest weights.
template <class Test>
std::vector<Case> apart_cases() {
  return Test::variants({.input = "apart_1e4", .batch = 2, .time = Test::kGrid ? 30 : 97, .channels = 9, .seed = 5},
                        {200});
}

TYPED_TEST(HardNumbers, RedoMattersAndIsCounted) {
  using E = typename TypeParam::E;
  for (const Case& c : apart_cases<TestFixture>()) {
    SCOPED_TRACE(describe(c));
    if (TestFixture::kGrid && c.kernel < 11) continue;
    const Inputs<E> in = make_inputs<E>(c);
    const auto reference = run_reference(convert<Truth<E>>(in));
    RedoCount forward, both;
    const auto largest_error = [&](const std::string& of) {  // names that begin so
      const Outputs<E> out = run(in, {.redone = &both});
      double largest = 0;
      for (const auto& [name, x] : out) {
        if (!name.starts_with(of)) continue;
        for (size_t i = 0; i < x.x.size(); ++i) {
          const double error = double(std::abs(x.x[i] - reference[name][i]));
          largest = std::max(largest, std::isfinite(error) ? error : 1e30);
        }
      }
      return largest;
    };
    run(in, {.redone = &forward, .backward = false});
    EXPECT_GT(forward.redone, 0);
    EXPECT_LE(forward.redone, forward.total);
    // 16-bit results carry their own rounding.
    const double close = kIs16Bit<E> ? ulp_of<E>(2) : 1e-4;
    const double apart = kIs16Bit<E> ? 10 * close : 0.01;
    EXPECT_LT(largest_error("y"), close);
    // The dense operator counts its forward alone.
    if (c.op != Operator::kFull) {
      EXPECT_GT(both.redone, forward.redone);
    }
    EXPECT_LT(largest_error("grad_"), close);
    const RedoOff off;
    EXPECT_GT(largest_error("y"), apart) << "forward: nothing went wrong without the redo";
    EXPECT_GT(largest_error("grad_v"), apart) << "backward: nothing went wrong without the redo";
  }
}

TYPED_TEST(HardNumbers, OrdinaryNumbersAreNotRedone) {
  using E = typename TypeParam::E;
  RedoCount redone;
  const Case sizes{.batch = 2, .time = TestFixture::kGrid ? 196 : 97, .channels = 9, .seed = 5};
  for (const Case& c : TestFixture::variants(sizes, {0, 7, 32})) run(make_inputs<E>(c), {.redone = &redone});
  EXPECT_GT(redone.total, 0);
  // The running sums of `simple` rescale and need no redo, whatever the keys.
  if (TestFixture::kWindow) {
    run(make_inputs<E>({.input = "apart_65504", .batch = 2, .time = 97, .channels = 9, .seed = 5}),
        {.redone = &redone});
  }
  EXPECT_EQ(redone.redone, 0);
}

TYPED_TEST(HardNumbers, FiniteBeyondTheRange) {
  using E = typename TypeParam::E;
  using T = Accumulate<E>;
  for (const bool state : {false, true}) {
    const Case sizes{.batch = 2, .time = TestFixture::kGrid ? 36 : 70, .channels = 5, .state = state, .seed = 11};
    for (const Case& c : TestFixture::variants(sizes, {0, 1, 7, 200})) {
      if (state && !c.state) continue;
      for (const T huge : {T(1e30), std::numeric_limits<T>::max()}) {
        for (const int which : {0, 1, 2, 3}) {  // keys, weights, both, values
          Inputs<E> in = make_inputs<E>(c);
          const auto blow_up = [&](const char* name, T size) {
            if (!in.has(name)) return;
            if (is_tensor(in.array(name).along)) size = std::min(size, T(largest_of<E>()));
            std::vector<T>& x = in[name];
            for (size_t i = 0; i < x.size(); i += 3) x[i] = i % 2 == 0 ? size : -size;
          };
          if (which == 0 || which == 2) blow_up("k", huge);
          if (which == 1 || which == 2) blow_up("weights", huge);
          if (which == 3) blow_up("v", T(std::min(1e30, largest_of<E>() / 256)));  // gradients are sums of values
          for (const auto& [name, x] : run(in)) {
            for (size_t i = 0; i < x.x.size(); ++i) {
              ASSERT_TRUE(std::isfinite(x.x[i])) << name << '[' << i << "] = " << x.x[i] << ", huge = " << huge
                                                 << ", which = " << which << "; " << describe(c);
            }
          }
        }
      }
    }
  }
}

// NaN and +inf in a key or a value reach the rows that see them and no others.
TYPED_TEST(HardNumbers, NonFiniteReachesOnlyTheRowsThatSeeIt) {
  using E = typename TypeParam::E;
  using T = Accumulate<E>;
  const Case sizes{.batch = 3, .time = 90, .channels = 21, .heads = 3, .seed = 21};
  for (Case c : TestFixture::variants(sizes, {0, 5, 32})) {
    const bool full = c.op == Operator::kFull;
    if (full) c.time = 230;  // several of its tiles
    Inputs<E> in = make_inputs<E>(c);
    const int64_t blind = full ? 210 : -1;  // a target that may see nothing of these sources
    const std::vector<int64_t> sources = {0, 1, 33, full ? 100 : 89};
    for (const int64_t source : sources) {
      if (full) in["weights"][in.weight_index(0, 0, blind, source)] = -TestFixture::kInfinity;
    }
    const Outputs<E> clean = run(in);
    for (const int64_t source : sources) {
      for (const T x : {TestFixture::kNan, TestFixture::kInfinity}) {
        for (const char* name : {"k", "v"}) {
          Inputs<E> bad = in;
          bad[name][(c.time + source) * c.channels + 4] = x;
          const Outputs<E> out = run(bad);
          for (const char* o : {"y", "grad_q", "grad_k", "grad_v"}) {
            const std::vector<T>&got = out[o], &before = clean[o];
            for (int64_t i = 0; i < static_cast<int64_t>(got.size()); ++i) {
              const int64_t b = i / c.channels / c.time, t = i / c.channels % c.time, ch = i % c.channels;
              const bool target = *o == 'y' || o[5] == 'q';
              const bool seen = b == 1 && ch == 4 && (!target || (TestFixture::sees(c, t, source) && t != blind));
              const auto where = [&] {
                return std::string(o) + " at b=" + std::to_string(b) + " t=" + std::to_string(t) +
                       " c=" + std::to_string(ch) + " is " + std::to_string(got[i]) + " with " + std::to_string(x) +
                       " in " + name + " of t=" + std::to_string(source) + "; " + describe(c);
              };
              if (target) {
                ASSERT_EQ(std::isfinite(got[i]), !seen) << where();
                ASSERT_TRUE(!seen || std::isnan(got[i]) || !std::isnan(x)) << where();
              }
              // Other rows of the batch keep every bit, on a grid other channels too.
              if (b != 1 || (TestFixture::kGrid && ch != 4)) {
                ASSERT_TRUE(same_bits(got[i], before[i])) << where();
              } else if (!seen) {
                ASSERT_TRUE(std::isfinite(got[i])) << where();
              }
            }
          }
        }
      }
    }
  }
}

// The same of a weight: its pairs are a row's and a source's, of its head.
TYPED_TEST(HardNumbers, NonFiniteWeightReachesOnlyItsPairs) {
  using E = typename TypeParam::E;
  using T = Accumulate<E>;
  const Case sizes{.batch = 2, .time = 90, .channels = 21, .heads = 3, .weights = Weights::kTablePerHead, .seed = 21};
  for (const Case& c : TestFixture::variants(sizes, {5, 32})) {
    const Inputs<E> in = make_inputs<E>(c);
    for (const auto& [target, source] :
         {std::pair(40, 40), std::pair(40, 36), std::pair(40, 33), std::pair(40, 32), std::pair(40, 9)}) {
      const int64_t bad_index = in.weight_index(0, 1, target, source);
      if (bad_index < 0) continue;
      for (const T x : {TestFixture::kNan, TestFixture::kInfinity}) {
        Inputs<E> bad = in;
        bad["weights"][bad_index] = x;
        const Outputs<E> out = run(bad);
        std::vector<bool> sees(c.time, false);
        for (int64_t t = 0; t < c.time; ++t) {
          for (int64_t s = 0; s < c.time; ++s) {
            if (TestFixture::sees(c, t, s) && in.weight_index(0, 1, t, s) == bad_index) sees[t] = true;
          }
        }
        for (const char* name : {"y", "grad_q"}) {
          for (int64_t i = 0; i < static_cast<int64_t>(out[name].size()); ++i) {
            const int64_t t = i / c.channels % c.time;
            ASSERT_EQ(std::isfinite(out[name][i]), !(sees[t] && c.head(i % c.channels) == 1))
                << name << '[' << i << "] with w = " << x << "; " << describe(c);
          }
        }
      }
    }
  }
}

// What is absent has no value: it may be NaN.
TYPED_TEST(HardNumbers, AbsentSourcesMayHoldAnything) {
  using E = typename TypeParam::E;
  const Case sizes{.input = "absent", .batch = 2, .time = 84, .channels = 6, .state = true, .seed = 31};
  for (const Case& c : TestFixture::variants(sizes, {0, 1, 7, 32})) {
    Inputs<E> in = make_inputs<E>(c);
    const Outputs<E> clean = run(in);
    for (size_t i = 0; i < in["k"].size(); ++i) {
      if (in["k"][i] == -TestFixture::kInfinity) in["v"][i] = TestFixture::kNan;
    }
    expect_same_bits(run(in), clean, describe(c), {"final_ring_value"});
  }
}

// The mask is k = -inf, whatever lies there; but what is masked gets no gradient, not even through the ring, and the
// ring holds no value of it.
TYPED_TEST(HardNumbers, MaskedSourcesAreAbsent) {
  using E = typename TypeParam::E;
  using T = Accumulate<E>;
  for (const Case& c : cases(TypeParam::kFamily)) {
    if (!c.masked) continue;
    const Inputs<E> in = make_inputs<E>(c);
    Inputs<E> absent = in, spoiled = in;
    absent.remove("key_mask");
    const auto each_masked = [&](const char* name, auto visit) {
      const int64_t width = in.array(name).width;
      for (int64_t i = 0; i < static_cast<int64_t>(in[name].size()); ++i) {
        if (in["key_mask"][i / width] == 0) visit(i);
      }
    };
    each_masked("k", [&](int64_t i) { absent["k"][i] = -TestFixture::kInfinity, spoiled["k"][i] = TestFixture::kNan; });
    each_masked("v", [&](int64_t i) { absent["v"][i] = 0, spoiled["v"][i] = TestFixture::kNan; });
    Outputs<E> want = run(absent);
    for (const char* name : {"k", "v"}) {
      each_masked(name, [&](int64_t i) {
        T& gradient = want[std::string("grad_") + name][i];
        if (TestFixture::kGrid) {  // where it may be -0
          EXPECT_EQ(gradient, 0) << name << '[' << i << "]; " << describe(c);
        } else {
          gradient = 0;
        }
      });
    }
    expect_same_bits(run(in), want, describe(c));
    expect_same_bits(run(spoiled), want, "NaN under the mask; " + describe(c));
  }
}

// Whatever q and the gradient of y hold in a row that sees nothing: it is 0, has no gradient, and gives none.
TYPED_TEST(HardNumbers, NothingToSeeGivesZero) {
  using E = typename TypeParam::E;
  using T = Accumulate<E>;
  const auto any = [](size_t i) {  // numbers, infinities and NaN in turn
    return std::vector<T>{1, TestFixture::kInfinity, TestFixture::kNan}[i % 3];
  };
  for (const Case& c : TestFixture::variants({.batch = 2, .time = 72, .channels = 5, .seed = 32}, {0, 1, 7, 32})) {
    Inputs<E> in = make_inputs<E>(c);
    std::fill(in["k"].begin(), in["k"].end(), -TestFixture::kInfinity);
    for (size_t i = 0; i < in["q"].size(); ++i) in["q"][i] = any(i), in["grad_y"][i] = any(i / 3);
    for (const auto& [name, x] : run(in)) {
      if (name.starts_with("final_ring")) continue;  // keys and values as they are
      for (int64_t i = 0; i < static_cast<int64_t>(x.x.size()); ++i) {
        // The ring passes gradients to its keys and values as they are.
        if (in.has_final && x.along == Along::kSources && i / c.channels % c.time >= c.time - in.ring) continue;
        ASSERT_EQ(x.x[i], name == "final_max" ? std::numeric_limits<T>::lowest() : T(0)) << name << "; " << describe(c);
      }
    }
  }
  // One row of a matrix, and all of a sequence under a mask; all else keeps its bits.
  if (TestFixture::kWindow) return;
  for (Case c : TestFixture::variants({.batch = 2, .time = 72, .channels = 5, .masked = true, .seed = 8}, {})) {
    Inputs<E> in = make_inputs<E>(c);
    const int64_t row = TestFixture::kGrid ? -1 : 40;
    if (row >= 0) std::fill_n(in["weights"].begin() + row * in.columns, in.columns, -TestFixture::kInfinity);
    const auto nothing = [&](int64_t i) { return i < c.time * c.channels || i / c.channels % c.time == row; };
    const Outputs<E> clean = run(in);
    for (int64_t i = 0; i < static_cast<int64_t>(in["q"].size()); ++i) {
      if (nothing(i)) in["q"][i] = any(i), in["grad_y"][i] = any(i / 3);
    }
    const Outputs<E> out = run(in);
    expect_same_bits(out, clean, describe(c));
    for (const char* name : {"y", "grad_q"}) {
      for (int64_t i = 0; i < static_cast<int64_t>(out[name].size()); ++i) {
        if (nothing(i)) {
          ASSERT_EQ(out[name][i], 0) << name << '[' << i << "]; " << describe(c);
        }
      }
    }
  }
}

// A future key or value of any size leaves every earlier row alone, bit for bit.
TYPED_TEST(HardNumbers, TheFutureLeavesEarlierRowsAlone) {
  using E = typename TypeParam::E;
  using T = Accumulate<E>;
  const T inf = TestFixture::kInfinity, nan = TestFixture::kNan;
  for (Case c : TestFixture::variants({.time = 300, .channels = 5, .seed = 41}, {0, 1, 7, 32, 150})) {
    if (!c.causal) continue;
    const bool full = c.op == Operator::kFull;  // T^2 a run: fewer of them, around the edges of its tiles
    if (full) c.time = 220, c.batch = 2;
    c.state = c.left == 6;
    const Inputs<E> in = make_inputs<E>(c);
    const Outputs<E> clean = run(in);
    for (const int64_t future : full ? std::vector<int64_t>{1, 33, 191, 192, 193, 219}
                                     : std::vector<int64_t>{1, 2, 8, 31, 32, 33, 64, 127, 128, 129, 256, 299}) {
      for (const std::string name : {"k", "v"}) {
        for (const T x : name == "v" ? std::vector<T>{T(1e30), nan}
                         : full      ? std::vector<T>{65504, nan, inf}
                                     : std::vector<T>{65504, -65504, T(1e30), nan, inf, -inf}) {
          Inputs<E> changed = in;
          std::fill_n(changed[name].begin() + future * c.channels, c.channels, rounded<E>(x));
          const Outputs<E> out = run(changed);
          const int64_t tile = rows_of_a_scale(c);
          for (const char* o : {"y", "grad_q"}) {
            const std::vector<T>&got = out[o], &before = clean[o];
            for (int64_t i = 0; i < future / tile * tile * c.channels; ++i) {
              ASSERT_TRUE(same_bits(got[i], before[i]))
                  << o << " at t=" << i / c.channels << ": " << before[i] << " became " << got[i] << " by " << name
                  << " = " << x << " at t=" << future << "; " << describe(c);
            }
          }
        }
      }
    }
  }
  // From a state, and in every row of the batch: all that comes after half of the time.
  for (const Case& c : cases(Family::kFull)) {
    if (TypeParam::kFamily != Family::kFull || !c.causal || c.time < 3 || c.packed()) continue;
    const Inputs<E> in = make_inputs<E>(c);
    const std::vector<T> clean = run(in, {.backward = false})["y"];
    for (const T x : {T(60000), inf, nan}) {
      Inputs<E> changed = in;
      for (const char* name : {"k", "v"}) {
        const int64_t width = in.array(name).width;
        std::vector<T>& numbers = changed[name];
        for (int64_t i = 0; i < static_cast<int64_t>(numbers.size()); ++i) {
          if (i / width % c.time < c.time / 2) continue;
          if (*name == 'v') numbers[i] = rounded<E>(T(50000));
          if (*name == 'k' && i % 2 == 0) numbers[i] = rounded<E>(x);
        }
      }
      const std::vector<T> y = run(changed, {.backward = false})["y"];
      for (int64_t i = 0; i < static_cast<int64_t>(y.size()); ++i) {
        if (i / c.channels % c.time > c.time / 2 - rows_of_a_scale(c)) continue;  // a tile may begin anywhere
        ASSERT_TRUE(same_bits(y[i], clean[i])) << "y[" << i << "] by keys of " << x << "; " << describe(c);
      }
    }
  }
}

}  // namespace
}  // namespace aft::ops::test

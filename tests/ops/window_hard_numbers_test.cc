// Numbers that break naive implementations: exponents far apart, infinities, NaN, absent sources, a huge future.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/ops/redo_off.h"
#include "tests/ops/window_compare.h"

namespace aft::ops::test {
namespace {

template <typename T>
class WindowHardNumbers : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(WindowHardNumbers, Dtypes);

TYPED_TEST(WindowHardNumbers, ErrorRuleHolds) {
  using E = TypeParam;
  for (const std::string& input : hard_inputs()) {
    SCOPED_TRACE(input);
    ErrorRule<E> rule;
    for (const WindowCase& c : hard_cases(input)) run_and_judge(rule, JudgedCase<E>(c));
    rule.check_each_element(/*maxima=*/false);
  }
}

// Windows of one call where every row's certificate must fail: the largest key carries the smallest weight.
WindowCase apart_case(bool causal) {
  WindowCase c{.input = "apart_1e4", .batch = 2, .time = 97, .channels = 9, .causal = causal, .seed = 5};
  set_window(c, 200);
  return c;
}

TYPED_TEST(WindowHardNumbers, RedoIsCountedInForwardAndBackward) {
  using E = TypeParam;
  for (const bool causal : {true, false}) {
    const WindowInputs<E> in = make_inputs<E>(apart_case(causal));
    RedoCount forward, both;
    run_kernel(in, {.redone = &forward, .backward = false});
    EXPECT_GT(forward.redone, 0) << "forward, causal " << causal;
    EXPECT_LE(forward.redone, forward.total);
    run_kernel(in, {.redone = &both});
    EXPECT_GT(both.redone, forward.redone) << "backward, causal " << causal;
  }
}

TYPED_TEST(WindowHardNumbers, OrdinaryNumbersAreNotRedone) {
  using E = TypeParam;
  WindowCase c{.batch = 2, .time = 97, .channels = 9, .seed = 5};
  RedoCount redone;
  for (const bool causal : {true, false}) {
    c.causal = causal;
    for (const int64_t s : {0, 7, 32}) {
      set_window(c, s);
      run_kernel(make_inputs<E>(c), {.redone = &redone});
    }
  }
  EXPECT_GT(redone.total, 0);
  // The running sums of `simple` rescale and need no redo, whatever the keys.
  set_window(c, 0);
  c.input = "apart_65504";
  run_kernel(make_inputs<E>(c), {.redone = &redone});
  EXPECT_EQ(redone.redone, 0);
}

TYPED_TEST(WindowHardNumbers, RedoMatters) {
  using E = TypeParam;
  for (const bool causal : {true, false}) {
    const JudgedCase<E> c(apart_case(causal));
    const auto largest_error = [&](std::initializer_list<Output> outputs) {
      const WindowOutputs<E> out = run_kernel(c.inputs);
      double largest = 0;
      for (const Output output : outputs) {
        for (size_t i = 0; i < out.of[output].size(); ++i) {
          const double error = double(std::abs(out.of[output][i] - c.reference.of[output][i]));
          largest = std::max(largest, std::isfinite(error) ? error : 1e30);
        }
      }
      return largest;
    };
    // 16-bit results carry their own rounding.
    const double close = kIs16Bit<E> ? ulp_of<E>(2) : 1e-4;
    const double apart = kIs16Bit<E> ? 10 * close : 0.01;
    EXPECT_LT(largest_error({kY}), close) << "causal " << causal;
    EXPECT_LT(largest_error({kGradQ, kGradK, kGradV, kGradBand}), close) << "causal " << causal;
    const RedoOff off;
    EXPECT_GT(largest_error({kY}), apart) << "forward: nothing went wrong without the redo, causal " << causal;
    EXPECT_GT(largest_error({kGradQ, kGradK, kGradV, kGradBand}), apart)
        << "backward: nothing went wrong without the redo, causal " << causal;
  }
}

TYPED_TEST(WindowHardNumbers, FiniteBeyondTheRange) {
  using E = TypeParam;
  using T = Accumulate<E>;
  const T most = std::numeric_limits<T>::max();
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 1, 7, 200}) {
      for (const bool state : {false, true}) {
        if (state && !causal) continue;
        for (const T huge : {T(1e30), most}) {
          for (const int which : {0, 1, 2, 3}) {  // keys, weights, both, values
            WindowCase c{.batch = 2, .time = 70, .channels = 5, .causal = causal, .state = state, .seed = 11};
            set_window(c, s);
            WindowInputs<E> in = make_inputs<E>(c);
            const auto blow_up = [&](std::vector<T>& x, T size) {
              for (size_t i = 0; i < x.size(); i += 3) x[i] = i % 2 == 0 ? size : -size;
            };
            if (which == 0 || which == 2) blow_up(in.k, huge);
            if (which == 1 || which == 2) blow_up(in.band, huge);
            if (which == 3) blow_up(in.v, T(1e30));
            const WindowOutputs<E> out = run_kernel(in);
            for (int output = 0; output < kOutputs; ++output) {
              for (size_t i = 0; i < out.of[output].size(); ++i) {
                ASSERT_TRUE(std::isfinite(out.of[output][i]))
                    << kOutputNames[output] << '[' << i << "] = " << out.of[output][i] << ", huge = " << huge
                    << ", which = " << which << "; " << describe(c);
              }
            }
          }
        }
      }
    }
  }
}

// NaN and +inf reach the rows that see them and no others.
TYPED_TEST(WindowHardNumbers, NonFiniteReachesOnlyTheRowsThatSeeIt) {
  using E = TypeParam;
  using T = Accumulate<E>;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const T inf = std::numeric_limits<T>::infinity();
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 5, 32}) {
      WindowCase c{.batch = 3, .time = 90, .channels = 21, .heads = 3, .causal = causal, .seed = 21};
      set_window(c, s);
      const WindowInputs<E> in = make_inputs<E>(c);
      const WindowOutputs<E> clean = run_kernel(in);
      const auto at = [&](int64_t b, int64_t t, int64_t ch) { return (b * c.time + t) * c.channels + ch; };
      const auto expect_reach = [&](const WindowOutputs<E>& out, const std::string& what, auto sees) {
        for (int64_t b = 0; b < c.batch; ++b) {
          for (int64_t t = 0; t < c.time; ++t) {
            for (int64_t ch = 0; ch < c.channels; ++ch) {
              const T y = out.of[kY][at(b, t, ch)];
              const T grad_q = out.of[kGradQ][at(b, t, ch)];
              ASSERT_EQ(std::isfinite(y), !sees(b, t, ch)) << "y at b=" << b << " t=" << t << " c=" << ch << " is " << y
                                                           << " with " << what << "; " << describe(c);
              ASSERT_EQ(std::isfinite(grad_q), !sees(b, t, ch))
                  << "grad_q at b=" << b << " t=" << t << " c=" << ch << " is " << grad_q << " with " << what << "; "
                  << describe(c);
            }
          }
        }
      };
      // Rows of the batch but b = 1 keep every bit; channels but 4 stay finite in the gradients.
      const auto expect_others_clean = [&](const WindowOutputs<E>& out, const std::string& what) {
        for (const Output o : {kY, kGradQ, kGradK, kGradV}) {
          for (size_t i = 0; i < out.of[o].size(); ++i) {
            const int64_t b = i / (c.time * c.channels);
            if (b != 1) {
              ASSERT_TRUE(same_bits(out.of[o][i], clean.of[o][i])) << kOutputNames[o] << '[' << i << "] with " << what;
            } else if (i % c.channels != 4) {
              ASSERT_TRUE(std::isfinite(out.of[o][i])) << kOutputNames[o] << '[' << i << "] with " << what;
            }
          }
        }
      };
      for (const int64_t source : {0, 1, 33, 89}) {
        const auto seen_by = [&](int64_t b, int64_t t, int64_t ch) {
          return b == 1 && ch == 4 && (!causal || t >= source);
        };
        for (const T x : {nan, inf}) {
          const std::string number = std::isnan(x) ? "NaN" : "inf";
          WindowInputs<E> bad = in;
          bad.k[at(1, source, 4)] = x;
          const WindowOutputs<E> by_k = run_kernel(bad);
          expect_reach(by_k, "k " + number, seen_by);
          expect_others_clean(by_k, "k " + number);
          bad = in;
          bad.v[at(1, source, 4)] = x;
          const WindowOutputs<E> by_v = run_kernel(bad);
          expect_reach(by_v, "v " + number, seen_by);
          expect_others_clean(by_v, "v " + number);
        }
      }
      if (s == 0) continue;
      // Head 1 (channels 7 to 13), the row of weights of t = 40, its earliest source and itself.
      for (const int64_t j : {int64_t(0), c.left}) {
        for (const T x : {nan, inf}) {
          WindowInputs<E> bad = in;
          bad.band[(1 * in.band_rows + 40) * (c.left + 1 + c.right) + j] = x;
          expect_reach(run_kernel(bad), "w", [](int64_t, int64_t t, int64_t ch) { return t == 40 && ch / 7 == 1; });
        }
      }
    }
  }
}

// What is absent has no value: it may be NaN.
TYPED_TEST(WindowHardNumbers, AbsentSourcesMayHoldAnything) {
  using E = TypeParam;
  using T = Accumulate<E>;
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 1, 7, 32}) {
      WindowCase c{
          .input = "absent", .batch = 2, .time = 80, .channels = 6, .causal = causal, .state = causal, .seed = 31};
      set_window(c, s);
      WindowInputs<E> in = make_inputs<E>(c);
      in.has_final = causal;
      const WindowOutputs<E> clean = run_kernel(in);
      for (size_t i = 0; i < in.k.size(); ++i) {
        if (in.k[i] == -std::numeric_limits<T>::infinity()) in.v[i] = std::numeric_limits<T>::quiet_NaN();
      }
      const WindowOutputs<E> out = run_kernel(in);
      for (const Output o : {kY, kFinalDen, kFinalNum, kGradQ, kGradK, kGradV, kGradBand}) {
        for (size_t i = 0; i < out.of[o].size(); ++i) {
          ASSERT_TRUE(same_bits(out.of[o][i], clean.of[o][i]))
              << kOutputNames[o] << '[' << i << "]: " << clean.of[o][i] << ", " << out.of[o][i] << "; " << describe(c);
        }
      }
    }
  }
}

// The mask is k = -inf, whatever lies there; but what is masked gets no gradient, not even through the ring, and the
// ring holds no value of it.
TYPED_TEST(WindowHardNumbers, MaskedSourcesAreAbsent) {
  using E = TypeParam;
  using T = Accumulate<E>;
  for (WindowCase c : masked_and_packed_cases()) {
    if (!c.masked) continue;
    const WindowInputs<E> in = make_inputs<E>(c);
    const WindowShape& s = in.shape;
    WindowInputs<E> absent = in, spoiled = in;
    absent.key_mask.clear();
    for (int64_t t = 0; t < in.tokens(); ++t) {
      for (int64_t i = 0; in.key_mask[t] == 0 && i < s.key_channels; ++i) {
        absent.k[t * s.key_channels + i] = -std::numeric_limits<T>::infinity();
        spoiled.k[t * s.key_channels + i] = std::numeric_limits<T>::quiet_NaN();
      }
      for (int64_t i = 0; in.key_mask[t] == 0 && i < s.channels; ++i) {
        spoiled.v[t * s.channels + i] = std::numeric_limits<T>::quiet_NaN();
        absent.v[t * s.channels + i] = 0;
      }
    }
    WindowOutputs<E> want = run_kernel(absent);
    for (int64_t t = 0; t < in.tokens(); ++t) {
      if (in.key_mask[t] != 0) continue;
      std::fill_n(want.of[kGradK].begin() + t * s.key_channels, s.key_channels, T(0));
      std::fill_n(want.of[kGradV].begin() + t * s.channels, s.channels, T(0));
    }
    expect_same_bits(run_kernel(in), want, describe(c));
    expect_same_bits(run_kernel(spoiled), want, "NaN under the mask; " + describe(c));
  }
}

TYPED_TEST(WindowHardNumbers, NothingToSeeGivesZero) {
  using E = TypeParam;
  using T = Accumulate<E>;
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 1, 7, 32}) {
      WindowCase c{.batch = 2, .time = 70, .channels = 5, .causal = causal, .seed = 32};
      set_window(c, s);
      WindowInputs<E> in = make_inputs<E>(c);
      std::fill(in.k.begin(), in.k.end(), -std::numeric_limits<T>::infinity());
      // Whatever stands there: numbers, infinities and NaN in turn.
      for (size_t i = 0; i < in.q.size(); ++i) {
        const T x[] = {1, std::numeric_limits<T>::infinity(), std::numeric_limits<T>::quiet_NaN()};
        in.q[i] = x[i % 3];
        in.grad_y[i] = x[i / 3 % 3];
      }
      const WindowOutputs<E> out = run_kernel(in);
      for (const Output o : {kY, kFinalDen, kFinalNum, kGradQ, kGradBand}) {
        for (const T x : out.of[o]) ASSERT_EQ(x, 0) << kOutputNames[o] << "; " << describe(c);
      }
      // The ring passes gradients to its keys and values as they are.
      for (int64_t i = 0; i < int64_t(in.k.size()); ++i) {
        if (in.has_final && i / c.channels % c.time >= c.time - c.left) continue;
        ASSERT_EQ(out.of[kGradK][i], 0) << "grad_k; " << describe(c);
        ASSERT_EQ(out.of[kGradV][i], 0) << "grad_v; " << describe(c);
      }
      for (const T x : out.max) ASSERT_EQ(x, std::numeric_limits<T>::lowest());
    }
  }
}

// A future key or value of any size leaves every earlier row alone, bit for bit.
TYPED_TEST(WindowHardNumbers, TheFutureLeavesEarlierRowsAlone) {
  using E = TypeParam;
  using T = Accumulate<E>;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const T inf = std::numeric_limits<T>::infinity();
  for (const int64_t s : {0, 1, 7, 32, 150}) {
    WindowCase c{.batch = 1, .time = 300, .channels = 5, .state = s == 7, .seed = 41};
    set_window(c, s);
    const WindowInputs<E> in = make_inputs<E>(c);
    const WindowOutputs<E> clean = run_kernel(in);
    for (const int64_t future : {1, 2, 8, 31, 32, 33, 64, 127, 128, 129, 256, 299}) {
      const auto expect_past_alone = [&](const WindowInputs<E>& changed, const char* what, T x) {
        const WindowOutputs<E> out = run_kernel(changed);
        for (int64_t i = 0; i < future * c.channels; ++i) {
          ASSERT_TRUE(same_bits(out.of[kY][i], clean.of[kY][i]))
              << "y at t=" << i / c.channels << ": " << clean.of[kY][i] << " became " << out.of[kY][i] << " by " << what
              << " = " << x << " at t=" << future << "; " << describe(c);
          ASSERT_TRUE(same_bits(out.of[kGradQ][i], clean.of[kGradQ][i]))
              << "grad_q at t=" << i / c.channels << " by " << what << " = " << x << " at t=" << future << "; "
              << describe(c);
        }
      };
      for (const T x : {T(65504), T(-65504), T(1e30), nan, inf, -inf}) {
        WindowInputs<E> changed = in;
        for (int64_t ch = 0; ch < c.channels; ++ch) changed.k[future * c.channels + ch] = x;
        expect_past_alone(changed, "k", x);
      }
      for (const T x : {T(1e30), nan}) {
        WindowInputs<E> changed = in;
        for (int64_t ch = 0; ch < c.channels; ++ch) changed.v[future * c.channels + ch] = x;
        expect_past_alone(changed, "v", x);
      }
    }
  }
}

}  // namespace
}  // namespace aft::ops::test

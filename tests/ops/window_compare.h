#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/ops/error_rule.h"
#include "tests/ops/targets.h"
#include "tests/ops/window_plain.h"
#include "tests/ops/window_run.h"

namespace aft::ops::test {

/// What judges E: one precision up.
template <typename E>
using Truth = std::conditional_t<std::is_same_v<E, double>, long double, double>;

template <typename E>
constexpr const char* kDtype = std::is_same_v<E, float>      ? "f32"
                               : std::is_same_v<E, double>   ? "f64"
                               : std::is_same_v<E, BFloat16> ? "bf16"
                                                             : "f16";

/// A case with its truth, worked out once for all runs of it.
template <typename E>
struct JudgedCase {
  WindowCase window_case;
  WindowInputs<E> inputs;
  WindowPlain<E> plain;
  WindowOutputs<Truth<E>> reference;

  explicit JudgedCase(const WindowCase& c) : JudgedCase(c, make_inputs<E>(c)) {}
  JudgedCase(const WindowCase& c, const WindowInputs<E>& in)
      : window_case(c), inputs(in), plain(run_plain(in)), reference(run_reference(convert<Truth<E>>(in))) {}
};

/// The absolute floor of the contract: 2^-60 of the largest value (f32, whose exponents end at 2^-149).
template <typename E>
double contract_floor(const WindowInputs<E>& in, Output output) {
  using T = Accumulate<E>;
  if (!std::is_same_v<T, float>) return 0;
  const auto largest = [](std::initializer_list<const std::vector<T>*> all) {
    double x = 0;
    for (const auto* values : all) {
      for (const T value : *values) x = std::max(x, std::abs(double(value)));
    }
    return x;
  };
  const double value = largest({&in.v, &in.initial.ring_value, &in.initial.num});
  const double grad = largest({&in.grad_y, &in.grad_final.num, &in.grad_final.den});
  const double size = output == kY || output == kFinalNum             ? value
                      : output == kFinalDen                           ? 1
                      : output == kGradV || output == kGradInitialNum ? grad
                      : output == kGradInitialRingValue               ? grad
                                                                      : grad * value;
  return std::ldexp(size, -60);
}

/// Judges a run's outputs; with `pooled` names of the pool beside operator, dtype and class of input.
template <typename E>
void judge(ErrorRule<E>& rule, const JudgedCase<E>& c, const WindowOutputs<E>& out, const std::string& pooled = "",
           bool backward = true) {
  using T = Accumulate<E>;
  const std::string key = operator_name(c.window_case) + ", " + kDtype<E> + ", " + c.window_case.input +
                          (pooled.empty() ? "" : ", " + pooled);
  const std::string what = describe(c.window_case);
  for (int output = 0; output < kOutputs; ++output) {
    if (!backward && output >= kGradQ) break;
    if (c.reference.of[output].empty() && out.of[output].empty()) continue;
    rule.add(key, kOutputNames[output], what, out.of[output], c.plain.outputs.of[output], c.plain.scale.of[output],
             c.reference.of[output], contract_floor(c.inputs, Output(output)));
  }
  if (!c.inputs.has_final) return;
  EXPECT_EQ(out.position, c.reference.position) << what;
  const auto same = [&](const char* name, const std::vector<T>& kernel, const std::vector<Truth<E>>& reference) {
    ASSERT_EQ(kernel.size(), reference.size()) << name << "; " << what;
    for (size_t i = 0; i < kernel.size(); ++i) {
      // The neutral maximum is the lowest number of each type.
      if (kernel[i] == std::numeric_limits<T>::lowest() && reference[i] == std::numeric_limits<Truth<E>>::lowest()) {
        continue;
      }
      ASSERT_EQ(Truth<E>(kernel[i]), reference[i]) << "final_state." << name << "[" << i << "]; " << what;
    }
  };
  same("max", out.max, c.reference.max);
  same("ring_key", out.ring_key, c.reference.ring_key);
  same("ring_value", out.ring_value, c.reference.ring_value);
}

/// Runs the case as every SIMD target of the machine and adds the results to `rule`.
template <typename E>
void run_and_judge(ErrorRule<E>& rule, const JudgedCase<E>& c, const RunOptions& options = {}) {
  for (const int64_t target : machine_targets()) {
    const TargetScope scope(target);
    judge(rule, c, run_kernel(c.inputs, options), hwy::TargetName(target));
  }
}

template <typename T>
bool same_bits(T a, T b) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<Bits>(a) == std::bit_cast<Bits>(b);
}

/// First index where the bits differ, or -1.
template <typename T>
int64_t first_difference(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!same_bits(a[i], b[i])) return i;
  }
  return -1;
}

/// Every output, the state included, bit for bit; `except_band`: all but grad_band.
template <typename E>
void expect_same_bits(const WindowOutputs<E>& a, const WindowOutputs<E>& b, const std::string& what,
                      bool except_band = false) {
  for (int output = 0; output < kOutputs; ++output) {
    if (except_band && output == kGradBand) continue;
    const int64_t i = first_difference(a.of[output], b.of[output]);
    EXPECT_EQ(i, -1) << kOutputNames[output] << "[" << i << "]: " << a.of[output][i] << " and " << b.of[output][i]
                     << "; " << what;
  }
  EXPECT_EQ(a.position, b.position) << what;
  EXPECT_EQ(first_difference(a.max, b.max), -1) << "final_state.max; " << what;
  EXPECT_EQ(first_difference(a.ring_key, b.ring_key), -1) << "final_state.ring_key; " << what;
  EXPECT_EQ(first_difference(a.ring_value, b.ring_value), -1) << "final_state.ring_value; " << what;
}

}  // namespace aft::ops::test

#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/ops/error_rule.h"
#include "tests/ops/plain.h"
#include "tests/ops/run.h"

namespace aft::ops::test {

/// What judges E: one precision up.
template <typename E>
using Truth = std::conditional_t<std::is_same_v<E, double>, long double, double>;

template <typename E>
constexpr const char* kDtype = std::is_same_v<E, float>      ? "f32"
                               : std::is_same_v<E, double>   ? "f64"
                               : std::is_same_v<E, BFloat16> ? "bf16"
                                                             : "f16";

/// A type parameter of tests: a family and the element type of its tensors.
template <Family kF, typename Element>
struct On {
  static constexpr Family kFamily = kF;
  using E = Element;
};
/// Names them: window_f32.
struct OnName {
  template <class Type>
  static std::string GetName(int) {
    return std::string(kFamilyNames[static_cast<int>(Type::kFamily)]) + "_" + kDtype<typename Type::E>;
  }
};
template <Family kF>
using OnEveryDtype = ::testing::Types<On<kF, float>, On<kF, double>, On<kF, BFloat16>, On<kF, Float16>>;
template <class A, class B>
struct Joined;
template <class... A, class... B>
struct Joined<::testing::Types<A...>, ::testing::Types<B...>> {
  using type = ::testing::Types<A..., B...>;
};
using Windows = OnEveryDtype<Family::kWindow>;
using Sequences = Joined<Windows, OnEveryDtype<Family::kFull>>::type;
using Attentions = Joined<Sequences, OnEveryDtype<Family::kGrid>>::type;
using LocalBias = ::testing::Types<On<Family::kLocalBias, float>, On<Family::kLocalBias, double>>;
using Everything = Joined<Attentions, LocalBias>::type;

/// A call with its truth, worked out once for all runs of it.
template <typename E>
struct Judged {
  Inputs<E> inputs;
  Plain<E> plain;
  Outputs<Truth<E>> reference;

  explicit Judged(const Case& c) : Judged(make_inputs<E>(c)) {}
  explicit Judged(const Inputs<E>& in)
      : inputs(in), plain(run_plain(in)), reference(run_reference(convert<Truth<E>>(in))) {}
};

/// The absolute floor of the contract: 2^-60 of the largest value (f32, whose exponents end at 2^-149).
template <typename E>
double contract_floor(const Inputs<E>& in, const std::string& output) {
  if (!std::is_same_v<Accumulate<E>, float> || in.c.op == Operator::kLocalBias) return 0;
  const auto largest = [&](std::initializer_list<const char*> names) {
    double x = 0;
    for (const char* name : names) {
      if (!in.has(name)) continue;
      for (const auto value : in[name]) x = std::max(x, std::abs(double(value)));
    }
    return x;
  };
  const double value = largest({"v", "initial_ring_value", "initial_num"});
  const double grad = largest({"grad_y", "grad_final_num", "grad_final_den"});
  const bool of_values = output == "grad_v" || output == "grad_initial_num" || output == "grad_initial_ring_value";
  const double size = output == "y" || output == "final_num" ? value
                      : output == "final_den"                ? 1
                      : of_values                            ? grad
                                                             : grad * value;
  return std::ldexp(size, -60);
}

/// Judges a run's outputs: position, maximum and ring of a final state are exact, for the others is the error rule.
/// `pooled`: names of the pool beside operator, dtype and class of input; without `backward`, all but gradients.
template <typename E>
void judge(ErrorRule<E>& rule, const Judged<E>& judged, const Outputs<E>& out, const std::string& pooled = "",
           bool backward = true) {
  using T = Accumulate<E>;
  const Case& c = judged.inputs.c;
  const std::string key = operator_name(c) + ", " + kDtype<E> + ", " + c.input + (pooled.empty() ? "" : ", " + pooled);
  const std::string what = describe(c);
  for (const auto& [name, reference] : judged.reference) {
    if (!backward && name.starts_with("grad_")) continue;
    ASSERT_TRUE(out.has(name)) << name << "; " << what;
    if (judged.plain.outputs.has(name)) {
      rule.add(key, name, what, out[name], judged.plain.outputs[name], judged.plain.scales[name], reference.x,
               contract_floor(judged.inputs, name));
      continue;
    }
    ASSERT_TRUE(name.starts_with("final_")) << "the plain computation has no " << name;
    ASSERT_EQ(out[name].size(), reference.x.size()) << name << "; " << what;
    for (size_t i = 0; i < reference.x.size(); ++i) {
      // The neutral maximum is the lowest number of each type.
      const T x = out[name][i];
      const bool neutral = x == std::numeric_limits<T>::lowest();
      if (neutral && reference.x[i] == std::numeric_limits<Truth<E>>::lowest()) continue;
      ASSERT_TRUE(Truth<E>(x) == reference.x[i])
          << name << '[' << i << "] is " << x << ", not " << reference.x[i] << "; " << what;
    }
  }
  EXPECT_EQ(out.position, judged.reference.position) << what;
}

/// Runs the call through every backend and adds the results to `rule`.
template <typename E>
void run_and_judge(ErrorRule<E>& rule, const Judged<E>& judged, RunOptions options = {}) {
  for (const Backend& backend : backends()) {
    options.backend = &backend;
    judge(rule, judged, run(judged.inputs, options), backend.name);
  }
}

template <typename T>
bool same_bits(T a, T b) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  return std::bit_cast<Bits>(a) == std::bit_cast<Bits>(b);
}

/// Two arrays, bit for bit.
template <typename T>
void expect_same_bits(const std::vector<T>& a, const std::vector<T>& b, const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_TRUE(same_bits(a[i], b[i])) << what << '[' << i << "]: " << a[i] << " and " << b[i];
  }
}

/// Every output, the state included, bit for bit, but those named.
template <typename E>
void expect_same_bits(const Outputs<E>& a, const Outputs<E>& b, const std::string& what,
                      const std::vector<std::string>& but = {}) {
  const auto counts = [&](const std::string& name) { return std::find(but.begin(), but.end(), name) == but.end(); };
  for (const auto& [name, x] : b) ASSERT_TRUE(a.has(name) || !counts(name)) << name << "; " << what;
  for (const auto& [name, x] : a) {
    if (!counts(name)) continue;
    ASSERT_TRUE(b.has(name)) << name << "; " << what;
    expect_same_bits(x.x, b[name], what + "; " + name);
  }
  EXPECT_EQ(a.position, b.position) << what;
}

}  // namespace aft::ops::test

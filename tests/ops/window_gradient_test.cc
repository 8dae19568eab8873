// Gradients against central differences of the forward, in f64: the reference's own and the kernels' own.

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/ops/window_run.h"

namespace aft::ops::test {
namespace {

using Inputs = WindowInputs<double>;
using Outputs = WindowOutputs<double>;
using Run = std::function<Outputs(const Inputs&, bool backward)>;

// A loss whose gradient the backward gives: outputs and final state, each with its gradient as the weight. The sums of
// the state are taken in the scale of `base`, since the backward holds the maximum constant.
long double loss(const Inputs& in, const Outputs& out, const Outputs& base, long double* size) {
  long double sum = 0;
  *size = 0;
  const auto add = [&](long double x) { sum += x, *size += std::abs(x); };
  for (size_t i = 0; i < in.grad_y.size(); ++i) add((long double)in.grad_y[i] * out.of[kY][i]);
  if (!in.has_final) return sum;
  const WindowShape& s = in.shape;
  const auto scale = [&](int64_t i) {
    return out.max[i] == base.max[i] ? 1.0L : std::exp2((long double)(out.max[i] - base.max[i]));
  };
  for (int64_t i = 0; i < s.batch * s.key_channels; ++i) add(in.grad_final.den[i] * out.of[kFinalDen][i] * scale(i));
  for (int64_t i = 0; i < s.batch * s.channels; ++i) {
    const int64_t key = i / s.channels * s.key_channels + key_channel(s, i % s.channels);
    add(in.grad_final.num[i] * out.of[kFinalNum][i] * scale(key));
  }
  for (size_t i = 0; i < out.ring_key.size(); ++i) add(in.grad_final.ring_key[i] * out.ring_key[i]);
  for (size_t i = 0; i < out.ring_value.size(); ++i) add(in.grad_final.ring_value[i] * out.ring_value[i]);
  return sum;
}

void expect_central_differences(const WindowCase& c, const Run& run) {
  Inputs in = make_inputs<double>(c);
  const WindowShape& s = in.shape;
  const Outputs base = run(in, true);
  const auto check = [&](const char* name, std::vector<double>& x, const std::vector<double>& gradient, auto counts) {
    ASSERT_EQ(x.size(), gradient.size()) << name << "; " << describe(c);
    for (size_t i = 0; i < x.size(); ++i) {
      if (!counts(static_cast<int64_t>(i))) {
        EXPECT_EQ(gradient[i], 0) << name << '[' << i << "]; " << describe(c);
        continue;
      }
      const double at = x[i];
      long double size = 0;
      const auto difference = [&](double h) {
        x[i] = at + h;
        const long double up = loss(in, run(in, false), base, &size);
        const double x_up = x[i];
        x[i] = at - h;
        const long double down = loss(in, run(in, false), base, &size);
        const double width = x_up - x[i];
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
          << name << '[' << i << "]; " << describe(c);
    }
  };
  const auto all = [](int64_t) { return true; };
  check("grad_q", in.q, base.of[kGradQ], all);
  check("grad_k", in.k, base.of[kGradK], all);
  check("grad_v", in.v, base.of[kGradV], all);
  check("grad_band", in.band, base.of[kGradBand], all);
  if (in.initial.position.empty()) return;
  const auto summed = [&](int64_t width) {
    return [&in, &s, width](int64_t i) { return in.initial.position[i / width] > s.left; };
  };
  const auto in_ring = [&](int64_t width) {
    return [&in, &s, width](int64_t i) {
      return slot_holds_source(in.initial.position[i / (s.left * width)], s.left, i / width % s.left);
    };
  };
  check("grad_initial_state.den", in.initial.den, base.of[kGradInitialDen], summed(s.key_channels));
  check("grad_initial_state.num", in.initial.num, base.of[kGradInitialNum], summed(s.channels));
  check("grad_initial_state.ring_key", in.initial.ring_key, base.of[kGradInitialRingKey], in_ring(s.key_channels));
  check("grad_initial_state.ring_value", in.initial.ring_value, base.of[kGradInitialRingValue], in_ring(s.channels));
}

std::vector<WindowCase> small_cases() {
  std::vector<WindowCase> cases;
  uint64_t seed = 100;
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 1, 2, 4, 7, 12}) {
      for (const bool state : {false, true}) {
        if (state && !causal) continue;
        WindowCase c;
        c.batch = 2, c.time = 7, c.channels = 3, c.causal = causal, c.state = state, c.seed = ++seed;
        set_window(c, s);
        if (seed % 2 == 0) c.channels = 6, c.heads = 3;
        c.key_per_head = seed % 3 == 0;
        c.gate = seed % 4 == 1 ? Gate::kRelu : seed % 4 == 3 ? Gate::kNone : Gate::kSigmoid;
        c.shared_row = s == 4;
        cases.push_back(c);
      }
    }
  }
  WindowCase uneven{.batch = 1, .time = 8, .channels = 2, .causal = false, .has_band = true, .left = 1, .right = 4};
  cases.push_back(uneven);
  return cases;
}

TEST(WindowGradient, ReferenceAgreesWithCentralDifferences) {
  for (const WindowCase& c : small_cases()) {
    expect_central_differences(c, [](const Inputs& in, bool backward) { return run_reference(in, backward); });
  }
}

TEST(WindowGradient, KernelsAgreeWithCentralDifferences) {
  for (const WindowCase& c : small_cases()) {
    expect_central_differences(c,
                               [](const Inputs& in, bool backward) { return run_kernel(in, {.backward = backward}); });
  }
}

TEST(WindowGradient, UnwantedBandGradientChangesNothingElse) {
  WindowCase c{.batch = 2, .time = 70, .channels = 19, .seed = 7};
  set_window(c, 9);
  const Inputs in = make_inputs<double>(c);
  const Outputs with = run_kernel(in);
  const Outputs without = run_kernel(in, {.grad_band = false});
  for (const Output o : {kGradQ, kGradK, kGradV}) EXPECT_EQ(with.of[o], without.of[o]) << kOutputNames[o];
}

}  // namespace
}  // namespace aft::ops::test

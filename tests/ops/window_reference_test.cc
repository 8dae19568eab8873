// The reference against values worked out by hand, so that everything else may be judged by it.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/ops/window_run.h"

namespace aft::ops::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

std::vector<double> logs(std::vector<double> x) {
  for (double& value : x) value = std::log(value);
  return x;
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want, const char* what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-13) << what << '[' << i << ']';
}

// B = 1, d = 1, no gate.
WindowInputs<double> column(std::vector<double> exp_k, std::vector<double> v, bool causal) {
  WindowInputs<double> in;
  in.shape = {.batch = 1,
              .time = static_cast<int64_t>(v.size()),
              .channels = 1,
              .heads = 1,
              .key_channels = 1,
              .causal = causal,
              .gate = Gate::kNone};
  in.k = logs(exp_k);
  in.v = v;
  in.grad_y.assign(v.size(), 0);
  return in;
}

// e^k = 1, 2, 4 and v = 1, 4, -2 with e^w as given; -1 marks an entry outside the sequence, never read.
WindowInputs<double> local(int64_t left, int64_t right, bool causal, std::vector<double> exp_w) {
  WindowInputs<double> in = column({1, 2, 4}, {1, 4, -2}, causal);
  in.shape.has_band = true;
  in.shape.left = left;
  in.shape.right = right;
  in.band = logs(exp_w);  // log(-1) is NaN
  in.band_rows = 3;
  return in;
}

TEST(WindowReference, SimpleCausal) {
  // D = 1, 3, 7; N = 1, 1 + 2*4 = 9, 9 - 4*2 = 1.
  expect_near(run_reference(column({1, 2, 4}, {1, 4, -2}, true)).of[kY], {1, 3, 1.0 / 7}, "y");
}

TEST(WindowReference, SimpleNonCausal) {
  expect_near(run_reference(column({1, 2, 4}, {1, 4, -2}, false)).of[kY], {1.0 / 7, 1.0 / 7, 1.0 / 7}, "y");
}

TEST(WindowReference, LocalCausal) {
  // t=0: 1*3: y = 1.  t=1: source 0 1*2, source 1 2*1/2: D = 3, N = 2*1 + 1*4 = 6.
  // t=2: source 0 lies outside with weight 1, source 1 2*1/4, source 2 4*5: D = 21.5, N = 1 + 0.5*4 - 20*2 = -37.
  const auto in = local(1, 0, true, {-1, 3, 2, 0.5, 0.25, 5});
  expect_near(run_reference(in).of[kY], {1, 2, -37 / 21.5}, "y");
}

TEST(WindowReference, LocalNonCausal) {
  // t=0: source 0 1*3, source 1 2*1/2, source 2 outside 4: D = 8, N = 3 + 4 - 8 = -1.
  // t=1: 1*2, 2*1/2, 4*1/4: D = 4, N = 2 + 4 - 2 = 4.  t=2: as causal.
  const auto in = local(1, 1, false, {-1, 3, 0.5, 2, 0.5, 0.25, 0.25, 5, -1});
  expect_near(run_reference(in).of[kY], {-1.0 / 8, 1, -37 / 21.5}, "y");
}

TEST(WindowReference, OneRowOfWeightsForAllPositions) {
  // conv1d, e^w = 2 for the source before, 1/2 for the target itself.
  // t=0: y = 1.  t=1: 1*2, 2/2: D = 3, N = 6.  t=2: 1 outside, 2*2, 4/2: D = 7, N = 1 + 16 - 4 = 13.
  auto in = local(1, 0, true, {2, 0.5});
  in.shared_row = true;
  in.band_rows = 1;
  expect_near(run_reference(in).of[kY], {1, 2, 13.0 / 7}, "y");
}

TEST(WindowReference, Gates) {
  // sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-ln 3) = 1/4, with y = 1, 3, 1/7 ungated.
  auto in = column({1, 2, 4}, {1, 4, -2}, true);
  in.shape.gate = Gate::kSigmoid;
  in.q = {std::log(3), 0, -std::log(3)};
  expect_near(run_reference(in).of[kY], {0.75, 1.5, 1.0 / 28}, "y, sigmoid");
  in.shape.gate = Gate::kRelu;
  in.q = {2, -1, 7};
  expect_near(run_reference(in).of[kY], {2, 0, 1}, "y, relu");
}

TEST(WindowReference, AbsentSourcesAndForbiddenPairs) {
  auto in = column({0, 2, 0}, {std::nan(""), 4, std::nan("")}, true);  // e^k = 0: k = -inf
  in.grad_y = {5, 5, 5};
  const auto simple = run_reference(in);
  expect_near(simple.of[kY], {0, 4, 4}, "y");
  expect_near(simple.of[kGradV], {0, 10, 0}, "grad_v");
  expect_near(simple.of[kGradK], {0, 0, 0}, "grad_k");
  // w = -inf at t=0 forbids its only source; at t=1 it leaves source 0: y = 1.
  const auto forbidden = run_reference(local(1, 0, true, {-1, 0, 2, 0, 0.25, 5}));
  expect_near(forbidden.of[kY], {0, 1, -37 / 21.5}, "y with forbidden pairs");
}

TEST(WindowReference, KeyPerHead) {
  // Two heads of two channels; e^k = 1, 2 in head 0 and 2, 2 in head 1.
  WindowInputs<double> in;
  in.shape = {.batch = 1, .time = 2, .channels = 4, .heads = 2, .key_channels = 2, .gate = Gate::kNone};
  in.k = logs({1, 2, 2, 2});
  in.v = {1, 3, 5, 7, /* t=1 */ 4, 6, 1, -1};
  in.grad_y = {0, 0, 0, 0, 6, 12, 4, 8};
  const auto out = run_reference(in);
  // t=1: head 0 weighs 1/3, 2/3; head 1 1/2, 1/2.
  expect_near(out.of[kY], {1, 3, 5, 7, 3, 5, 3, 3}, "y");
  // grad_k sums over the head: head 0, t'=0: 1/3*6*(1-3) + 1/3*12*(3-5) = -12; t'=1 the negative of it.
  // head 1, t'=0: 1/2*4*(5-3) + 1/2*8*(7-3) = 20.
  expect_near(out.of[kGradK], {-12, 20, 12, -20}, "grad_k");
  expect_near(out.of[kGradV], {2, 4, 2, 4, 4, 8, 2, 4}, "grad_v");
}

TEST(WindowReference, GradientsOfSimple) {
  // e^k = 1, 2; v = 1, 4: r = 1, 3; a = (1), (1/3, 2/3); grad_y = 10, 6.
  auto in = column({1, 2}, {1, 4}, true);
  in.grad_y = {10, 6};
  auto out = run_reference(in);
  expect_near(out.of[kGradV], {10 + 2, 4}, "grad_v");
  // 1*10*(1-1) + 1/3*6*(1-3) = -4;  2/3*6*(4-3) = 4.
  expect_near(out.of[kGradK], {-4, 4}, "grad_k");
  // sigmoid(ln 3) = 3/4, its slope 3/4 * 1/4 = 3/16.
  in.shape.gate = Gate::kSigmoid;
  in.q = {std::log(3), std::log(3)};
  out = run_reference(in);
  expect_near(out.of[kGradQ], {10 * 1 * 3.0 / 16, 6 * 3 * 3.0 / 16}, "grad_q");
  expect_near(out.of[kGradV], {9, 3}, "grad_v, sigmoid");
  expect_near(out.of[kGradK], {-3, 3}, "grad_k, sigmoid");
  in.shape.gate = Gate::kRelu;
  in.q = {-1, 2};
  out = run_reference(in);
  expect_near(out.of[kGradQ], {0, 6 * 3}, "grad_q, relu");
  expect_near(out.of[kGradV], {4, 8}, "grad_v, relu");
}

TEST(WindowReference, GradientsOfLocal) {
  // e^k = 1, 2; v = 1, 4; t=1: a = (1*2, 2*1/2)/3 = (2/3, 1/3), r = 2; grad_y = 10, 6.
  auto in = column({1, 2}, {1, 4}, true);
  in.shape.has_band = true;
  in.shape.left = 1;
  in.band = logs({-1, 3, 2, 0.5});
  in.band_rows = 2;
  in.grad_y = {10, 6};
  const auto out = run_reference(in);
  expect_near(out.of[kGradV], {10 + 4, 2}, "grad_v");
  expect_near(out.of[kGradK], {2.0 / 3 * 6 * (1 - 2), 1.0 / 3 * 6 * (4 - 2)}, "grad_k");
  expect_near(out.of[kGradBand], {0, 0, -4, 4}, "grad_band");
}

TEST(WindowReference, StateOfSimple) {
  // n = round(log2 e^k) = 0, 1, 2. After two positions: max 1, den 1/2 + 1, num (1 + 8)/2.
  auto in = column({1, 2}, {1, 4}, true);
  in.has_final = true;
  in.grad_final = {{}, {}, {2}, {8}, {}, {}};
  const auto two = run_reference(in);
  EXPECT_EQ(two.position, std::vector<int64_t>{2});
  expect_near(two.max, {1}, "max");
  expect_near(two.of[kFinalDen], {1.5}, "den");
  expect_near(two.of[kFinalNum], {4.5}, "num");
  // Through the state with grad_den = 2, grad_num = 8: grad_v = e^k/2 * 8; grad_k = e^k/2 * (2 + 8 v).
  expect_near(two.of[kGradV], {4, 8}, "grad_v");
  expect_near(two.of[kGradK], {5, 34}, "grad_k");

  // One position more, e^k = 4, v = -2: D = 2*1.5 + 4 = 7, N = 2*4.5 - 8 = 1. max 2, den 7/4, num 1/4.
  auto next = column({4}, {-2}, true);
  next.initial = final_state(two);
  next.has_final = true;
  next.grad_final = {{}, {}, {0}, {0}, {}, {}};
  next.grad_y = {7};
  const auto three = run_reference(next);
  expect_near(three.of[kY], {1.0 / 7}, "y");
  EXPECT_EQ(three.position, std::vector<int64_t>{3});
  expect_near(three.max, {2}, "max");
  expect_near(three.of[kFinalDen], {1.75}, "den");
  expect_near(three.of[kFinalNum], {0.25}, "num");
  // The old sums weigh 2 each in N and D: grad_num = 2/7 * 7, grad_den = -2/7 * 7 * 1/7.
  expect_near(three.of[kGradInitialNum], {2}, "grad_initial_state.num");
  expect_near(three.of[kGradInitialDen], {-2.0 / 7}, "grad_initial_state.den");
  expect_near(three.of[kGradV], {4}, "grad_v");
  expect_near(three.of[kGradK], {4.0 / 7 * 7 * (-2 - 1.0 / 7)}, "grad_k");
}

TEST(WindowReference, StateOfLocal) {
  // Reach 2: after three positions the sums hold source 0, slot 1 holds source 1, slot 0 source 2.
  auto in = local(2, 0, true, {-1, -1, 3, -1, 2, 0.5, 1, 0.25, 5});
  in.has_final = true;
  in.grad_final = {{}, {}, {3}, {5}, {10, 20}, {30, 40}};
  const auto out = run_reference(in);
  EXPECT_EQ(out.position, std::vector<int64_t>{3});
  expect_near(out.max, {0}, "max");
  expect_near(out.of[kFinalDen], {1}, "den");
  expect_near(out.of[kFinalNum], {1}, "num");
  expect_near(out.ring_key, logs({4, 2}), "ring_key");
  expect_near(out.ring_value, {-2, 4}, "ring_value");
  // Source 0: grad_v = 5, grad_k = 3 + 1*5; the ring passes straight to sources 1 and 2.
  expect_near(out.of[kGradV], {5, 40, 30}, "grad_v");
  expect_near(out.of[kGradK], {8, 20, 10}, "grad_k");

  // The fourth position from that state: e^k = 1, v = 2; e^w = 2, 1/2, 3 for sources 1, 2, 3.
  // D = 1 + 2*2 + 4/2 + 3 = 10; N = 1 + 4*4 + 2*(-2) + 3*2 = 19.
  auto next = column({1}, {2}, true);
  next.shape.has_band = true;
  next.shape.left = 2;
  next.band = logs({-1, -1, 3, -1, 2, 0.5, 1, 0.25, 5, 2, 0.5, 3});
  next.band_rows = 4;
  next.initial = {out.position, out.max, out.of[kFinalDen], out.of[kFinalNum], out.ring_key, out.ring_value};
  next.grad_y = {10};
  const auto fourth = run_reference(next);
  expect_near(fourth.of[kY], {1.9}, "y");
  expect_near(fourth.of[kGradInitialNum], {1}, "grad_initial_state.num");
  expect_near(fourth.of[kGradInitialDen], {-1.9}, "grad_initial_state.den");
  expect_near(fourth.of[kGradInitialRingValue], {2, 4}, "grad_initial_state.ring_value");  // sources 2, 1
  expect_near(fourth.of[kGradInitialRingKey], {2 * (-2 - 1.9), 4 * (4 - 1.9)}, "grad_initial_state.ring_key");
  expect_near(fourth.of[kGradBand], {0, 0, 0, 0, 0, 0, 0, 0, 0, 4 * (4 - 1.9), 2 * (-2 - 1.9), 3 * (2 - 1.9)},
              "grad_band");
}

TEST(WindowReference, NothingToSee) {
  for (const double x : {1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    auto in = column({0}, {kInf}, true);
    in.shape.gate = Gate::kRelu;
    in.q = {x};
    in.grad_y = {x};
    const auto out = run_reference(in);
    expect_near(out.of[kY], {0}, "y");
    expect_near(out.of[kGradQ], {0}, "grad_q");
    expect_near(out.of[kGradV], {0}, "grad_v");
  }
}

}  // namespace
}  // namespace aft::ops::test

// The references against values worked out by hand, so that everything else may be judged by them; the kernels, too.

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/ops/run.h"

namespace aft::ops::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
using Values = std::vector<double>;
using Named = std::vector<std::pair<const char*, Values>>;

Values logs(Values x) {
  for (double& value : x) value = std::log(value);
  return x;
}

void expect_near(const Outputs<double>& out, const Named& want, double error, const std::string& what) {
  for (const auto& [name, values] : want) {
    const Values& got = out[name];
    ASSERT_EQ(got.size(), values.size()) << name << ", " << what;
    for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], values[i], error) << name << '[' << i << "], " << what;
  }
}

// The reference's outputs, and the kernels as good.
Outputs<double> expect_values(const Inputs<double>& in, const Named& want, double error = 1e-13) {
  expect_near(run(in), want, error, "kernels");
  const Outputs<double> out = run_reference(in);
  expect_near(out, want, error, "reference");
  return out;
}

void give(Inputs<double>& in, const char* name, Along along, const Values& x) {
  in.set(name, {along, along == Along::kNothing ? static_cast<int64_t>(x.size()) : 1, x});
}

// B = 1, d = 1, no gate.
Inputs<double> column(Values exp_k, const Values& v, bool causal) {
  Inputs<double> in;
  in.c = {.time = static_cast<int64_t>(v.size()), .causal = causal, .gate = Gate::kNone};
  give(in, "k", Along::kSources, logs(std::move(exp_k)));
  give(in, "v", Along::kSources, v);
  give(in, "grad_y", Along::kTargets, Values(v.size(), 0));
  return in;
}

void give_weights(Inputs<double>& in, Operator op, int64_t rows, Values exp_w) {
  in.c.op = op;
  in.rows = rows;
  in.columns = static_cast<int64_t>(exp_w.size()) / rows;
  give(in, "weights", Along::kNothing, logs(std::move(exp_w)));
}

// e^k = 1, 2, 4 and v = 1, 4, -2 with e^w as given; -1, whose logarithm is NaN, marks an entry outside the sequence.
Inputs<double> local(int64_t left, int64_t right, bool causal, const Values& exp_w) {
  Inputs<double> in = column({1, 2, 4}, {1, 4, -2}, causal);
  in.c.left = left, in.c.right = right, in.ring = left;
  give_weights(in, Operator::kLocal, 3, exp_w);
  return in;
}

TEST(WindowReference, SimpleCausal) {
  // D = 1, 3, 7; N = 1, 1 + 2*4 = 9, 9 - 4*2 = 1.
  expect_values(column({1, 2, 4}, {1, 4, -2}, true), {{"y", {1, 3, 1.0 / 7}}});
}

TEST(WindowReference, SimpleNonCausal) {
  expect_values(column({1, 2, 4}, {1, 4, -2}, false), {{"y", {1.0 / 7, 1.0 / 7, 1.0 / 7}}});
}

TEST(WindowReference, LocalCausal) {
  // t=0: 1*3: y = 1.  t=1: source 0 1*2, source 1 2*1/2: D = 3, N = 2*1 + 1*4 = 6.
  // t=2: source 0 lies outside with weight 1, source 1 2*1/4, source 2 4*5: D = 21.5, N = 1 + 0.5*4 - 20*2 = -37.
  expect_values(local(1, 0, true, {-1, 3, 2, 0.5, 0.25, 5}), {{"y", {1, 2, -37 / 21.5}}});
}

TEST(WindowReference, LocalNonCausal) {
  // t=0: source 0 1*3, source 1 2*1/2, source 2 outside 4: D = 8, N = 3 + 4 - 8 = -1.
  // t=1: 1*2, 2*1/2, 4*1/4: D = 4, N = 2 + 4 - 2 = 4.  t=2: as causal.
  expect_values(local(1, 1, false, {-1, 3, 0.5, 2, 0.5, 0.25, 0.25, 5, -1}), {{"y", {-1.0 / 8, 1, -37 / 21.5}}});
}

TEST(WindowReference, OneRowOfWeightsForAllPositions) {
  // conv1d, e^w = 2 for the source before, 1/2 for the target itself.
  // t=0: y = 1.  t=1: 1*2, 2/2: D = 3, N = 6.  t=2: 1 outside, 2*2, 4/2: D = 7, N = 1 + 16 - 4 = 13.
  Inputs<double> in = local(1, 0, true, {2, 0.5, 1, 1, 1, 1});
  give_weights(in, Operator::kConv1d, 1, {2, 0.5});
  expect_values(in, {{"y", {1, 2, 13.0 / 7}}});
}

TEST(WindowReference, Gates) {
  // sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-ln 3) = 1/4, with y = 1, 3, 1/7 ungated.
  Inputs<double> in = column({1, 2, 4}, {1, 4, -2}, true);
  in.c.gate = Gate::kSigmoid;
  give(in, "q", Along::kTargets, {std::log(3), 0, -std::log(3)});
  expect_values(in, {{"y", {0.75, 1.5, 1.0 / 28}}});
  in.c.gate = Gate::kRelu;
  in["q"] = {2, -1, 7};
  expect_values(in, {{"y", {2, 0, 1}}});
}

TEST(WindowReference, AbsentSourcesAndForbiddenPairs) {
  Inputs<double> in = column({0, 2, 0}, {std::nan(""), 4, std::nan("")}, true);  // e^k = 0: k = -inf
  in["grad_y"] = {5, 5, 5};
  expect_values(in, {{"y", {0, 4, 4}}, {"grad_v", {0, 10, 0}}, {"grad_k", {0, 0, 0}}});
  // w = -inf at t=0 forbids its only source; at t=1 it leaves source 0: y = 1.
  expect_values(local(1, 0, true, {-1, 0, 2, 0, 0.25, 5}), {{"y", {0, 1, -37 / 21.5}}});
}

TEST(WindowReference, KeyPerHead) {
  // Two heads of two channels; e^k = 1, 2 in head 0 and 2, 2 in head 1.
  Inputs<double> in;
  in.c = {.time = 2, .channels = 4, .heads = 2, .key_per_head = true, .gate = Gate::kNone};
  in.set("k", {Along::kSources, 2, logs({1, 2, 2, 2})});
  in.set("v", {Along::kSources, 4, {1, 3, 5, 7, /* t=1 */ 4, 6, 1, -1}});
  in.set("grad_y", {Along::kTargets, 4, {0, 0, 0, 0, 6, 12, 4, 8}});
  // t=1: head 0 weighs 1/3, 2/3; head 1 1/2, 1/2.
  // grad_k sums over the head: head 0, t'=0: 1/3*6*(1-3) + 1/3*12*(3-5) = -12; t'=1 the negative of it.
  // head 1, t'=0: 1/2*4*(5-3) + 1/2*8*(7-3) = 20.
  expect_values(
      in, {{"y", {1, 3, 5, 7, 3, 5, 3, 3}}, {"grad_k", {-12, 20, 12, -20}}, {"grad_v", {2, 4, 2, 4, 4, 8, 2, 4}}});
}

TEST(WindowReference, GradientsOfSimple) {
  // e^k = 1, 2; v = 1, 4: r = 1, 3; a = (1), (1/3, 2/3); grad_y = 10, 6.
  Inputs<double> in = column({1, 2}, {1, 4}, true);
  in["grad_y"] = {10, 6};
  // grad_k: 1*10*(1-1) + 1/3*6*(1-3) = -4;  2/3*6*(4-3) = 4.
  expect_values(in, {{"grad_v", {10 + 2, 4}}, {"grad_k", {-4, 4}}});
  // sigmoid(ln 3) = 3/4, its slope 3/4 * 1/4 = 3/16.
  in.c.gate = Gate::kSigmoid;
  give(in, "q", Along::kTargets, {std::log(3), std::log(3)});
  expect_values(in, {{"grad_q", {10 * 1 * 3.0 / 16, 6 * 3 * 3.0 / 16}}, {"grad_v", {9, 3}}, {"grad_k", {-3, 3}}});
  in.c.gate = Gate::kRelu;
  in["q"] = {-1, 2};
  expect_values(in, {{"grad_q", {0, 6 * 3}}, {"grad_v", {4, 8}}});
}

TEST(WindowReference, GradientsOfLocal) {
  // e^k = 1, 2; v = 1, 4; t=1: a = (1*2, 2*1/2)/3 = (2/3, 1/3), r = 2; grad_y = 10, 6.
  Inputs<double> in = column({1, 2}, {1, 4}, true);
  in.c.left = in.ring = 1;
  give_weights(in, Operator::kLocal, 2, {-1, 3, 2, 0.5});
  in["grad_y"] = {10, 6};
  expect_values(in, {{"grad_v", {10 + 4, 2}},
                     {"grad_k", {2.0 / 3 * 6 * (1 - 2), 1.0 / 3 * 6 * (4 - 2)}},
                     {"grad_weights", {0, 0, -4, 4}}});
}

void give_final_gradients(Inputs<double>& in, double den, double num, const Values& key, const Values& value) {
  in.has_final = true;
  give(in, "grad_final_den", Along::kSequences, {den});
  give(in, "grad_final_num", Along::kSequences, {num});
  in.set("grad_final_ring_key", {Along::kSequences, in.ring, key});
  in.set("grad_final_ring_value", {Along::kSequences, in.ring, value});
}

TEST(WindowReference, StateOfSimple) {
  // n = round(log2 e^k) = 0, 1, 2. After two positions: max 1, den 1/2 + 1, num (1 + 8)/2.
  // Through the state with grad_den = 2, grad_num = 8: grad_v = e^k/2 * 8; grad_k = e^k/2 * (2 + 8 v).
  Inputs<double> in = column({1, 2}, {1, 4}, true);
  give_final_gradients(in, 2, 8, {}, {});
  const Outputs<double> two = expect_values(
      in, {{"final_max", {1}}, {"final_den", {1.5}}, {"final_num", {4.5}}, {"grad_v", {4, 8}}, {"grad_k", {5, 34}}});
  EXPECT_EQ(two.position, std::vector<int64_t>{2});

  // One position more, e^k = 4, v = -2: D = 2*1.5 + 4 = 7, N = 2*4.5 - 8 = 1. max 2, den 7/4, num 1/4.
  // The old sums weigh 2 each in N and D: grad_num = 2/7 * 7, grad_den = -2/7 * 7 * 1/7.
  Inputs<double> next = column({4}, {-2}, true);
  start_from(next, two);
  give_final_gradients(next, 0, 0, {}, {});
  next["grad_y"] = {7};
  const Outputs<double> three = expect_values(next, {{"y", {1.0 / 7}},
                                                     {"final_max", {2}},
                                                     {"final_den", {1.75}},
                                                     {"final_num", {0.25}},
                                                     {"grad_initial_num", {2}},
                                                     {"grad_initial_den", {-2.0 / 7}},
                                                     {"grad_v", {4}},
                                                     {"grad_k", {4.0 / 7 * 7 * (-2 - 1.0 / 7)}}});
  EXPECT_EQ(three.position, std::vector<int64_t>{3});
}

TEST(WindowReference, StateOfLocal) {
  // Reach 2: after three positions the sums hold source 0, slot 1 holds source 1, slot 0 source 2.
  // Source 0: grad_v = 5, grad_k = 3 + 1*5; the ring passes straight to sources 1 and 2.
  const Values exp_w = {-1, -1, 3, -1, 2, 0.5, 1, 0.25, 5};
  Inputs<double> in = local(2, 0, true, exp_w);
  give_final_gradients(in, 3, 5, {10, 20}, {30, 40});
  const Outputs<double> out = expect_values(in, {{"final_max", {0}},
                                                 {"final_den", {1}},
                                                 {"final_num", {1}},
                                                 {"final_ring_key", logs({4, 2})},
                                                 {"final_ring_value", {-2, 4}},
                                                 {"grad_v", {5, 40, 30}},
                                                 {"grad_k", {8, 20, 10}}});
  EXPECT_EQ(out.position, std::vector<int64_t>{3});

  // The fourth position from that state: e^k = 1, v = 2; e^w = 2, 1/2, 3 for sources 1, 2, 3.
  // D = 1 + 2*2 + 4/2 + 3 = 10; N = 1 + 4*4 + 2*(-2) + 3*2 = 19.
  Inputs<double> next = column({1}, {2}, true);
  next.c.left = next.ring = 2;
  Values longer = exp_w;
  longer.insert(longer.end(), {2, 0.5, 3});
  give_weights(next, Operator::kLocal, 4, longer);
  start_from(next, out);
  next["grad_y"] = {10};
  expect_values(next, {{"y", {1.9}},
                       {"grad_initial_num", {1}},
                       {"grad_initial_den", {-1.9}},
                       {"grad_initial_ring_value", {2, 4}},  // sources 2, 1
                       {"grad_initial_ring_key", {2 * (-2 - 1.9), 4 * (4 - 1.9)}},
                       {"grad_weights", {0, 0, 0, 0, 0, 0, 0, 0, 0, 4 * (4 - 1.9), 2 * (-2 - 1.9), 3 * (2 - 1.9)}}});
}

TEST(WindowReference, NothingToSee) {
  for (const double x : {1.0, kInf, std::nan("")}) {
    Inputs<double> in = column({0}, {kInf}, true);
    in.c.gate = Gate::kRelu;
    give(in, "q", Along::kTargets, {x});
    in["grad_y"] = {x};
    expect_values(in, {{"y", {0}}, {"grad_q", {0}}, {"grad_v", {0}}});
  }
}

TEST(FullReference, Averages) {
  // w = ln of whole numbers, k = 0: averages with the weights 1; 2, 1; 1, 3, 4 of v = 1, 3, 7; -1: the future.
  Inputs<double> in = column({1, 1, 1}, {1, 3, 7}, true);
  in["grad_y"] = {1, 1, 1};
  give_weights(in, Operator::kFull, 3, {5, -1, -1, 2, 1, -1, 1, 3, 4});
  const Values y = {1, 5.0 / 3, 38.0 / 8};
  // dv = column sums of the averages; dw = a (v - y), of which dk is the column sums.
  const Values dw = {
      0, 0, 0, 2.0 / 3 * (1 - y[1]), 1.0 / 3 * (3 - y[1]), 0, (1 - y[2]) / 8, 3 * (3 - y[2]) / 8, (7 - y[2]) / 2};
  expect_values(in,
                {{"y", y},
                 {"grad_v", {1 + 2.0 / 3 + 1.0 / 8, 1.0 / 3 + 3.0 / 8, 0.5}},
                 {"grad_weights", dw},
                 {"grad_k", {dw[3] + dw[6], dw[4] + dw[7], dw[8]}}},
                1e-14);
}

TEST(FullReference, Factors) {
  // u v^T = ln 2 times {1, 2; 0, 1}, not causal: averages of v = 1, 5 with the weights 2, 4 and 1, 2.
  Inputs<double> in = column({1, 1}, {1, 5}, false);
  in.c.op = Operator::kFull, in.c.weights = Weights::kFactors, in.c.factors = 2;
  in.rows = in.columns = 2;
  const double ln2 = std::log(2);
  give(in, "u", Along::kNothing, {1, 1, 0, 1});
  give(in, "w", Along::kNothing, {ln2, 0, ln2, ln2});
  in["grad_y"] = {9, 0};
  // dw = 9 a (v - y) = 9/3 (1 - 11/3), 18/3 (5 - 11/3) in row 0; du = dw v, dv = dw^T u.
  expect_values(in, {{"y", {11.0 / 3, 11.0 / 3}},
                     {"grad_v", {3, 6}},
                     {"grad_k", {-8, 8}},
                     {"grad_u", {0, 8 * ln2, 0, 0}},
                     {"grad_w", {-8, -8, 8, 8}}});
}

TEST(GridReference, TwoByTwo) {
  // A kernel of 3 x 3 on 2 x 2 positions: e^w = 2 to the right neighbour, 3 to the one below, else 1; v = 1, 2, 3, 4.
  // t=0: 1 + 2*2 + 3*3 + 4 over 1 + 2 + 3 + 1; t=1: 1 + 2 + 3 + 3*4 over 6; t=2: 1 + 2 + 3 + 2*4 over 5; t=3: 10
  // over 4.
  Inputs<double> in = column({1, 1, 1, 1}, {1, 2, 3, 4}, false);
  in.c.height = in.c.width = 2, in.c.kernel = 3;
  give_weights(in, Operator::kConv2d, 3, {1, 1, 1, 1, 1, 2, 1, 3, 1});
  in["grad_y"] = {0, 6, 0, 0};
  // t=1 weighs 1, 1, 1, 3 of 6; (dy, dx) of its sources are (0, -1), (0, 0), (1, -1) and (1, 0).
  expect_values(in, {{"y", {18.0 / 7, 3, 14.0 / 5, 10.0 / 4}},
                     {"grad_v", {1, 1, 1, 3}},
                     {"grad_k", {-2, -1, 0, 3}},
                     {"grad_weights", {0, 0, 0, -2, -1, 0, 0, 3, 0}}});
}

TEST(LocalBiasReference, SmallIntegers) {
  // T = 3, d' = 2, reach 1 to both sides; 9 marks gradients outside the sequence, to be ignored.
  Inputs<double> in;
  in.c = {.op = Operator::kLocalBias, .time = 3, .left = 1, .right = 1, .factors = 2};
  give(in, "u", Along::kNothing, {1, 2, 0, 1, 3, -1});
  give(in, "v", Along::kNothing, {1, 0, 2, 1, -1, 4});
  give(in, "grad_band", Along::kNothing, {9, 1, 2, 3, 4, 5, 6, 7, 9});
  // u0.v0 = 1, u0.v1 = 2 + 2; u1.v0 = 0, u1.v1 = 1, u1.v2 = 4; u2.v1 = 6 - 1, u2.v2 = -3 - 4.
  // grad_u: 1 v0 + 2 v1; 3 v0 + 4 v1 + 5 v2; 6 v1 + 7 v2.  grad_v: 1 u0 + 3 u1; 2 u0 + 4 u1 + 6 u2; 5 u1 + 7 u2.
  expect_values(
      in, {{"band", {0, 1, 4, 0, 1, 4, 5, -7, 0}}, {"grad_u", {5, 2, 6, 24, 5, 34}}, {"grad_v", {1, 5, 20, 2, 21, -2}}},
      0);
}

}  // namespace
}  // namespace aft::ops::test

// Every operator over its whole list of cases, judged by the error rule on every backend. (Hard numbers have a test of
// their own.)

#include <gtest/gtest.h>

#include "tests/ops/judge.h"
#include "tests/ops/threads.h"

namespace aft::ops::test {
namespace {

template <class Type>
class Operators : public ::testing::Test {};
TYPED_TEST_SUITE(Operators, Everything, OnName);

// The plain computation is itself an independent one: it must agree with the reference closely.
template <typename E>
void expect_plain_agrees(const Judged<E>& judged) {
  for (const auto& [name, plain] : judged.plain.outputs) {
    const auto& reference = judged.reference[name];
    ASSERT_EQ(plain.x.size(), reference.size()) << name;
    for (size_t i = 0; i < reference.size(); ++i) {
      ASSERT_NEAR(double(plain.x[i]), double(reference[i]), 1000 * judged.plain.scales[name][i])
          << "plain " << name << '[' << i << "]; " << describe(judged.inputs.c);
    }
  }
}

TYPED_TEST(Operators, ErrorRuleHolds) {
  using E = typename TypeParam::E;
  ErrorRule<E> rule;
  Threads threads(3);
  int64_t n = 0;
  for (const Case& c : cases(TypeParam::kFamily)) {
    const Judged<E> judged(c);
    expect_plain_agrees(judged);
    RunOptions options = {.shift = ++n % 3};
    if (n % 4 == 0) options.parallel = threads.parallel_for();
    run_and_judge(rule, judged, options);
  }
  // On a grid grad_q and grad_k come from values less the mean of their image: small ones are less exact than the plain
  // ones.
  rule.check_each_element(/*maxima=*/TypeParam::kFamily != Family::kGrid);
}

// A suite of its own: shards take turns test by test, and the long ones should not all fall to one.
template <class Type>
class ManyHeads : public ::testing::Test {};
TYPED_TEST_SUITE(ManyHeads, Everything, OnName);

// More than the second or third dimension of a grid of blocks takes, 65,535.
TYPED_TEST(ManyHeads, ErrorRuleHolds) {
  using E = typename TypeParam::E;
  if (!current_backend().cuda) GTEST_SKIP() << "a limit of CUDA alone";
  Case c{.op = Operator::kFull, .time = 4, .channels = 70'000, .heads = 70'000, .seed = 19};
  if (TypeParam::kFamily == Family::kWindow) set_window(c, 3);
  if (TypeParam::kFamily == Family::kGrid) set_grid(c, 2, 2, 3);
  if (TypeParam::kFamily == Family::kFull) c.weights = Weights::kTablePerHead;
  if (TypeParam::kFamily == Family::kLocalBias) c.op = Operator::kLocalBias, c.left = 1;
  ErrorRule<E> rule;
  run_and_judge(rule, Judged<E>(c));
  rule.check_each_element(/*maxima=*/TypeParam::kFamily != Family::kGrid);
}

TYPED_TEST(Operators, NothingToDoAndNothingToSee) {
  using E = typename TypeParam::E;
  for (const Case& shape : cases(TypeParam::kFamily)) {
    if (shape.packed() || shape.family() == Family::kLocalBias) continue;
    for (const auto& [batch, channels] : {std::pair(0, 3), std::pair(2, 0)}) {
      Case c = shape;
      c.batch = batch, c.channels = channels, c.heads = 1, c.key_per_head = false;
      EXPECT_TRUE(run(make_inputs<E>(c))["y"].empty()) << describe(c);
    }
    // Without sources every target sees nothing, without targets no weight has a gradient.
    if (shape.op != Operator::kFull || shape.causal) continue;
    for (const auto& [time, sources] : {std::pair(5, 0), std::pair(0, 5)}) {
      Case c = shape;
      c.time = time, c.sources = sources;
      for (const auto& [name, x] : run(make_inputs<E>(c))) {
        for (const auto value : x.x) ASSERT_EQ(value, 0) << name << "; " << describe(c);
      }
    }
  }
}

}  // namespace
}  // namespace aft::ops::test

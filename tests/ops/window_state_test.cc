// The state: a sequence cut anywhere, into chunks and single steps, is the same sequence.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "aft/error.h"
#include "tests/ops/window_compare.h"

namespace aft::ops::test {
namespace {

template <typename T>
class WindowState : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(WindowState, Dtypes);

std::vector<WindowCase> state_cases() {
  std::vector<WindowCase> cases;
  uint64_t seed = 50;
  for (const char* input : {"normal", "wide", "apart"}) {
    for (const int64_t time : {9, 30, 70, 71, 100, 150}) {
      for (const int64_t s : {0, 1, 2, 7, 32, 160}) {
        seed += 2;  // even: the final state is wanted without an initial one, too
        WindowCase c;
        c.input = input, c.batch = 3, c.time = time, c.channels = time > 100 ? 9 : 15, c.seed = seed;
        set_window(c, s);
        c.heads = seed % 3 == 0 ? 3 : 1;
        c.key_per_head = seed % 5 == 0;
        c.state = seed % 4 == 0;
        c.gate = seed % 6 == 0 ? Gate::kNone : Gate::kSigmoid;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

template <typename T>
void append_time(std::vector<T>& whole, const std::vector<T>& part, const WindowShape& s, int64_t width, int64_t begin,
                 int64_t end) {
  whole.resize(s.batch * s.time * width);
  for (int64_t b = 0; b < s.batch && !part.empty(); ++b) {
    std::copy_n(part.begin() + b * (end - begin) * width, (end - begin) * width,
                whole.begin() + (b * s.time + begin) * width);
  }
}

struct Cut {
  int64_t begin, end;
  bool steps;
};

std::vector<Cut> random_cuts(int64_t time, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Cut> cuts;
  for (int64_t t = 0; t < time;) {
    const int64_t longest = random() % 3 == 0 ? 3 : 60;
    const int64_t end = std::min<int64_t>(time, t + random() % longest);  // empty chunks too
    cuts.push_back({t, end, random() % 3 == 0});
    t = end;
  }
  return cuts;
}

// The whole from its pieces: outputs, final state, and gradients chained from the last piece to the first.
template <typename E>
WindowOutputs<E> run_cut(const WindowInputs<E>& in, const std::vector<Cut>& cuts) {
  using T = Accumulate<E>;
  const WindowShape& s = in.shape;
  WindowOutputs<E> whole;
  std::vector<StateData<T>> states = {in.initial};
  for (const Cut& cut : cuts) {
    WindowInputs<E> piece = slice_time(in, cut.begin, cut.end, states.back());
    piece.has_final = true;
    const WindowOutputs<E> out = cut.steps ? run_steps(piece) : run_kernel(piece, {.backward = false});
    append_time(whole.of[kY], out.of[kY], s, s.channels, cut.begin, cut.end);
    states.push_back(final_state(out));
    if (&cut == &cuts.back()) {
      for (const Output o : {kFinalDen, kFinalNum}) whole.of[o] = out.of[o];
      whole.position = out.position, whole.max = out.max;
      whole.ring_key = out.ring_key, whole.ring_value = out.ring_value;
    }
  }
  std::vector<double> grad_band(in.band.size(), 0);
  StateData<T> grad = in.grad_final;
  for (size_t i = cuts.size(); i-- > 0;) {
    const Cut& cut = cuts[i];
    WindowInputs<E> piece = slice_time(in, cut.begin, cut.end, states[i]);
    piece.has_final = true;
    piece.grad_final = grad;
    const WindowOutputs<E> out = run_kernel(piece);
    if (s.gate != Gate::kNone) append_time(whole.of[kGradQ], out.of[kGradQ], s, s.channels, cut.begin, cut.end);
    append_time(whole.of[kGradK], out.of[kGradK], s, s.key_channels, cut.begin, cut.end);
    append_time(whole.of[kGradV], out.of[kGradV], s, s.channels, cut.begin, cut.end);
    for (size_t j = 0; j < grad_band.size(); ++j) grad_band[j] += double(out.of[kGradBand][j]);
    grad.den = out.of[kGradInitialDen];
    grad.num = out.of[kGradInitialNum];
    grad.ring_key = out.of[kGradInitialRingKey];
    grad.ring_value = out.of[kGradInitialRingValue];
  }
  whole.of[kGradBand].assign(grad_band.begin(), grad_band.end());
  whole.of[kGradInitialDen] = grad.den;
  whole.of[kGradInitialNum] = grad.num;
  whole.of[kGradInitialRingKey] = grad.ring_key;
  whole.of[kGradInitialRingValue] = grad.ring_value;
  return whole;
}

TYPED_TEST(WindowState, AnyCuttingIsTheSameSequence) {
  using E = TypeParam;
  ErrorRule<E> rule;
  for (const WindowCase& c : state_cases()) {
    const JudgedCase<E> judged(c);
    ASSERT_TRUE(judged.inputs.has_final);
    const WindowOutputs<E> whole = run_kernel(judged.inputs);
    judge(rule, judged, whole, "whole");
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      SCOPED_TRACE("cuts of seed " + std::to_string(seed) + "; " + describe(c));
      const WindowOutputs<E> cut = run_cut(judged.inputs, random_cuts(c.time, seed * 1000 + c.seed));
      judge(rule, judged, cut, "cut");
      // Position, maximum and ring: exactly.
      EXPECT_EQ(cut.position, whole.position);
      EXPECT_EQ(cut.max, whole.max);
      EXPECT_EQ(cut.ring_key, whole.ring_key);
      EXPECT_EQ(cut.ring_value, whole.ring_value);
    }
    SCOPED_TRACE("steps only; " + describe(c));
    const WindowOutputs<E> steps = run_steps(judged.inputs);
    judge(rule, judged, steps, "steps", false);
    EXPECT_EQ(steps.position, whole.position);
    EXPECT_EQ(steps.max, whole.max);
  }
  rule.check_each_element();
}

TYPED_TEST(WindowState, TwoChainedChunksHaveTheGradientOfOne) {
  using E = TypeParam;
  ErrorRule<E> rule;
  for (const WindowCase& c : state_cases()) {
    const JudgedCase<E> judged(c);
    for (const int64_t middle : {int64_t(1), c.time / 2, c.time - 1}) {
      judge(rule, judged, run_cut(judged.inputs, {{0, middle, false}, {middle, c.time, false}}));
    }
  }
  rule.check_each_element();
}

TYPED_TEST(WindowState, FinalStateMayBeTheInitialOne) {
  using E = TypeParam;
  for (const WindowCase& c : state_cases()) {
    if (!c.state) continue;
    const WindowInputs<E> in = make_inputs<E>(c);
    expect_same_bits(run_kernel(in, {.backward = false}), run_kernel(in, {.backward = false, .alias_state = true}),
                     describe(c));
  }
}

TYPED_TEST(WindowState, NoPositionsLeaveTheStateAsItIs) {
  using E = TypeParam;
  for (const int64_t s : {0, 1, 7}) {
    WindowCase c{.batch = 3, .time = 0, .channels = 6, .heads = 3, .state = true, .seed = 4};
    set_window(c, s);
    const WindowInputs<E> in = make_inputs<E>(c);
    const WindowOutputs<E> out = run_kernel(in);
    EXPECT_EQ(out.position, in.initial.position);
    EXPECT_EQ(first_difference(out.max, in.initial.max), -1);
    EXPECT_EQ(first_difference(out.of[kFinalDen], in.initial.den), -1);
    EXPECT_EQ(first_difference(out.of[kFinalNum], in.initial.num), -1);
    EXPECT_EQ(first_difference(out.ring_key, in.initial.ring_key), -1);
    EXPECT_EQ(first_difference(out.ring_value, in.initial.ring_value), -1);
  }
}

TYPED_TEST(WindowState, NeutralStateIsNoState) {
  using E = TypeParam;
  using T = Accumulate<E>;
  for (const int64_t s : {0, 1, 7, 90}) {
    WindowCase c{.batch = 2, .time = 70, .channels = 6, .seed = 8};
    set_window(c, s);
    WindowInputs<E> in = make_inputs<E>(c);
    const WindowOutputs<E> none = run_kernel(in, {.backward = false});
    const int64_t rows = c.batch;
    in.initial = {std::vector<int64_t>(rows, 7), std::vector<T>(rows * 6),          std::vector<T>(rows * 6),
                  std::vector<T>(rows * 6),      std::vector<T>(rows * c.left * 6), std::vector<T>(rows * c.left * 6)};
    StateData<T>& state = in.initial;
    window_state_init<T>(in.shape, {state.position.data(), state.max.data(), state.den.data(), state.num.data(),
                                    state.ring_key.data(), state.ring_value.data()});
    EXPECT_EQ(state.position, std::vector<int64_t>(rows, 0));
    EXPECT_EQ(state.max, std::vector<T>(rows * 6, std::numeric_limits<T>::lowest()));
    EXPECT_EQ(state.den, std::vector<T>(rows * 6, T(0)));
    EXPECT_EQ(state.num, std::vector<T>(rows * 6, T(0)));
    expect_same_bits(none, run_kernel(in, {.backward = false}), describe(c));
  }
}

TYPED_TEST(WindowState, TheEndOfTheTableThrowsAndNothingIsWritten) {
  using E = TypeParam;
  WindowCase c{.batch = 2, .time = 5, .channels = 3, .state = true, .seed = 4};
  set_window(c, 4);
  WindowInputs<E> in = make_inputs<E>(c);
  const int64_t furthest = std::max(in.initial.position[0], in.initial.position[1]);
  const auto with_rows = [&](int64_t rows) {
    WindowInputs<E> shorter = in;
    shorter.band_rows = rows;
    shorter.band.resize(rows * 4);
    return shorter;
  };
  EXPECT_NO_THROW(run_kernel(with_rows(furthest + 5)));
  EXPECT_THROW(run_kernel(with_rows(furthest + 4)), Error);
  EXPECT_NO_THROW(run_steps(with_rows(furthest + 5)));
  EXPECT_THROW(run_steps(with_rows(furthest + 4)), Error);
  try {
    run_kernel(with_rows(furthest + 4));
    ADD_FAILURE() << "no error past the end of the table";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("band"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find(std::to_string(furthest + 4)), std::string::npos) << e.what();
  }
  // One row for all positions has no end.
  c.shared_row = true;
  in = make_inputs<E>(c);
  in.initial.position = {1000000007, 3};
  EXPECT_NO_THROW(run_kernel(in));
}

}  // namespace
}  // namespace aft::ops::test

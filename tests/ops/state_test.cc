// The state: a sequence cut anywhere, into chunks and single steps, is the same sequence.

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "aft/error.h"
#include "tests/ops/judge.h"

namespace aft::ops::test {
namespace {

template <class Type>
class StateTest : public ::testing::Test {};
TYPED_TEST_SUITE(StateTest, Sequences, OnName);

// Causal, with a final state.
std::vector<Case> state_cases(Family family) {
  std::vector<Case> list;
  if (family == Family::kFull) {
    for (Case c : cases(family)) {
      if (!c.causal || c.packed() || c.time < 1) continue;
      c.seed += c.seed % 2;
      list.push_back(c);
    }
    return list;
  }
  uint64_t seed = 50;
  for (const char* input : {"normal", "wide", "apart"}) {
    for (const int64_t time : {9, 30, 70, 71, 100, 150}) {
      for (const int64_t s : {0, 1, 2, 7, 32, 160}) {
        seed += 2;  // even: the final state is wanted without an initial one, too
        Case c{.input = input, .batch = 3, .time = time, .channels = time > 100 ? 9 : 15, .seed = seed};
        set_window(c, s);
        c.heads = seed % 3 == 0 ? 3 : 1;
        c.key_per_head = seed % 5 == 0;
        c.state = seed % 4 == 0;
        c.gate = seed % 6 == 0 ? Gate::kNone : Gate::kSigmoid;
        list.push_back(c);
        c.masked = true;
        if (seed % 7 == 0) list.push_back(c);
      }
    }
  }
  return list;
}

struct Cut {
  int64_t begin, end;
  bool steps;
};

// A mask is for chunks alone: a step has none.
std::vector<Cut> random_cuts(const Case& c, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Cut> cuts;
  for (int64_t t = 0; t < c.time;) {
    const int64_t longest = random() % 3 == 0 ? 3 : 60;
    const int64_t end = std::min<int64_t>(c.time, t + random() % longest);  // empty chunks too
    cuts.push_back({t, end, random() % 3 == 0 && !c.masked});
    t = end;
  }
  return cuts;
}

// Writes a piece's rows into those of the whole.
template <typename T>
void insert_rows(const Case& c, Arrays<T>& whole, const std::string& name, const Array<T>& piece, const Cut& cut) {
  if (!whole.has(name)) whole.set(name, {piece.along, piece.width, std::vector<T>(c.batch * c.time * piece.width)});
  const int64_t size = (cut.end - cut.begin) * piece.width;
  for (int64_t b = 0; b < c.batch; ++b) {
    std::copy_n(piece.x.begin() + b * size, size, whole[name].begin() + (b * c.time + cut.begin) * piece.width);
  }
}

// The whole from its pieces: outputs, final state, and gradients chained from the last piece to the first.
template <typename E>
Outputs<E> run_cut(const Inputs<E>& in, const std::vector<Cut>& cuts) {
  using T = Accumulate<E>;
  Outputs<E> whole;
  std::vector<Inputs<E>> pieces;
  for (const Cut& cut : cuts) {
    Inputs<E> piece = cut_time(in, cut.begin, cut.end);
    piece.has_final = true;
    if (!pieces.empty()) start_from(piece, whole);
    const Outputs<E> out = cut.steps ? run_steps(piece) : run(piece, {.backward = false});
    for (const auto& [name, x] : out) {
      if (x.along == Along::kTargets) insert_rows(in.c, whole, name, x, cut);
      if (x.along == Along::kSequences) whole.set(name, x);
    }
    whole.position = out.position;
    pieces.push_back(std::move(piece));
  }
  std::map<std::string, std::vector<double>> of_weights;
  for (size_t i = cuts.size(); i-- > 0;) {
    if (i + 1 < cuts.size()) {
      for (const std::string part : {"den", "num", "ring_key", "ring_value"}) {
        // The sums of `full` hold nothing.
        if (in.has("grad_final_" + part)) pieces[i].set("grad_final_" + part, whole.array("grad_initial_" + part));
      }
    }
    for (const auto& [name, x] : run(pieces[i])) {
      if (!name.starts_with("grad_")) continue;
      if (is_tensor(x.along)) {
        insert_rows(in.c, whole, name, x, cuts[i]);
      } else if (name.starts_with("grad_initial_")) {
        whole.set(name, x);
      } else {
        std::vector<double>& sum = of_weights[name];
        sum.resize(x.x.size(), 0);
        for (size_t j = 0; j < sum.size(); ++j) sum[j] += double(x.x[j]);
        whole.set(name, {x.along, x.width, std::vector<T>(sum.begin(), sum.end())});
      }
    }
  }
  return whole;
}

// What is no matter of rounding; in the dense operator y neither, unless it comes from steps.
template <typename E>
void expect_exact_part(const Case& c, const Outputs<E>& cut, const Outputs<E>& whole, bool steps) {
  EXPECT_EQ(cut.position, whole.position);
  for (const char* name : {"final_max", "final_ring_key", "final_ring_value"}) {
    expect_same_bits(cut[name], whole[name], name);
  }
  if (c.op == Operator::kFull && !steps) expect_same_bits(cut["y"], whole["y"], "y");
}

TYPED_TEST(StateTest, AnyCuttingIsTheSameSequence) {
  using E = typename TypeParam::E;
  ErrorRule<E> any, two;
  for (const Case& c : state_cases(TypeParam::kFamily)) {
    if (c.time > 150) continue;
    SCOPED_TRACE(describe(c));
    const Judged<E> judged(c);
    ASSERT_TRUE(judged.inputs.has_final);
    const Outputs<E> whole = run(judged.inputs);
    judge(any, judged, whole, "whole");
    if (c.state) expect_same_bits(run(judged.inputs, {.alias_state = true}), whole, "state in place");
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      SCOPED_TRACE("cuts of seed " + std::to_string(seed));
      const std::vector<Cut> cuts = random_cuts(c, seed * 1000 + c.seed);
      const Outputs<E> cut = run_cut(judged.inputs, cuts);
      judge(any, judged, cut, "cut");
      expect_exact_part(c, cut, whole, std::any_of(cuts.begin(), cuts.end(), [](const Cut& x) { return x.steps; }));
    }
    for (const int64_t middle : {int64_t(1), c.time / 2, c.time - 1}) {
      const Outputs<E> cut = run_cut(judged.inputs, {{0, middle, false}, {middle, c.time, false}});
      judge(two, judged, cut, "in two");
      expect_exact_part(c, cut, whole, false);
    }
    if (c.masked) continue;
    const Outputs<E> steps = run_steps(judged.inputs);
    judge(any, judged, steps, "steps", false);
    expect_exact_part(c, steps, whole, true);
  }
  // The gradient of every source goes through all pieces of a dense operator, and is rounded in each.
  any.check_each_element(/*maxima=*/TypeParam::kFamily == Family::kWindow);
  two.check_each_element();
}

TYPED_TEST(StateTest, LongChunksKeepWhatIsExact) {
  using E = typename TypeParam::E;
  for (const Case& c : state_cases(TypeParam::kFamily)) {
    if (c.time <= 150) continue;
    SCOPED_TRACE(describe(c));
    const Inputs<E> in = make_inputs<E>(c);
    const int64_t middle = 1 + static_cast<int64_t>(c.seed) % (c.time - 1);
    expect_exact_part(c, run_cut(in, {{0, middle, false}, {middle, c.time, false}}), run(in), false);
  }
}

TYPED_TEST(StateTest, NoPositionsLeaveTheStateAsItIs) {
  using E = typename TypeParam::E;
  for (const int64_t s : {0, 1, 7}) {
    Case c{.op = Operator::kFull, .batch = 3, .channels = 6, .heads = 3, .state = true, .seed = 4};
    if (TypeParam::kFamily == Family::kWindow) set_window(c, s);
    const Inputs<E> in = make_inputs<E>(c);
    const Outputs<E> out = run(in);
    EXPECT_EQ(out.position, in.position);
    for (const std::string part : kStateParts) expect_same_bits(out["final_" + part], in["initial_" + part], part);
  }
}

TYPED_TEST(StateTest, NeutralStateIsNoState) {
  using E = typename TypeParam::E;
  for (const int64_t s : {0, 1, 7, 90}) {
    Case c{.op = Operator::kFull, .batch = 2, .time = 70, .channels = 6, .seed = 8};
    if (TypeParam::kFamily == Family::kWindow) set_window(c, s);
    Inputs<E> in = make_inputs<E>(c);
    const Outputs<E> none = run(in, {.backward = false});
    start_anew(in);
    expect_same_bits(none, run(in, {.backward = false}), describe(c));
  }
}

// The neutral state of the operator is the one above.
template <typename T>
void expect_init_is_neutral() {
  for (const int64_t left : {0, 1, 7, 90}) {
    const WindowShape shape = {
        .batch = 2, .channels = 6, .heads = 3, .key_channels = 3, .has_band = left > 0, .left = left};
    std::vector<int64_t> position(2, 7);
    std::vector<T> max(6, 7), den(6, 7), num(12, 7), ring_key(6 * left, 7), ring_value(12 * left, 7);
    window_state_init<T>(shape,
                         {position.data(), max.data(), den.data(), num.data(), ring_key.data(), ring_value.data()});
    EXPECT_EQ(position, std::vector<int64_t>(2, 0));
    EXPECT_EQ(max, std::vector<T>(6, std::numeric_limits<T>::lowest()));
    EXPECT_EQ(den, std::vector<T>(6, 0));
    EXPECT_EQ(num, std::vector<T>(12, 0));
  }
}

TEST(StateInit, IsNeutral) {
  expect_init_is_neutral<float>();
  expect_init_is_neutral<double>();
}

// Of the windowed operator alone, the dense one has no such reference.
TEST(StepReference, IsTheForwardOfTheReference) {
  for (Case c : state_cases(Family::kWindow)) {
    if (c.time > 30 || c.masked) continue;
    const Inputs<double> in = make_inputs<double>(c);
    const Outputs<double> whole = run_reference(in, /*backward=*/false);
    for (const auto& [name, x] : run_steps(in, {.backend = nullptr})) {
      for (size_t i = 0; i < x.x.size(); ++i) {
        ASSERT_NEAR(x.x[i], whole[name][i], 1e-12 * std::max(1.0, std::abs(whole[name][i])))
            << name << '[' << i << "]; " << describe(c);
      }
    }
  }
}

TYPED_TEST(StateTest, TheEndOfTheTableThrows) {
  using E = typename TypeParam::E;
  Case c{.op = Operator::kFull, .batch = 2, .time = 5, .channels = 3, .state = true, .seed = 4};
  if (TypeParam::kFamily == Family::kWindow) set_window(c, 4);
  Inputs<E> in = make_inputs<E>(c);
  const int64_t furthest = std::max(in.position[0], in.position[1]);
  const auto with_rows = [&](int64_t rows) {
    Inputs<E> shorter = in;
    shorter.rows = rows;
    shorter["weights"].resize(rows * in.columns);
    return shorter;
  };
  EXPECT_NO_THROW(run(with_rows(furthest + 5)));
  EXPECT_NO_THROW(run_steps(with_rows(furthest + 5)));
  for (const bool steps : {false, true}) {
    try {
      steps ? run_steps(with_rows(furthest + 4)) : run(with_rows(furthest + 4));
      ADD_FAILURE() << "no error past the end of the table";
    } catch (const Error& e) {
      const std::string message = e.what();
      EXPECT_NE(message.find(TypeParam::kFamily == Family::kFull ? "weights" : "band"), std::string::npos) << message;
      EXPECT_NE(message.find(std::to_string(furthest + 4)), std::string::npos) << message;
    }
  }
  // Unchecked, the last row of the sequence that stands furthest is NaN, and nothing else.
  for (const bool steps : {false, true}) {
    if (!current_backend().cuda) break;
    const auto run_with = [&](int64_t rows) {
      const RunOptions unchecked = {.check_values = false};
      return steps ? run_steps(with_rows(rows), unchecked) : run(with_rows(rows), unchecked);
    };
    const Outputs<E> whole = run_with(furthest + 5), past = run_with(furthest + 4);
    const int64_t last = (in.position[0] > in.position[1] ? 1 : 2) * c.time - 1;
    for (int64_t t = 0; t < c.batch * c.time; ++t) {
      for (int64_t i = t * c.channels; i < (t + 1) * c.channels; ++i) {
        EXPECT_TRUE(t == last ? std::isnan(past["y"][i]) : past["y"][i] == whole["y"][i]) << t << ", steps: " << steps;
      }
    }
    EXPECT_EQ(past.position, whole.position);
  }
  if (TypeParam::kFamily == Family::kFull) return;
  // One row for all positions has no end.
  c.op = Operator::kConv1d;
  in = make_inputs<E>(c);
  in.position = {1000000007, 3};
  EXPECT_NO_THROW(run(in));
}

}  // namespace
}  // namespace aft::ops::test

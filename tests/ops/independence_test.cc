// A row is the same bits alone and in any batch, with any number of threads, every time, however its memory is aligned,
// whatever lay in the scratch.

#include <gtest/gtest.h>

#include "ops/common/scratch.h"
#include "tests/ops/input_classes.h"
#include "tests/ops/judge.h"
#include "tests/ops/threads.h"

namespace aft::ops::test {
namespace {

template <class Type>
class Independence : public ::testing::Test {};
TYPED_TEST_SUITE(Independence, Everything, OnName);

// Large enough that the work is worth several threads: many rows, and one long row.
std::vector<Case> large_cases(Family family) {
  std::vector<Case> list;
  const auto add = [&](Case c, int64_t window, const std::vector<int64_t>& lengths = {}) {
    set_window(c, window);
    if (!lengths.empty()) pack(c, lengths);
    list.push_back(c);
  };
  switch (family) {
    case Family::kWindow:
      for (const bool causal : {true, false}) {
        for (const int64_t s : {0, 32}) {
          add({.batch = 8, .time = 300, .channels = 67, .causal = causal, .state = causal, .seed = 81}, s);
          add({.batch = 1, .time = 3000, .channels = 96, .heads = 3, .causal = causal, .seed = 82}, s);
        }
      }
      add({.batch = 3, .time = 700, .channels = 64, .seed = 83}, 32);
      list.back().op = Operator::kConv1d;
      add({.input = "apart", .batch = 3, .time = 300, .channels = 64, .seed = 84}, 400);
      add({.channels = 67, .state = true, .masked = true, .seed = 85}, 32, {300, 1, 0, 40, 900, 7, 130, 3, 3, 3});
      // Several steps of the table's gradient, which meet other sequences' at other steps.
      add({.channels = 140, .seed = 86}, 70, {1000, 3000, 1000});
      add({.batch = 5, .time = 300, .channels = 96, .heads = 6, .state = true, .masked = true, .seed = 87}, 32);
      // Rows of whole cache lines, more than a cache holds: written past it where the memory is aligned.
      add({.batch = 1, .time = 4100, .channels = 128, .seed = 88}, 4);
      break;
    case Family::kGrid:
      for (const char* input : {"normal", "apart_1e4", "absent"}) {
        for (const int64_t kernel : {1, 3, 11, 31}) {
          for (const bool key_per_head : {false, true}) {
            Case c{.input = input, .batch = 5, .channels = 69, .heads = 3, .key_per_head = key_per_head};
            set_grid(c, 6, 7, kernel);
            c.masked = kernel == 3, c.seed = 301 + list.size();
            list.push_back(c);
          }
        }
      }
      break;
    case Family::kFull:
      for (const bool causal : {true, false}) {
        list.push_back({.op = Operator::kFull, .batch = 4, .time = 230, .channels = 67, .causal = causal, .seed = 91});
      }
      break;
    case Family::kLocalBias:
      list.push_back({.op = Operator::kLocalBias, .time = 1000, .left = 31, .factors = 67, .seed = 3});
      list.push_back(
          {.op = Operator::kLocalBias, .time = 150, .heads = 3, .left = 6, .right = 6, .factors = 20, .seed = 3});
      break;
  }
  return list;
}

template <typename E>
Outputs<E> run_in_poisoned_scratch(const Inputs<E>& in, const RunOptions& options) {
  scratch_set_poison(true);
  Outputs<E> out = run(in, options);
  scratch_set_poison(false);
  return out;
}

constexpr int64_t kShifts[] = {0, 1, 5, 16};

template <typename E>
void expect_gradient_of_weights_unwanted(const Inputs<E>& in, const Outputs<E>& whole) {
  if (!in.has("weights") || in.c.time > 140) return;
  expect_same_bits(whole, run(in, {.grad_weights = false}), describe(in.c) + ", no gradient of weights",
                   {"grad_weights"});
}

TYPED_TEST(Independence, NeitherThreadsNorAlignmentNorScratchChangeABit) {
  using E = typename TypeParam::E;
  int64_t n = 0;
  for (const Case& c : cases(TypeParam::kFamily)) {
    const Inputs<E> in = make_inputs<E>(c);
    const Outputs<E> once = run(in);
    Threads threads(2 + ++n % 2);
    expect_same_bits(once, run_in_poisoned_scratch(in, {.parallel = threads.parallel_for(), .shift = kShifts[n % 4]}),
                     describe(c));
    if (in.has_initial() && in.has_final) {
      expect_same_bits(once, run(in, {.alias_state = true}), describe(c) + ", state in place");
    }
    expect_gradient_of_weights_unwanted(in, once);
  }
}

TYPED_TEST(Independence, ManyThreadsDoNotChangeABit) {
  using E = typename TypeParam::E;
  for (const Case& c : large_cases(TypeParam::kFamily)) {
    const Inputs<E> in = make_inputs<E>(c);
    const Outputs<E> serial = run(in);
    expect_gradient_of_weights_unwanted(in, serial);
    for (const int64_t n : {1, 2, 3, 7, 7}) {
      Threads threads(n), forward_threads(n);
      expect_same_bits(serial, run_in_poisoned_scratch(in, {.parallel = threads.parallel_for(), .shift = n - 1}),
                       std::to_string(n) + " threads; " + describe(c));
      if (current_backend().cuda) break;  // which has no use for the caller's threads: see below
      EXPECT_EQ(threads.most_at_once() >= 2, n >= 2) << n << " threads; " << describe(c);
      if (n == 1) continue;
      run(in, {.parallel = forward_threads.parallel_for(), .backward = false});
      EXPECT_GE(forward_threads.most_at_once(), 2) << "forward with " << n << " threads; " << describe(c);
    }
  }
}

template <class Type>
class Repetition : public ::testing::Test {};
TYPED_TEST_SUITE(Repetition, Everything, OnName);

// On a GPU blocks run in an order of its own: it takes more than two runs to see that it does not matter.
TYPED_TEST(Repetition, TwentyRunsOnAGpuAreTheSameBits) {
  using E = typename TypeParam::E;
  if (!current_backend().cuda) GTEST_SKIP() << "the order of the CPU's threads is forced above";
  for (const Case& c : large_cases(TypeParam::kFamily)) {
    const Inputs<E> in = make_inputs<E>(c);
    const Outputs<E> first = run(in);
    for (int64_t n = 1; n < 20; ++n) {
      expect_same_bits(first, run(in, {.shift = n % 2}), "run " + std::to_string(n) + "; " + describe(c));
    }
  }
}

template <class Type>
class Alignment : public ::testing::Test {};
TYPED_TEST_SUITE(Alignment, Sequences, OnName);

TYPED_TEST(Alignment, DoesNotChangeABit) {
  using E = typename TypeParam::E;
  std::vector<Case> list = TypeParam::kFamily == Family::kWindow ? other_window_cases() : cases(TypeParam::kFamily);
  if (TypeParam::kFamily != Family::kWindow) std::erase_if(list, [](const Case& c) { return c.seed % 3 != 0; });
  for (const Case& c : list) {
    const Inputs<E> in = make_inputs<E>(c);
    const Outputs<E> once = run(in);
    for (const int64_t shift : kShifts) {
      expect_same_bits(once, run(in, {.shift = shift}), describe(c) + ", shift " + std::to_string(shift));
    }
  }
}

template <typename E>
void expect_rows_alone(const Case& c) {
  using T = Accumulate<E>;
  const Inputs<E> in = make_inputs<E>(c);
  const Outputs<E> together = run(in);
  std::vector<T> grad_weights;  // of the sequences alone, in their order
  for (int64_t b = 0; b < c.batch; ++b) {
    const Outputs<E> alone = run(batch_of(in, {b}));
    for (const auto& [name, one] : alone) {
      const Array<T>& all = together.array(name);
      const Part part = part_of(c, all.along, all.width, b);
      if (all.along != Along::kNothing) {
        expect_same_bits({all.x.begin() + part.begin, all.x.begin() + part.end}, one.x,
                         name + " of sequence " + std::to_string(b) + ", among others and alone; " + describe(c));
      } else if (name == "grad_weights") {
        grad_weights.resize(one.x.size(), T(0));
        for (size_t i = 0; i < one.x.size(); ++i) grad_weights[i] += one.x[i];
      }
    }
    if (in.has_final) {
      EXPECT_EQ(together.position[b], alone.position[0]);
    }
  }
  // Panels are summed sequence by sequence: with one panel a sequence that is the sum of the wholes.
  const bool one_panel = c.channels * static_cast<int64_t>(sizeof(T)) <= 512;
  if (c.family() == Family::kWindow && in.has("weights") && one_panel) {
    expect_same_bits(together["grad_weights"], grad_weights, "grad_weights; " + describe(c));
  }
}

template <class Type>
class RowsAlone : public ::testing::Test {};
TYPED_TEST_SUITE(RowsAlone, Attentions, OnName);

TYPED_TEST(RowsAlone, AreTheRowsOfABatch) {
  using E = typename TypeParam::E;
  if (TypeParam::kFamily == Family::kGrid) {
    for (const Case& c : large_cases(Family::kGrid)) expect_rows_alone<E>(c);
    return;
  }
  for (const Case& c : cases(TypeParam::kFamily)) {
    if (c.packed() || (TypeParam::kFamily == Family::kFull && c.batch > 1)) expect_rows_alone<E>(c);
  }
  uint64_t seed = 300;
  for (const char* input : {"normal", "wide", "apart_1e4", "absent"}) {
    for (const int64_t s : {0, 1, 7, 32, 100}) {
      for (const bool causal : {true, false}) {
        Case c{.input = input, .batch = 5, .time = 97, .channels = 19, .causal = causal, .state = causal};
        c.seed = ++seed;
        set_window(c, s);
        if (TypeParam::kFamily == Family::kWindow) expect_rows_alone<E>(c);
      }
    }
  }
}

// Saved sums of packed sequences fit what is saved for one sequence of all tokens, and meet no others: chunks are 64
// rows and more.
TYPED_TEST(RowsAlone, PackedSequencesOfAnyLengthsFitTheirMemory) {
  using E = typename TypeParam::E;
  if (TypeParam::kFamily == Family::kGrid) GTEST_SKIP() << "nothing is packed";
  Random r(7);
  const std::vector<std::vector<int64_t>> lists = {
      std::vector<int64_t>(130, 1), {0, 0, 0, 65, 0, 64, 0}, {64, 64, 64}, {65, 65, 65},
      {1, 127, 1, 128, 1, 129, 1},  {257, 255, 256, 1},      {0},          {0, 0},
      {63, 2, 63, 2, 63, 2}};
  for (size_t i = 0; i < lists.size() + 6; ++i) {
    std::vector<int64_t> lengths;
    if (i < lists.size()) lengths = lists[i];
    while (i >= lists.size() && lengths.size() < 12) {
      const int64_t near = 64 * static_cast<int64_t>(4 * r.uniform()) - 1 + static_cast<int64_t>(3 * r.uniform());
      lengths.push_back(r.chance(0.5) ? std::max<int64_t>(0, near) : static_cast<int64_t>(4 * r.uniform()));
    }
    for (const bool causal : {true, false}) {
      Case c{.op = Operator::kFull, .channels = 3, .causal = causal, .seed = 400 + i};
      if (TypeParam::kFamily == Family::kWindow) set_window(c, std::vector<int64_t>{0, 5, 70, 200}[i % 4]);
      c.state = causal && TypeParam::kFamily == Family::kWindow && i % 3 == 0;
      pack(c, lengths);
      expect_rows_alone<E>(c);
    }
  }
}

// Weights of other sequences' sources exceed by far those that a row sees.
TYPED_TEST(RowsAlone, PackedSequencesDoNotMeetTheWeightsOfOthers) {
  using E = typename TypeParam::E;
  if (TypeParam::kFamily != Family::kFull) GTEST_SKIP() << "weights of other families go by distance";
  uint64_t seed = 500;
  for (const Weights weights : {Weights::kTable, Weights::kTablePerHead, Weights::kFactors, Weights::kFactorsPerHead}) {
    for (const char* input : {"weight_1e4", "weight_65504"}) {
      for (const bool causal : {true, false}) {
        Case c{.op = Operator::kFull, .input = input, .channels = 6, .heads = 3, .causal = causal, .weights = weights};
        c.seed = ++seed;
        pack(c, {3, 1, 0, 130, 65});
        expect_rows_alone<E>(c);
      }
    }
  }
}

template <class Type>
class ManyRows : public ::testing::Test {};
TYPED_TEST_SUITE(ManyRows, Attentions, OnName);

// More rows than the second or third dimension of a grid of blocks takes, 65,535: copies of a few, each as it is alone.
TYPED_TEST(ManyRows, AreTheSameAsAlone) {
  using E = typename TypeParam::E;
  using T = Accumulate<E>;
  Case c{.op = Operator::kFull, .batch = 3, .time = 4, .channels = 2, .seed = 17};
  if (TypeParam::kFamily == Family::kWindow) set_window(c, 3);
  if (TypeParam::kFamily == Family::kGrid) set_grid(c, 2, 2, 3);
  const Inputs<E> in = make_inputs<E>(c);
  std::vector<int64_t> rows(70'000);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<int64_t>(i) % c.batch;
  const Inputs<E> many = batch_of(in, rows);
  const Outputs<E> alone = run(in), together = run(many);
  for (const auto& [name, x] : together) {
    if (x.along == Along::kNothing) continue;
    const std::vector<T>& few = alone[name];
    for (size_t i = 0; i < x.x.size(); ++i) {
      ASSERT_TRUE(same_bits(x.x[i], few[i % few.size()])) << name << '[' << i << ']';
    }
  }
}

}  // namespace
}  // namespace aft::ops::test

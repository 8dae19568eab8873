// A row is the same bits alone and in any batch, with any number of threads, every time, whatever lay in the scratch.

#include <gtest/gtest.h>

#include "ops/common/scratch.h"
#include "tests/ops/threads.h"
#include "tests/ops/window_compare.h"

namespace aft::ops::test {
namespace {

template <typename T>
class WindowIndependence : public ::testing::Test {};
using Dtypes = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(WindowIndependence, Dtypes);

template <typename E>
void expect_rows_alone(const WindowCase& c) {
  using T = Accumulate<E>;
  const WindowInputs<E> in = make_inputs<E>(c);
  const WindowShape& s = in.shape;
  const WindowOutputs<E> together = run_kernel(in);
  std::vector<T> grad_band(in.band.size(), T(0));  // of the sequences alone, in their order
  for (int64_t b = 0; b < s.batch; ++b) {
    const WindowOutputs<E> alone = run_kernel(slice_batch(in, b));
    const auto expect_at = [&](const char* name, const std::vector<T>& all, const std::vector<T>& one, int64_t begin) {
      ASSERT_LE(begin + one.size(), all.size()) << name;
      for (size_t i = 0; i < one.size(); ++i) {
        ASSERT_TRUE(same_bits(all[begin + i], one[i]))
            << name << " of sequence " << b << ", element " << i << ": " << one[i] << " alone, " << all[begin + i]
            << " among the others; " << describe(c);
      }
    };
    const auto expect_row = [&](const char* name, const std::vector<T>& all, const std::vector<T>& one) {
      ASSERT_EQ(all.size(), one.size() * s.batch) << name;
      expect_at(name, all, one, b * one.size());
    };
    for (int output = 0; output < kOutputs; ++output) {
      if (output == kGradBand || alone.of[output].empty()) continue;
      if (is_tensor(output)) {
        const int64_t width = output == kGradK ? s.key_channels : s.channels;
        expect_at(kOutputNames[output], together.of[output], alone.of[output], in.tokens_before(b) * width);
      } else {
        expect_row(kOutputNames[output], together.of[output], alone.of[output]);
      }
    }
    for (size_t i = 0; i < grad_band.size(); ++i) grad_band[i] += alone.of[kGradBand][i];
    expect_row("final_state.max", together.max, alone.max);
    expect_row("final_state.ring_key", together.ring_key, alone.ring_key);
    expect_row("final_state.ring_value", together.ring_value, alone.ring_value);
    if (in.has_final) {
      EXPECT_EQ(together.position[b], alone.position[0]);
    }
  }
  // Panels are summed sequence by sequence: with one panel a sequence that is the sum of the wholes.
  if (s.channels * sizeof(T) <= 512) {
    EXPECT_EQ(first_difference(together.of[kGradBand], grad_band), -1) << describe(c);
  }
}

TYPED_TEST(WindowIndependence, RowOfABatchIsTheRowAlone) {
  using E = TypeParam;
  uint64_t seed = 300;
  for (const char* input : {"normal", "wide", "apart_1e4", "absent"}) {
    for (const int64_t s : {0, 1, 7, 32, 100}) {
      for (const bool causal : {true, false}) {
        WindowCase c;
        c.input = input, c.batch = 5, c.time = 97, c.channels = 19, c.causal = causal, c.seed = ++seed;
        set_window(c, s);
        c.state = causal;
        expect_rows_alone<E>(c);
      }
    }
  }
}

TYPED_TEST(WindowIndependence, PackedSequenceIsTheSequenceAlone) {
  using E = TypeParam;
  for (const WindowCase& c : masked_and_packed_cases()) {
    if (!c.lengths.empty()) expect_rows_alone<E>(c);
  }
}

// Large enough that the work is worth several threads: many rows, and one long row.
std::vector<WindowCase> large_cases() {
  std::vector<WindowCase> cases;
  for (const bool causal : {true, false}) {
    for (const int64_t s : {0, 32}) {
      WindowCase many{.batch = 8, .time = 300, .channels = 67, .causal = causal, .state = causal, .seed = 81};
      set_window(many, s);
      cases.push_back(many);
      WindowCase one{.batch = 1, .time = 3000, .channels = 96, .heads = 3, .causal = causal, .seed = 82};
      set_window(one, s);
      cases.push_back(one);
    }
  }
  WindowCase conv{.batch = 3, .time = 700, .channels = 64, .seed = 83};
  set_window(conv, 32);
  conv.shared_row = true;
  cases.push_back(conv);
  WindowCase redone{.input = "apart", .batch = 3, .time = 300, .channels = 64, .seed = 84};
  set_window(redone, 400);
  cases.push_back(redone);
  WindowCase packed{.channels = 67, .state = true, .seed = 85, .masked = true};
  set_window(packed, 32);
  pack(packed, {300, 1, 0, 40, 900, 7, 130, 3, 3, 3});
  cases.push_back(packed);
  // Several steps of the table's gradient, which meet other sequences' at other steps.
  WindowCase steps{.channels = 140, .seed = 86};
  set_window(steps, 70);
  pack(steps, {1000, 3000, 1000});
  cases.push_back(steps);
  WindowCase heads{.batch = 5, .time = 300, .channels = 96, .heads = 6, .state = true, .seed = 87, .masked = true};
  set_window(heads, 32);
  cases.push_back(heads);
  return cases;
}

TYPED_TEST(WindowIndependence, ThreadsAndRepeatsDoNotChangeABit) {
  using E = TypeParam;
  for (const WindowCase& c : large_cases()) {
    const WindowInputs<E> in = make_inputs<E>(c);
    const WindowOutputs<E> serial = run_kernel(in);
    for (const int64_t n : {1, 2, 3, 7, 7}) {
      Threads threads(n), forward_threads(n);
      expect_same_bits(serial, run_kernel(in, {.parallel = threads.parallel_for()}),
                       std::to_string(n) + " threads; " + describe(c));
      if (n == 1) continue;
      EXPECT_GE(threads.most_at_once(), 2) << n << " threads; " << describe(c);
      run_kernel(in, {.parallel = forward_threads.parallel_for(), .backward = false});
      EXPECT_GE(forward_threads.most_at_once(), 2) << "forward with " << n << " threads; " << describe(c);
    }
  }
}

// What a kernel reads of its scratch, it wrote.
TYPED_TEST(WindowIndependence, ScratchHoldsNothingBeforehand) {
  using E = TypeParam;
  std::vector<WindowCase> cases = window_cases();
  for (const WindowCase& c : large_cases()) cases.push_back(c);
  for (const WindowCase& c : cases) {
    const WindowInputs<E> in = make_inputs<E>(c);
    const WindowOutputs<E> plain = run_kernel(in);
    scratch_set_poison(true);
    const WindowOutputs<E> poisoned = run_kernel(in);
    scratch_set_poison(false);
    expect_same_bits(plain, poisoned, describe(c));
  }
}

}  // namespace
}  // namespace aft::ops::test

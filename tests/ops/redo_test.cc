// The counters of the exact redo: each family its own. That they count what fails is for the families' hard numbers.

#include "aft/ops/redo.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>

#include "tests/ops/full_run.h"
#include "tests/ops/grid_run.h"

namespace aft::ops::test {
namespace {

// Pairs that a call adds to the counters of: window, grid, full, all together.
std::array<int64_t, 4> pairs_of(const std::function<void()>& call) {
  const auto totals = [] {
    return std::array<int64_t, 4>{window_redo_count().total, grid_redo_count().total, full_redo_count().total,
                                  redo_count().total};
  };
  const std::array<int64_t, 4> before = totals();
  call();
  std::array<int64_t, 4> after = totals();
  for (size_t i = 0; i < after.size(); ++i) after[i] -= before[i];
  return after;
}

TEST(Redo, EachFamilyCountsItsOwnPairs) {
  constexpr int64_t kPairs = 2 * 30 * 9;
  WindowCase window{.batch = 2, .time = 30, .channels = 9, .seed = 1};
  set_window(window, 4);
  const GridCase grid{.batch = 2, .height = 5, .width = 6, .channels = 9, .kernel = 3, .seed = 2};
  const FullCase full{.batch = 2, .targets = 30, .channels = 9, .seed = 3};
  // Forward and backward, but for the dense operator, which counts its forward.
  EXPECT_EQ(pairs_of([&] { run_kernel(make_inputs<float>(window)); }),
            (std::array<int64_t, 4>{2 * kPairs, 0, 0, 2 * kPairs}));
  EXPECT_EQ(pairs_of([&] { run_grid(make_grid_inputs<float>(grid)); }),
            (std::array<int64_t, 4>{0, 2 * kPairs, 0, 2 * kPairs}));
  EXPECT_EQ(pairs_of([&] { run_full<float>(make_full_inputs<float>(full)); }),
            (std::array<int64_t, 4>{0, 0, kPairs, kPairs}));
  set_window(window, 0);
  EXPECT_EQ(pairs_of([&] { run_kernel(make_inputs<float>(window)); }), (std::array<int64_t, 4>{})) << "simple";
}

}  // namespace
}  // namespace aft::ops::test

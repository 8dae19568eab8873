// The counters of the exact redo, handed in with the device. That they count what fails is for the families' hard
// numbers.

#include <gtest/gtest.h>

#include "tests/ops/full_run.h"
#include "tests/ops/grid_run.h"

namespace aft::ops::test {
namespace {

TEST(Redo, EveryPassCountsItsPairs) {
  constexpr int64_t kPairs = 2 * 30 * 9;
  WindowCase window{.batch = 2, .time = 30, .channels = 9, .seed = 1};
  set_window(window, 4);
  const GridCase grid{.batch = 2, .height = 5, .width = 6, .channels = 9, .kernel = 3, .seed = 2};
  const FullCase full{.batch = 2, .targets = 30, .channels = 9, .seed = 3};
  // Forward and backward, but for the dense operator, which counts its forward.
  RedoCount count;
  run_kernel(make_inputs<float>(window), {.redone = &count});
  EXPECT_EQ(count.total, 2 * kPairs);
  run_grid(make_grid_inputs<float>(grid), {.redone = &count});
  EXPECT_EQ(count.total, 4 * kPairs) << "added to what was there";
  run_full<float>(make_full_inputs<float>(full), {.redone = &count});
  EXPECT_EQ(count.total, 5 * kPairs);
  set_window(window, 0);
  run_kernel(make_inputs<float>(window), {.redone = &count});
  EXPECT_EQ(count.total, 5 * kPairs) << "simple needs no redo";
  EXPECT_EQ(count.redone, 0);
}

}  // namespace
}  // namespace aft::ops::test

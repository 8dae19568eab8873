#include "figures/grid_statistics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "aft/error.h"

namespace aft {
namespace {

/// Weights of an own number for every pair.
std::vector<double> some_weights(GridSize grid) {
  const int64_t time = grid[0] * grid[1];
  std::vector<double> weights;
  for (int64_t i = 0; i < time * time; ++i) weights.push_back(1 + std::fmod(static_cast<double>(i) * 0.37, 1.0));
  return weights;
}

TEST(GridStatistics, ARelativeMapIsTheMeanOverPairsOfAnOffset) {
  // By hand: a grid of 1 x 3, offsets -2 to 2.
  const std::vector<double> weights = {1, 2, 3,  //
                                       4, 5, 6,  //
                                       7, 8, 9};
  EXPECT_EQ(relative_map(weights, {1, 3}),
            (std::vector<double>{7, (4.0 + 8) / 2, (1.0 + 5 + 9) / 3, (2.0 + 6) / 2, 3}));
  EXPECT_EQ(relative_map(weights, {3, 1}), (std::vector<double>{7, 6, 5, 4, 3}));
  // By a loop over offsets instead of pairs.
  const GridSize grid = {3, 4};
  const std::vector<double> many = some_weights(grid);
  const std::vector<double> map = relative_map(many, grid);
  ASSERT_EQ(map.size(), 35U);
  for (int64_t dy = -2; dy <= 2; ++dy) {
    for (int64_t dx = -3; dx <= 3; ++dx) {
      double sum = 0;
      double pairs = 0;
      for (int64_t y = 0; y < 3; ++y) {
        for (int64_t x = 0; x < 4; ++x) {
          if (y + dy < 0 || y + dy > 2 || x + dx < 0 || x + dx > 3) continue;
          sum += many[static_cast<size_t>((y * 4 + x) * 12 + (y + dy) * 4 + x + dx)];
          ++pairs;
        }
      }
      EXPECT_NEAR(map[static_cast<size_t>((dy + 2) * 7 + dx + 3)], sum / pairs, 1e-15);
    }
  }
}

TEST(GridStatistics, SharesWithinARadius) {
  // A row of three: the middle one sees all within 1, the others two of three.
  EXPECT_NEAR(uniform_share_within({1, 3}, 1), (2.0 / 3 + 1 + 2.0 / 3) / 3, 1e-15);
  EXPECT_NEAR(uniform_share_within({1, 3}, 0), 1.0 / 3, 1e-15);
  EXPECT_EQ(uniform_share_within({1, 3}, 2), 1);
  // The distance is Euclidean: of 3 x 3 within 1.4 not the corners, within 1.5 they are.
  EXPECT_NEAR(uniform_share_within({3, 3}, 1.4), (5.0 + 4 * 4 + 4 * 3) / 81, 1e-15);
  EXPECT_NEAR(uniform_share_within({3, 3}, 1.5), (9.0 + 4 * 6 + 4 * 4) / 81, 1e-15);
  // Rows count alike, whatever they sum to, and one of zeros does not count.
  EXPECT_EQ(share_within(std::vector<double>{3, 1, 0, 10}, {1, 2}, 0), (0.75 + 1) / 2);
  EXPECT_EQ(share_within(std::vector<double>{3, 1, 0, 0}, {1, 2}, 0), 0.75);
}

TEST(GridStatistics, RefusesWeightsOfAnotherGrid) {
  EXPECT_THROW(relative_map(std::vector<double>(15), {2, 2}), Error);
  EXPECT_THROW(share_within(std::vector<double>(17), {2, 2}, 1), Error);
}

}  // namespace
}  // namespace aft

#include "numbers/random_numbers.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

namespace aft {
namespace {

constexpr int kCount = 100000;

TEST(RandomNumbers, AreThoseOfSplitmix64) {
  // The published first numbers of seed 1234567.
  RandomNumbers numbers(1234567);
  for (const uint64_t expected : {6457827717110365317ULL, 3203168211198807973ULL, 9817491932198370423ULL,
                                  4593380528125082431ULL, 16408922859458223821ULL}) {
    EXPECT_EQ(numbers.next(), expected);
  }
}

TEST(RandomNumbers, UniformOnesAreSpreadEvenly) {
  RandomNumbers numbers(1);
  std::array<int, 10> counts{};
  for (int i = 0; i < kCount; ++i) {
    const double x = numbers.uniform(2, 7);
    ASSERT_GE(x, 2);
    ASSERT_LE(x, 7);
    ++counts[static_cast<size_t>((x - 2) * 2)];
  }
  // Binomial: 10,000 in each, of deviation 95; the seed is fixed, so five of them are not passed by chance.
  for (const int count : counts) EXPECT_NEAR(count, kCount / 10, 5 * 95);
}

TEST(RandomNumbers, BelowReachesAllAndNoOther) {
  RandomNumbers numbers(2);
  std::array<int, 7> counts{};
  for (int i = 0; i < kCount; ++i) ++counts.at(static_cast<size_t>(numbers.below(7)));
  for (const int count : counts) EXPECT_NEAR(count, kCount / 7, 5 * 111);
  EXPECT_EQ(numbers.below(1), 0);
}

TEST(RandomNumbers, ChanceIsOfItsProbability) {
  RandomNumbers numbers(3);
  int hits = 0;
  for (int i = 0; i < kCount; ++i) hits += numbers.chance(0.2);
  EXPECT_NEAR(hits, kCount / 5, 5 * 127);
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(numbers.chance(0));
  for (int i = 0; i < 100; ++i) EXPECT_TRUE(numbers.chance(1));
}

TEST(RandomNumbers, NormalOnesHaveTheDistributionFunction) {
  RandomNumbers numbers(4);
  std::array<int, 7> below{};  // -3, -2, ... 3
  for (int i = 0; i < kCount; ++i) {
    const double x = numbers.normal();
    ASSERT_TRUE(std::isfinite(x));
    for (int bound = -3; bound <= 3; ++bound) below[static_cast<size_t>(bound + 3)] += x < bound;
  }
  for (int bound = -3; bound <= 3; ++bound) {
    const double p = std::erfc(-bound / std::sqrt(2.0)) / 2;
    EXPECT_NEAR(below[static_cast<size_t>(bound + 3)], kCount * p, 5 * std::sqrt(kCount * p * (1 - p))) << bound;
  }
}

}  // namespace
}  // namespace aft

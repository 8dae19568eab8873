#include "aft/runtime/sampler.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <set>

#include "aft/error.h"

namespace aft::runtime {
namespace {

/// How often each of four tokens is drawn.
std::array<double, 4> shares(const SamplerOptions& options, const std::array<float, 4>& logits, int draws) {
  Sampler sampler(options);
  std::array<double, 4> counts = {};
  for (int i = 0; i < draws; ++i) ++counts.at(sampler.draw(logits));
  for (double& count : counts) count /= draws;
  return counts;
}

const std::array<float, 4> kLogits = {std::log(0.1F), std::log(0.4F), std::log(0.2F), std::log(0.3F)};
constexpr int kDraws = 40'000;
constexpr double kNear = 0.0125;  // five standard deviations of a share of a half

TEST(Sampler, DrawsByTheSoftmax) {
  const auto share = shares({.seed = 5}, kLogits, kDraws);
  EXPECT_NEAR(share[0], 0.1, kNear);
  EXPECT_NEAR(share[1], 0.4, kNear);
  EXPECT_NEAR(share[2], 0.2, kNear);
  EXPECT_NEAR(share[3], 0.3, kNear);
}

TEST(Sampler, TemperatureIsAPower) {
  const auto share = shares({.temperature = 0.5F, .seed = 5}, kLogits, kDraws);  // squares: 1, 16, 4, 9 of 30
  EXPECT_NEAR(share[0], 1.0 / 30, kNear);
  EXPECT_NEAR(share[1], 16.0 / 30, kNear);
  EXPECT_NEAR(share[2], 4.0 / 30, kNear);
  EXPECT_NEAR(share[3], 9.0 / 30, kNear);
}

TEST(Sampler, TopKKeepsTheMostLikely) {
  const auto share = shares({.top_k = 2, .seed = 5}, kLogits, kDraws);
  EXPECT_EQ(share[0], 0);
  EXPECT_NEAR(share[1], 4.0 / 7, kNear);
  EXPECT_EQ(share[2], 0);
  EXPECT_NEAR(share[3], 3.0 / 7, kNear);
  EXPECT_EQ(shares({.top_k = 1}, kLogits, 100)[1], 1);
  EXPECT_GT(shares({.top_k = 99}, kLogits, 1000)[0], 0);
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  auto share = shares({.top_p = 0.65F, .seed = 5}, kLogits, kDraws);  // 0.4 + 0.3
  EXPECT_EQ(share[0], 0);
  EXPECT_NEAR(share[1], 4.0 / 7, kNear);
  EXPECT_EQ(share[2], 0);
  EXPECT_NEAR(share[3], 3.0 / 7, kNear);
  share = shares({.top_p = 0.75F, .seed = 5}, kLogits, kDraws);  // 0.4 + 0.3 + 0.2
  EXPECT_EQ(share[0], 0);
  EXPECT_NEAR(share[2], 2.0 / 9, kNear);
  EXPECT_EQ(shares({.top_p = 1e-6F}, kLogits, 100)[1], 1);
  // Shares are of what top_k left: of 4/7 and 3/7 the first reaches a half.
  EXPECT_EQ(shares({.top_k = 2, .top_p = 0.5F}, kLogits, 100)[1], 1);
}

TEST(Sampler, TemperatureZeroIsGreedyAndTakesTheLowestOfEquals) {
  EXPECT_EQ(Sampler({.temperature = 0}).draw(kLogits), 1);
  const std::array<float, 4> equal = {1, 3, 2, 3};
  EXPECT_EQ(Sampler({.temperature = 0}).draw(equal), 1);
}

TEST(Sampler, ExtremesAreSafe) {
  const std::array<float, 4> wide = {-3e38F, 3e38F, 0, -1};
  EXPECT_EQ(Sampler({.temperature = 1e-30F}).draw(wide), 1);
  EXPECT_EQ(Sampler({.temperature = 1.0F}).draw(wide), 1);
  EXPECT_NO_THROW(Sampler({.temperature = 3e38F}).draw(wide));
  const std::array<float, 1> one = {-5};
  EXPECT_EQ(Sampler({}).draw(one), 0);
}

TEST(Sampler, SeedDecides) {
  const auto draw = [](uint64_t seed) {
    Sampler sampler({.seed = seed});
    std::vector<int> drawn;
    for (int i = 0; i < 50; ++i) drawn.push_back(sampler.draw(kLogits));
    return drawn;
  };
  EXPECT_EQ(draw(1), draw(1));
  EXPECT_NE(draw(1), draw(2));
  EXPECT_NE(draw(0), draw(std::numeric_limits<uint64_t>::max()));
}

TEST(Sampler, OptionsAndLogitsAreChecked) {
  EXPECT_THROW(Sampler({.temperature = -1}), Error);
  EXPECT_THROW(Sampler({.temperature = NAN}), Error);
  EXPECT_THROW(Sampler({.temperature = INFINITY}), Error);
  EXPECT_THROW(Sampler({.top_k = -1}), Error);
  EXPECT_THROW(Sampler({.top_p = 0}), Error);
  EXPECT_THROW(Sampler({.top_p = 1.5F}), Error);
  EXPECT_THROW(Sampler({.top_p = NAN}), Error);
  EXPECT_THROW(Sampler({}).draw({}), Error);
  const std::array<float, 2> bad = {1, NAN};
  EXPECT_THROW(Sampler({}).draw(bad), Error);
  const std::vector<float> many(257);
  EXPECT_THROW(Sampler({}).draw(many), Error);
}

TEST(Uniform, IsUniformWithinAndAcrossSeeds) {
  for (const bool across : {false, true}) {
    std::array<int, 16> bins = {};
    double product = 0;
    double last = 0.5;
    for (uint64_t i = 0; i < 16'000; ++i) {
      const double value = across ? uniform(i, 7) : uniform(7, i);
      ASSERT_GE(value, 0);
      ASSERT_LT(value, 1);
      ++bins.at(static_cast<size_t>(value * 16));
      product += (value - 0.5) * (last - 0.5);
      last = value;
    }
    double chi = 0;
    for (const int count : bins) chi += (count - 1000.0) * (count - 1000.0) / 1000.0;
    EXPECT_LT(chi, 45);  // 15 degrees of freedom: exceeded once in 13,000
    EXPECT_LT(std::abs(product / 16'000), 0.004);
  }
}

}  // namespace
}  // namespace aft::runtime

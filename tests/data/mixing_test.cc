#include "data/mixing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <numbers>
#include <set>
#include <string>
#include <vector>

#include "data/epoch_order.h"
#include "examples.h"
#include "message.h"

namespace aft {
namespace {

using Values = std::vector<uint8_t>;

/// Images 0, 1, ... of train, labelled so, then one for validation; and one for the test.
std::unique_ptr<Images> images_of(ImageShape shape, const std::vector<Values>& images, Augmentation augmentation = {}) {
  LabelledImages train, test;
  for (const Values& image : images) {
    train.pixels.insert(train.pixels.end(), image.begin(), image.end());
    train.labels.push_back(static_cast<uint8_t>(train.labels.size()));
  }
  test.pixels = images.front();
  test.labels = {0};
  return std::make_unique<Images>(shape, 100, std::move(train), std::move(test), 1, augmentation);
}

/// Images of one value each, and one more for validation.
std::unique_ptr<Images> plain(ImageShape shape, const std::vector<uint8_t>& values, Augmentation augmentation = {}) {
  std::vector<Values> images;
  for (const uint8_t value : values) images.emplace_back(static_cast<size_t>(shape.bytes()), value);
  images.push_back(images.front());
  return images_of(shape, images, augmentation);
}

// What the draws give is worked out in another language, from the same numbers of splitmix64; 65536 parts are a whole.

TEST(Mixing, MixupByHand) {
  const ImageShape shape{1, 4, 1};
  const std::vector<Values> images = {{0, 255, 100, 7}, {255, 0, 100, 8}, {10, 20, 30, 255}, {0, 0, 0, 0}};
  const MixedImages set(images_of(shape, images), {.mixup = 0.8});
  EXPECT_EQ(example(set, Split::kTrain, 1, 0), (Example{{213, 42, 100, 8}, {1, 0, 54646 / 65536.0F}}));
  EXPECT_EQ(example(set, Split::kTrain, 0, 0), (Example{{0, 255, 100, 7}, {0, 0, 54646 / 65536.0F}}));
  EXPECT_EQ(example(set, Split::kTrain, 0, 2), (Example{{3, 194, 82, 71}, {0, 2, 48653 / 65536.0F}}));
  EXPECT_EQ(example(set, Split::kTrain, 1, 3), (Example{{100, 13, 56, 164}, {1, 2, 24175 / 65536.0F}}));
  EXPECT_EQ(example(set, Split::kTrain, 2, 5), (Example{{251, 0, 99, 12}, {2, 1, 1052 / 65536.0F}}));
}

TEST(Mixing, CutMixByHand) {
  const ImageShape shape{5, 6, 2};
  const MixedImages set(plain(shape, {1, 2, 3}), {.cutmix = 1});
  const auto check = [&](uint64_t draw, int64_t index, int64_t partner, const std::vector<std::string>& rows) {
    Values expected;
    int64_t own = 0;
    for (const std::string& row : rows) {
      for (const char pixel : row) {
        const auto value = static_cast<uint8_t>(1 + (pixel == '#' ? partner : index));
        expected.insert(expected.end(), 2, value);
        own += pixel != '#';
      }
    }
    const Label label{index, partner, static_cast<float>(own) / 30};
    EXPECT_EQ(example(set, Split::kTrain, index, draw), (Example{expected, label})) << draw;
  };
  check(0, 1, 0, {"......", "#.....", "#.....", "......", "......"});
  check(1, 2, 0, {"......", "......", "...##.", "...##.", "......"});
  check(2, 1, 2, {"......", "......", "......", "##....", "##...."});
  check(3, 0, 2, {"......", "...###", "...###", "...###", "...###"});
  check(7, 2, 1, {"###...", "###...", "......", "......", "......"});
  check(7, 1, 1, {"###...", "###...", "......", "......", "......"});
}

TEST(Mixing, WhichKindAndWhetherAreDrawnForEachImage) {
  const ImageShape shape{5, 6, 1};
  const MixedImages set(plain(shape, {0, 100, 200}), {0.8, 1, 0.5});
  // Of draws 0 to 7: cut, cut, up, cut, cut, cut, none, up.
  EXPECT_EQ(example(set, Split::kTrain, 0, 6), (Example{Values(30, 0), {0}}));
  EXPECT_EQ(example(set, Split::kTrain, 0, 2), (Example{Values(30, 52), {0, 2, 48653 / 65536.0F}}));
  EXPECT_EQ(example(set, Split::kTrain, 0, 7), (Example{Values(30, 91), {0, 1, 5804 / 65536.0F}}));
  EXPECT_EQ(example(set, Split::kTrain, 2, 1).second, (Label{2, 0, 26 / 30.0F}));
}

/// Within five standard deviations of a count that is true with probability p in n.
void expect_share(int64_t count, int64_t n, double p, const std::string& what) {
  EXPECT_NEAR(static_cast<double>(count) / static_cast<double>(n), p,
              5 * std::sqrt(p * (1 - p) / static_cast<double>(n)))
      << what;
}

TEST(Mixing, EveryPictureIsTheImageAndABoxOfItsPartnerAsLargeAsTheLabelSays) {
  constexpr int64_t kReads = 4000;
  const ImageShape shape{7, 9, 3};
  const MixedImages set(plain(shape, {10, 20, 30, 40}), {0.4, 0.7, 0.75});
  const EpochOrder order(4, 11);
  std::vector<int64_t> partners(4, 0);
  int64_t mixed = 0;
  int64_t boxes = 0;
  std::set<int64_t> firsts;  // of rows of boxes
  for (int64_t i = 0; i < kReads; ++i) {
    const int64_t index = order.at(i).index;
    const auto [values, label] = example(set, Split::kTrain, index, order.draw(i));
    ASSERT_EQ(label.first, index);
    const auto own = static_cast<uint8_t>(10 * (index + 1));
    if (label.second == -1) {
      ASSERT_EQ(values, Values(7 * 9 * 3, own));
      ASSERT_EQ(label.share, 1);
      continue;
    }
    ++mixed;
    ++partners[static_cast<size_t>(label.second)];
    const auto other = static_cast<uint8_t>(10 * (label.second + 1));
    if (other == own) continue;  // shows nothing
    int64_t top = 7, bottom = -1, left = 9, right = -1, area = 0;
    for (int64_t pixel = 0; pixel < 63; ++pixel) {
      const uint8_t value = values[static_cast<size_t>(3 * pixel)];
      ASSERT_EQ(value, values[static_cast<size_t>(3 * pixel + 1)]);
      ASSERT_EQ(value, values[static_cast<size_t>(3 * pixel + 2)]);
      if (value != other) continue;
      ++area;
      top = std::min(top, pixel / 9), bottom = std::max(bottom, pixel / 9);
      left = std::min(left, pixel % 9), right = std::max(right, pixel % 9);
    }
    const bool one_value = std::count(values.begin(), values.end(), values[0]) == 7 * 9 * 3;
    if (one_value) {  // Mixup
      const double blend = label.share * own + (1 - static_cast<double>(label.share)) * other;
      ASSERT_EQ(values[0], std::floor(blend + 0.5));
      continue;
    }
    ++boxes;
    firsts.insert(top);
    ASSERT_EQ(area, (bottom - top + 1) * (right - left + 1)) << "no box";
    ASSERT_EQ(label.share, static_cast<float>(63 - area) / 63);
  }
  for (const int64_t count : partners) expect_share(count, mixed, 0.25, "partners");
  EXPECT_GT(boxes, kReads / 10);
  EXPECT_EQ(firsts, (std::set<int64_t>{0, 1, 2, 3, 4, 5}));  // half a box is one row at least
}

// One image, its own partner: half of the time they are flipped alike, whichever way the image itself is.
TEST(Mixing, ThePartnerIsAugmentedByADrawOfItsOwn) {
  constexpr int64_t kReads = 2000;
  const ImageShape shape{1, 2, 1};
  const std::vector<Values> images = {{0, 255}, {0, 0}};
  const MixedImages set(images_of(shape, images, {true, 0}), {.mixup = 1});
  const auto inner = images_of(shape, images, {true, 0});
  const EpochOrder order(1, 3);
  int64_t apart = 0;
  for (int64_t i = 0; i < kReads; ++i) {
    const Values own = example(*inner, Split::kTrain, 0, order.draw(i)).first;
    const auto [values, label] = example(set, Split::kTrain, 0, order.draw(i));
    if (values == own) continue;
    ++apart;
    const auto bright = static_cast<uint8_t>(std::floor(255.0 * label.share + 0.5));
    const auto dark = static_cast<uint8_t>(std::floor(255.0 * (1 - static_cast<double>(label.share)) + 0.5));
    ASSERT_EQ(values, own[0] == 255 ? (Values{bright, dark}) : (Values{dark, bright}));
  }
  // Less those few where the image's share is nearly whole.
  EXPECT_NEAR(static_cast<double>(apart) / kReads, 0.5 * 254.5 / 255, 5 * 0.5 / std::sqrt(kReads));
}

TEST(Mixing, OnlyTrainingWithADrawIsMixed) {
  const ImageShape shape{2, 3, 1};
  const std::vector<uint8_t> values = {0, 100, 200};
  const auto inner = plain(shape, values, {false, 5});
  const MixedImages set(plain(shape, values, {false, 5}), {1, 1, 1});
  for (const Split split : {Split::kTrain, Split::kValid, Split::kTest}) {
    EXPECT_EQ(set.size(split), inner->size(split));
    EXPECT_EQ(set.checksum(split), inner->checksum(split));
    for (int64_t i = 0; i < set.size(split); ++i) {
      EXPECT_EQ(set.bytes(split, i), 6);
      EXPECT_EQ(example(set, split, i), example(*inner, split, i));
      if (split == Split::kTrain) continue;
      EXPECT_EQ(example(set, split, i, 2), example(*inner, split, i, 2));
    }
  }
  const MixedImages never(plain(shape, values, {false, 5}), {1, 1, 0});
  const MixedImages off(plain(shape, values, {false, 5}), {});
  for (uint64_t draw = 0; draw < 50; ++draw) {
    EXPECT_EQ(example(never, Split::kTrain, 1, draw), example(*inner, Split::kTrain, 1, draw));
    EXPECT_EQ(example(off, Split::kTrain, 1, draw), example(*inner, Split::kTrain, 1, draw));
  }
}

TEST(Mixing, WhatIsReadDependsOnIndexAndDrawAlone) {
  const ImageShape shape{6, 5, 3};
  const MixedImages set(plain(shape, {1, 60, 120, 250}, {true, 9}), {0.3, 0.9, 0.8});
  std::vector<Example> forwards, backwards;
  for (int64_t i = 0; i < 200; ++i) forwards.push_back(example(set, Split::kTrain, i % 4, static_cast<uint64_t>(i)));
  for (int64_t i = 199; i >= 0; --i) backwards.push_back(example(set, Split::kTrain, i % 4, static_cast<uint64_t>(i)));
  std::reverse(backwards.begin(), backwards.end());
  EXPECT_EQ(forwards, backwards);
}

TEST(DrawBeta, HasTheMeanAndVarianceOfBeta) {
  constexpr int64_t kNumbers = 20'000;
  for (const double alpha : {0.001, 0.1, 0.2, 0.8, 1.0, 3.0, 40.0, 1000.0}) {
    RandomNumbers numbers(7);
    double sum = 0;
    double squares = 0;
    for (int64_t i = 0; i < kNumbers; ++i) {
      const double x = draw_beta(alpha, numbers);
      ASSERT_TRUE(x >= 0 && x <= 1) << alpha;
      sum += x;
      squares += (x - 0.5) * (x - 0.5);
    }
    const double variance = 1 / (4 * (2 * alpha + 1));
    EXPECT_NEAR(sum / kNumbers, 0.5, 5 * std::sqrt(variance / kNumbers)) << alpha;
    // The fourth moment is at most a quarter of the second, as no number is further than a half from the mean, and at
    // most three times its square, that of the normal distribution.
    const double fourth = std::min(variance / 4, 3 * variance * variance);
    const double deviation = std::sqrt((fourth - variance * variance) / kNumbers);
    EXPECT_NEAR(squares / kNumbers, variance, 5 * deviation) << alpha;
  }
}

TEST(DrawBeta, HasTheDistributionOfBeta) {
  constexpr int64_t kNumbers = 20'000;
  const std::vector<std::pair<double, std::function<double(double)>>> shares_below = {
      {0.5, [](double x) { return 2 / std::numbers::pi * std::asin(std::sqrt(x)); }},
      {1.0, [](double x) { return x; }},
      {2.0, [](double x) { return x * x * (3 - 2 * x); }},
  };
  for (const auto& [alpha, share_below] : shares_below) {
    RandomNumbers numbers(12);
    std::vector<double> drawn;
    for (int64_t i = 0; i < kNumbers; ++i) drawn.push_back(draw_beta(alpha, numbers));
    for (const double x : {0.003, 0.05, 0.2, 0.45, 0.7, 0.99}) {
      const auto count = std::count_if(drawn.begin(), drawn.end(), [&](double number) { return number < x; });
      expect_share(count, kNumbers, share_below(x), std::to_string(alpha) + " below " + std::to_string(x));
    }
  }
}

TEST(Mixing, NumbersOutOfRangeAreErrors) {
  const auto refusal = [](const Mixing& mixing) {
    const ImageShape shape{1, 1, 1};
    return message([&] { MixedImages(plain(shape, {1}), mixing); });
  };
  EXPECT_EQ(refusal({0.001, 1000, 1}), "");
  EXPECT_EQ(refusal({-0.5, 0, 1}), "data.mixup: expected 0 (off) or 0.001 to 1000, got -0.5");
  EXPECT_EQ(refusal({0, 1e-4, 1}), "data.cutmix: expected 0 (off) or 0.001 to 1000, got 0.0001");
  EXPECT_EQ(refusal({0, 1001, 1}), "data.cutmix: expected 0 (off) or 0.001 to 1000, got 1001");
  EXPECT_EQ(refusal({NAN, 0, 1}), "data.mixup: expected 0 (off) or 0.001 to 1000, got nan");
  EXPECT_EQ(refusal({1, 0, 1.5}), "data.mix_probability: expected 0 to 1, got 1.5");
  EXPECT_EQ(refusal({1, 0, NAN}), "data.mix_probability: expected 0 to 1, got nan");
}

}  // namespace
}  // namespace aft

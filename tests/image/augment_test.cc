// What is drawn. That each operation does what it should is in pillow_test.cc.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "../data/message.h"
#include "image/augment/affine.h"
#include "image/augment/erase.h"
#include "image/augment/rand_augment.h"
#include "image/augment/random_crop.h"
#include "image/augment/tones.h"
#include "image/crop.h"
#include "numbers/mix.h"

namespace aft {
namespace {

constexpr double kFive = 5;  // deviations from the expected count, which a fixed seed does not pass by chance

/// Edges, slopes and all channels apart, so that every operation changes something.
Picture motley(ImageShape shape) {
  Picture picture = plain_picture(shape, 0);
  for (size_t i = 0; i < picture.values.size(); ++i) {
    picture.values[i] = static_cast<uint8_t>(20 + mix(i / 5) % 100 + 100 * (i % 2));
  }
  return picture;
}

void expect_count(int64_t count, int64_t of, double probability) {
  const double all = static_cast<double>(of);
  EXPECT_NEAR(count, all * probability, kFive * std::sqrt(all * probability * (1 - probability)));
}

TEST(RandomCrop, PartsOfTheAreaAreUniformAndRatiosInLogarithm) {
  constexpr int64_t kDraws = 20000;
  const ImageShape shape{1000, 1000, 3};
  std::array<int64_t, 4> scales{};
  int64_t narrow = 0;
  double places = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    // Up to a quarter of the area every window fits, so that the first try counts.
    const Window window = random_window(shape, {0.05, 0.25}, mix(i));
    const double scale = static_cast<double>(window.height * window.width) / 1e6;
    const double ratio = static_cast<double>(window.width) / static_cast<double>(window.height);
    ASSERT_GT(scale, 0.049);
    ASSERT_LT(scale, 0.251);
    ASSERT_GT(ratio, 0.74);
    ASSERT_LT(ratio, 1.35);
    ++scales[static_cast<size_t>(std::clamp((scale - 0.05) / 0.05, 0.0, 3.0))];
    narrow += std::log(ratio) < std::log(0.75) / 2;
    places += static_cast<double>(window.top) / static_cast<double>(1000 - window.height);
  }
  for (const int64_t count : scales) expect_count(count, kDraws, 0.25);
  expect_count(narrow, kDraws, 0.25);
  EXPECT_NEAR(places / kDraws, 0.5, kFive * std::sqrt(1.0 / 12 / kDraws));
}

TEST(RandomCrop, WindowsLieInsideAndReachTheBorders) {
  const ImageShape shape{3, 4, 1};
  std::map<std::string, int> seen;
  for (uint64_t i = 0; i < 2000; ++i) {
    const Window window = random_window(shape, {0.08, 1}, mix(i));
    ASSERT_GE(window.top, 0);
    ASSERT_GE(window.left, 0);
    ASSERT_GE(window.height, 1);
    ASSERT_GE(window.width, 1);
    ASSERT_LE(window.top + window.height, 3);
    ASSERT_LE(window.left + window.width, 4);
    seen["top"] += window.top == 0;
    seen["bottom"] += window.top + window.height == 3 && window.height < 3;
    seen["right"] += window.left + window.width == 4 && window.width < 4;
    seen["all"] += window == Window{0, 0, 3, 4};
  }
  for (const char* where : {"top", "bottom", "right", "all"}) EXPECT_GT(seen[where], 20) << where;
  EXPECT_EQ(random_window({1, 1, 1}, {0.01, 1}, 3), (Window{0, 0, 1, 1}));
}

TEST(RandomCrop, WhatFitsInNoTryIsTheMiddle) {
  // All of the area with a ratio of 3/4 to 4/3 does not fit: the widest is 4/3 of the height, the narrowest 3/4.
  EXPECT_EQ(random_window({30, 101, 1}, {1, 1}, 7), (Window{0, 30, 30, 40}));
  EXPECT_EQ(random_window({101, 30, 1}, {1, 1}, 7), (Window{30, 0, 40, 30}));
  EXPECT_EQ(random_window({1, 50, 1}, {1, 1}, 7), (Window{0, 24, 1, 1}));
}

TEST(RandomCrop, IsTheWindowResized) {
  const Picture picture = motley({20, 30, 3});
  const Window window = random_window(picture.shape, {0.08, 1}, 11);
  const Picture part = crop(picture, window);
  const Picture result = random_resized_crop(picture, 8, 9, {0.08, 1}, Resampling::kBicubic, 11);
  EXPECT_EQ(result.shape, (ImageShape{8, 9, 3}));
  EXPECT_EQ(result.values, resize(part, 8, 9, Resampling::kBicubic).values);
}

TEST(RandomCrop, BadScalesAreErrors) {
  EXPECT_EQ(message([] { require_crop_scale({0.08, 1}); }), "");
  for (const auto& [least, most] : {std::pair(0.0, 1.0), {0.5, 0.4}, {0.5, 1.1}, {std::nan(""), 1.0}}) {
    EXPECT_EQ(message([&] { require_crop_scale({least, most}); }).find("data.crop_scale: expected two parts"), 0U);
  }
}

/// A picture of the value 7 in which all that differs has been erased, and the smallest box around it.
struct Erased {
  Picture picture;
  Window box;

  Erased(ImageShape shape, double probability, uint64_t draw) : picture(plain_picture(shape, 7)) {
    erase(picture, probability, draw);
    int64_t top = shape.height, left = shape.width, bottom = 0, right = 0;
    for (int64_t i = 0; i < std::ssize(picture.values); ++i) {
      if (picture.values[static_cast<size_t>(i)] == 7) continue;
      const int64_t y = i / (shape.width * shape.channels);
      const int64_t x = i / shape.channels % shape.width;
      top = std::min(top, y);
      left = std::min(left, x);
      bottom = std::max(bottom, y + 1);
      right = std::max(right, x + 1);
    }
    if (bottom > 0) box = {top, left, bottom - top, right - left};
  }
};

TEST(Erase, BoxesAreOfTheirSizeAndNumber) {
  constexpr int64_t kDraws = 4000;
  int64_t erased = 0;
  std::array<int64_t, 2> areas{};
  for (uint64_t i = 0; i < kDraws; ++i) {
    const Erased one({60, 60, 1}, 0.25, mix(i));
    if (one.box.height == 0) continue;
    ++erased;
    const double area = static_cast<double>(one.box.height * one.box.width) / 3600;
    const double ratio = static_cast<double>(one.box.height) / static_cast<double>(one.box.width);
    ASSERT_GT(area, 0.02 * 0.9);  // sides are rounded to whole pixels
    ASSERT_LT(area, 1.0 / 3 * 1.05);
    ASSERT_GT(ratio, 0.3 * 0.85);
    ASSERT_LT(ratio, 1 / 0.3 * 1.15);
    ++areas[area < (0.02 + 1.0 / 3) / 2 ? 0 : 1];
  }
  expect_count(erased, kDraws, 0.25);
  // Large boxes are a little rarer, since those that would be longer than the picture are drawn anew.
  EXPECT_GT(areas[0], areas[1]);
  EXPECT_GT(areas[1], erased * 2 / 5);
}

/// The normal distribution function.
double normal_below(double x) { return std::erfc(-x / std::sqrt(2.0)) / 2; }

TEST(Erase, NoiseIsThatOfPhotosRoundedAndClipped) {
  const std::array<double, 3> means = {123.675, 116.28, 103.53};
  const std::array<double, 3> deviations = {58.395, 57.12, 57.375};
  std::array<std::array<int64_t, 256>, 3> counts{};
  std::array<int64_t, 3> all{};
  for (uint64_t i = 0; i < 100; ++i) {
    const Erased one({64, 64, 3}, 1, mix(i));
    const Picture noise = crop(one.picture, one.box);
    for (size_t k = 0; k < noise.values.size(); ++k) {
      ++counts[k % 3][noise.values[k]];
      ++all[k % 3];
    }
  }
  for (size_t c = 0; c < 3; ++c) {
    const auto up_to = [&](int value) { return normal_below((value + 0.5 - means[c]) / deviations[c]); };
    int64_t count = 0;
    for (int value = 0; value < 255; ++value) {
      count += counts[c][static_cast<size_t>(value)];
      if (value % 15 == 0) expect_count(count, all[c], up_to(value));
    }
    expect_count(counts[c][255], all[c], 1 - up_to(254));
  }
  EXPECT_GT(all[0], 50000);
}

TEST(Erase, NoiseOfGreyPicturesIsThatOfTheirGrey) {
  double sum = 0;
  double square = 0;
  int64_t all = 0;
  for (uint64_t i = 0; i < 100; ++i) {
    const Erased one({64, 64, 1}, 1, mix(i));
    for (const uint8_t value : crop(one.picture, one.box).values) {
      sum += value;
      square += value * value;
      ++all;
    }
  }
  // 0.299, 0.587 and 0.114 of red, green and blue: 117.0 and 57.5, then clipped.
  double mean = 0;
  double power = 0;
  for (int value = 1; value <= 255; ++value) {
    const double up = value == 255 ? 1 : normal_below((value + 0.5 - 117.037) / 57.530);
    const double part = up - normal_below((value - 0.5 - 117.037) / 57.530);
    mean += value * part;
    power += value * value * part;
  }
  const double deviation = std::sqrt(power - mean * mean);
  const double count = static_cast<double>(all);
  EXPECT_NEAR(sum / count, mean, kFive * deviation / std::sqrt(count));
  EXPECT_NEAR(std::sqrt(square / count - sum / count * sum / count), deviation, kFive * deviation / std::sqrt(count));
}

TEST(Erase, NeverAllAndNeverOutside) {
  for (const ImageShape& shape : {ImageShape{1, 1, 3}, {1, 9, 1}, {9, 1, 3}}) {
    // No box is both lower than one pixel and has any.
    for (uint64_t i = 0; i < 50; ++i) EXPECT_EQ(Erased(shape, 1, mix(i)).box, Window{});
  }
  for (uint64_t i = 0; i < 200; ++i) {
    const Window box = Erased({2, 3, 3}, 1, mix(i)).box;
    ASSERT_LE(box.height, 1);
    ASSERT_LE(box.width, 2);
  }
  EXPECT_EQ(Erased({30, 30, 3}, 0, 5).box, Window{});
  for (const double probability : {-0.1, 1.5, std::nan("")}) {
    EXPECT_NE(message([&] {
                Erased({3, 3, 1}, probability, 1);
              }).find("data.erase: expected a probability"),
              std::string::npos);
  }
}

TEST(RandAugment, TheListIsTimms) {
  std::vector<std::string> names;
  for (const AugmentOperation& operation : augment_operations()) names.emplace_back(operation.name);
  EXPECT_EQ(names, (std::vector<std::string>{"AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing",
                                             "SolarizeIncreasing", "SolarizeAdd", "ColorIncreasing",
                                             "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing",
                                             "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}));
}

// timm's level for a magnitude of 9.3, and for 10 where that is an end, worked out by hand.
TEST(RandAugment, LevelsAreTimms) {
  const Picture picture = motley({9, 12, 3});
  const Color fill = {1, 2, 3};
  const auto expect = [&](size_t operation, double magnitude, bool negative, const auto& change) {
    Picture result = picture;
    const AugmentOperation& chosen = augment_operations()[operation];
    chosen.apply(result, magnitude, negative, fill);
    Picture expected = picture;
    change(expected);
    EXPECT_EQ(result.values, expected.values) << chosen.name;
  };
  const auto cubic = Resampling::kBicubic;
  expect(0, 9.3, false, auto_contrast);
  expect(1, 9.3, false, equalize);
  expect(2, 9.3, false, invert);
  expect(3, 9, false, [&](Picture& p) { rotate(p, 27, cubic, fill); });
  expect(3, 9, true, [&](Picture& p) { rotate(p, -27, cubic, fill); });
  expect(4, 9.3, false, [](Picture& p) { posterize(p, 1); });
  expect(4, 10, true, [](Picture& p) { posterize(p, 0); });
  expect(4, 0, true, [](Picture& p) { posterize(p, 4); });
  expect(5, 9.3, false, [](Picture& p) { solarize(p, 18); });
  expect(5, 0, false, [](Picture& p) { solarize(p, 256); });
  expect(6, 9.3, true, [](Picture& p) { solarize_add(p, 102); });
  void (*const enhance[])(Picture&, double) = {adjust_color, adjust_contrast, adjust_brightness, adjust_sharpness};
  for (size_t i = 0; i < 4; ++i) {
    expect(7 + i, 9.3, false, [&](Picture& p) { enhance[i](p, 1.837); });
    expect(7 + i, 9.3, true, [&](Picture& p) { enhance[i](p, 0.163); });
    expect(7 + i, 10, true, [&](Picture& p) { enhance[i](p, 0.1); });
  }
  expect(11, 9, true, [&](Picture& p) { shear_x(p, -0.27, cubic, fill); });
  expect(12, 9, false, [&](Picture& p) { shear_y(p, 0.27, cubic, fill); });
  expect(13, 9, true, [&](Picture& p) { translate_x(p, -0.405, cubic, fill); });
  expect(14, 9, false, [&](Picture& p) { translate_y(p, 0.405, cubic, fill); });
}

std::string text(const Picture& picture) { return {picture.values.begin(), picture.values.end()}; }

TEST(RandAugment, EveryOperationHasItsShare) {
  constexpr int64_t kDraws = 6000;
  const Picture picture = motley({9, 12, 3});
  // At a magnitude of 9 without deviation there are 24 results: six operations know no direction, nine have two.
  std::map<std::string, std::string> results;  // values to name
  for (const AugmentOperation& operation : augment_operations()) {
    for (const bool negative : {false, true}) {
      Picture result = picture;
      operation.apply(result, 9, negative, kPhotoColor);
      results[text(result)] = operation.name;
    }
  }
  // Below 256 pixels Equalize changes nothing, as if it had not been carried out.
  ASSERT_EQ(results[text(picture)], "Equalize");
  ASSERT_EQ(results.size(), 6U + 2 * 9);
  std::map<std::string, int64_t> counts;
  for (uint64_t i = 0; i < kDraws; ++i) {
    Picture result = picture;
    rand_augment(result, {1, 9, 0, kPhotoColor}, mix(i));
    ++counts[results.at(text(result))];
  }
  ASSERT_EQ(counts.size(), 15U);
  for (const auto& [name, count] : counts) {
    SCOPED_TRACE(name);
    expect_count(count, kDraws, name == "Equalize" ? 0.5 + 0.5 / 15 : 0.5 / 15);
  }
}

TEST(RandAugment, MagnitudesAreNormalAndClipped) {
  // SolarizeAdd adds as much to a black picture as its magnitude says, and nothing else does but Invert,
  // SolarizeIncreasing and the fill, which all give other values: 110 * magnitude / 10 rounded down.
  constexpr int64_t kDraws = 60000;
  const auto below = [](double magnitude, double deviation, int64_t bound, int64_t* all) {
    int64_t count = 0;
    *all = 0;
    for (uint64_t i = 0; i < kDraws; ++i) {
      Picture black = plain_picture({1, 1, 1}, 0);
      rand_augment(black, {1, magnitude, deviation, {255, 255, 255}}, mix(i));
      const int64_t value = black.values[0];
      if (value == 0 || value == 255) continue;
      ++*all;
      count += value < bound;
    }
    return count;
  };
  int64_t all = 0;
  // N(9, 0.5) below 9.0909, that is 100 added: the normal distribution function at 0.1818.
  const int64_t lower = below(9, 0.5, 100, &all);
  expect_count(all, kDraws, 0.5 / 15);
  expect_count(lower, all, 0.57213);
  // The clipped ones are at 10: N(9, 0.5) above it with probability 0.02275, and all other ones below.
  expect_count(all - below(9, 0.5, 110, &all), all, 0.02275);
  EXPECT_EQ(below(9, 0, 99, &all), 0);
  EXPECT_EQ(below(9, 0, 100, &all), all);
}

TEST(RandAugment, OperationsFollowEachOther) {
  // Four operations are carried out with probability 1/2 each: none is with 1/16, and of black only few are seen.
  const Picture picture = motley({9, 12, 3});
  constexpr int64_t kDraws = 4000;
  int64_t same = 0;
  for (uint64_t i = 0; i < kDraws; ++i) {
    Picture result = picture;
    rand_augment(result, {4, 9, 0, kPhotoColor}, mix(i));
    same += result.values == picture.values;
  }
  // Or with Equalize, which is nothing here, or Invert twice: (1/2 + 1/30)^4 and, for two of the four, (1/30)^2.
  const double idle = 0.5 + 0.5 / 15;
  expect_count(same, kDraws, std::pow(idle, 4) + 6 * idle * idle / 900);
  Picture result = picture;
  rand_augment(result, {0, 9, 0.5, kPhotoColor}, 3);
  EXPECT_EQ(result.values, picture.values);
}

TEST(Augment, IsAPureFunctionOfTheDraw) {
  for (const ImageShape& shape : {ImageShape{1, 1, 3}, {1, 1, 1}, {1, 8, 3}, {17, 5, 1}, {40, 30, 3}}) {
    int64_t differ = 0;
    Picture before = motley(shape);
    for (uint64_t draw = 0; draw < 100; ++draw) {
      const auto augmented = [&] {
        Picture picture =
            random_resized_crop(motley(shape), shape.height, shape.width, {0.3, 1}, Resampling::kBicubic, draw);
        rand_augment(picture, {}, mix(draw));
        erase(picture, 0.5, mix(draw + kMixStep));
        return picture;
      };
      const Picture once = augmented();
      EXPECT_EQ(once.shape, shape);
      EXPECT_EQ(once.values, augmented().values);
      differ += once.values != before.values;
      before = once;
    }
    EXPECT_GT(differ, 40) << text_of(shape);
  }
}

TEST(RandAugment, BadOptionsAreErrors) {
  const auto refusal = [](const RandAugment& options) { return message([&] { require_rand_augment(options); }); };
  EXPECT_EQ(refusal({}), "");
  EXPECT_EQ(refusal({-1, 9, 0.5, {}}), "data.rand_augment: expected 0 to 100 operations a picture, got -1");
  EXPECT_EQ(refusal({2, 11, 0.5, {}}), "data.magnitude: expected 0 to 10, got 11.000000");
  EXPECT_EQ(refusal({2, std::nan(""), 0.5, {}}), "data.magnitude: expected 0 to 10, got nan");
  EXPECT_EQ(refusal({2, 9, -1, {}}), "data.magnitude_deviation: expected 0 to 100, got -1.000000");
}

TEST(Operations, BadArgumentsAreErrors) {
  Picture picture = motley({2, 2, 3});
  EXPECT_EQ(message([&] { posterize(picture, 9); }), "bits: expected 0 to 8, got 9");
  EXPECT_EQ(message([&] { solarize_add(picture, -1); }), "amount: expected at least 0, got -1");
  for (const auto change : {adjust_color, adjust_contrast, adjust_brightness, adjust_sharpness}) {
    for (const double factor : {-0.1, 1e7, std::nan("")}) {
      EXPECT_EQ(message([&] { change(picture, factor); }).find("factor: expected 0 to 1000000, got "), 0U);
    }
  }
  EXPECT_EQ(message([&] { rotate(picture, 5, Resampling::kNearest, {}); }),
            "resampling: expected kBilinear or kBicubic, got kNearest");
  EXPECT_EQ(message([&] { shear_x(picture, INFINITY, Resampling::kBicubic, {}); }),
            "transform: expected finite numbers, got inf");
  EXPECT_EQ(picture.values, motley({2, 2, 3}).values);
  Picture none;
  for (const auto change : {auto_contrast, equalize, invert}) {
    EXPECT_EQ(message([&] { change(none); }).find("picture: expected at least one pixel"), 0U);
  }
}

}  // namespace
}  // namespace aft

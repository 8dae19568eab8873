#include "image/resize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "../data/message.h"
#include "image/crop.h"

namespace aft {
namespace {

using Weights = std::vector<double>;

TEST(Resize, WeightsOfTheHalvedTriangle) {
  // The triangle is two sources wide to either side: of 4 sources at distances 1.5, 0.5, 0.5 and 1.5, halved.
  const FilterWeights axis = filter_weights(4, 0, 4, 2, Resampling::kBilinear);
  EXPECT_EQ(axis.first, (std::vector<int64_t>{0, 1}));
  EXPECT_EQ(axis.count, (std::vector<int64_t>{3, 3}));
  ASSERT_EQ(axis.taps, 4);
  // Result 0, centre 1: sources 0, 1, 2 at 0.5, 0.5, 1.5, so 3/4, 3/4, 1/4 over their sum, 7/4.
  const Weights expected = {3.0 / 7, 3.0 / 7, 1.0 / 7, 0, 1.0 / 7, 3.0 / 7, 3.0 / 7, 0};
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(axis.weights[i], expected[i], 1e-15) << i;
}

TEST(Resize, WeightsOfTheDoubledCubic) {
  // Result 3 of 8 from 4: centre 1.75, sources 0 to 3 at distances 1.25, 0.25, 0.75 and 1.75, by hand with a = -1/2:
  // -9/128, 111/128, 29/128, -3/128.
  const FilterWeights axis = filter_weights(4, 0, 4, 8, Resampling::kBicubic);
  EXPECT_EQ(axis.first[3], 0);
  EXPECT_EQ(axis.count[3], 4);
  const Weights expected = {-9.0 / 128, 111.0 / 128, 29.0 / 128, -3.0 / 128};
  for (size_t j = 0; j < 4; ++j) {
    EXPECT_NEAR(axis.weights[3 * static_cast<size_t>(axis.taps) + j], expected[j], 1e-15);
  }
}

TEST(Resize, WeightsLieInsideAndSumToOne) {
  for (const Resampling method : {Resampling::kNearest, Resampling::kBilinear, Resampling::kBicubic}) {
    for (const int64_t size : {1, 2, 3, 7, 100}) {
      for (const int64_t results : {1, 2, 5, 33, 250}) {
        for (const float end : {static_cast<float>(size), static_cast<float>(size) * 0.3F}) {
          const FilterWeights axis = filter_weights(size, end * 0.1F, end, results, method);
          ASSERT_EQ(std::ssize(axis.first), results);
          for (int64_t i = 0; i < results; ++i) {
            const auto at = static_cast<size_t>(i);
            ASSERT_GE(axis.first[at], 0);
            ASSERT_GE(axis.count[at], 1);
            ASSERT_LE(axis.count[at], axis.taps);
            ASSERT_LE(axis.first[at] + axis.count[at], size);
            const auto begin = axis.weights.begin() + i * axis.taps;
            ASSERT_NEAR(std::accumulate(begin, begin + axis.taps, 0.0), 1, 1e-14);
          }
        }
      }
    }
  }
}

TEST(Resize, TheSameSizeIsTheSamePicture) {
  const Picture picture{{2, 3, 1}, {5, 250, 0, 255, 17, 99}};
  for (const Resampling method : {Resampling::kNearest, Resampling::kBilinear, Resampling::kBicubic}) {
    EXPECT_EQ(resize(picture, 2, 3, method).values, picture.values);
  }
}

TEST(Resize, WithinAWindowIsThePartOfTheWhole) {
  Picture picture = plain_picture({11, 8, 3}, 0);
  for (size_t i = 0; i < picture.values.size(); ++i) picture.values[i] = static_cast<uint8_t>(i * i / 3);
  for (const Resampling method : {Resampling::kNearest, Resampling::kBilinear, Resampling::kBicubic}) {
    for (const auto& [height, width] : {std::pair(5, 5), {23, 4}, {7, 31}}) {
      const Picture whole = resize(picture, height, width, method);
      for (const Window& window : {Window{0, 0, height, width}, {3, 1, 2, 3}, {height - 1, width - 1, 1, 1}}) {
        const Picture part = resize_within(picture, height, width, method, window);
        EXPECT_EQ(part.shape, (ImageShape{window.height, window.width, 3}));
        EXPECT_EQ(part.values, crop(whole, window).values);
      }
    }
  }
  for (const Window& window : {Window{-1, 0, 1, 1}, {0, 5, 1, 1}, {4, 0, 2, 1}, {0, 0, 0, 1}, {0, 0, 1, 6}}) {
    EXPECT_NE(message([&] { resize_within(picture, 5, 5, Resampling::kBicubic, window); }), "");
  }
}

TEST(Resize, FloatsByTheNearest) {
  // Centres of three results among two sources: 1/3, 1 and 5/3.
  EXPECT_EQ(resize_floats(std::vector<float>{1, 2, 3, 4}, 2, 1, 2, 3, 1, Resampling::kNearest),
            (std::vector<float>{1, 2, 3, 4, 3, 4}));
}

TEST(Resize, FloatsAreNotRounded) {
  const std::vector<float> values = {0.25F, -1e6F, 3e-5F};
  EXPECT_EQ(resize_floats(values, 1, 1, 3, 2, 1, Resampling::kBicubic),
            (std::vector<float>{0.25F, -1e6F, 3e-5F, 0.25F, -1e6F, 3e-5F}));
}

TEST(Resize, BadArgumentsAreErrors) {
  const Picture picture = plain_picture({4, 6, 3}, 9);
  const auto sized = [&](int64_t height, int64_t width) {
    return message([&] { resize(picture, height, width, Resampling::kBicubic); });
  };
  EXPECT_EQ(sized(1, 1), "");
  EXPECT_EQ(sized(0, 5), "size: expected 1 to 16777216 along an axis, got 0 x 5");
  EXPECT_EQ(sized(5, -1), "size: expected 1 to 16777216 along an axis, got 5 x -1");
  EXPECT_EQ(sized(1, 16777217), "size: expected 1 to 16777216 along an axis, got 1 x 16777217");
  const auto boxed = [&](Box box) { return message([&] { resize(picture, 2, 2, Resampling::kBilinear, box); }); };
  EXPECT_EQ(boxed({0, 0, 4, 6}), "");
  EXPECT_EQ(boxed({3.5F, 5.5F, 4, 6}), "");
  const float nan = std::nanf("");
  for (const Box& box : {Box{-1, 0, 4, 6}, {0, 0, 4.5F, 6}, {0, 0, 4, 7}, {2, 0, 2, 6}, {0, 3, 4, 1}, {nan, 0, 4, 6}}) {
    EXPECT_NE(boxed(box).find("box: expected one inside 4 x 6 pixels of 3 values, got rows "), std::string::npos);
  }
  const auto drawn = [&](const Picture& bad) { return message([&] { resize(bad, 2, 2, Resampling::kBilinear); }); };
  EXPECT_EQ(drawn({{1, 1, 2}, {1, 2}}),
            "picture: expected at least one pixel, of 1 or 3 values, got 1 x 1 pixels of 2 values, in 2 values");
  EXPECT_NE(drawn({{0, 1, 1}, {}}), "");
  EXPECT_NE(drawn({{2, 2, 1}, {1, 2, 3}}), "");
  const auto floats = [](int64_t height, int64_t width, int64_t channels) {
    return message([&] { resize_floats(std::vector<float>(6), height, width, channels, 1, 1, Resampling::kBilinear); });
  };
  EXPECT_EQ(floats(1, 2, 3), "");
  EXPECT_EQ(floats(1, 2, 2), "values: expected 1 x 2 x 2 of them, got 6");
  EXPECT_NE(floats(0, 2, 3), "");
  EXPECT_NE(floats(1, 6, 0), "");
}

}  // namespace
}  // namespace aft

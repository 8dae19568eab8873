#include "image/crop.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../data/message.h"

namespace aft {
namespace {

using Values = std::vector<uint8_t>;

/// One channel, the values counted up from 0.
Picture counted(int64_t height, int64_t width) {
  Picture picture = plain_picture({height, width, 1}, 0);
  for (size_t i = 0; i < picture.values.size(); ++i) picture.values[i] = static_cast<uint8_t>(i);
  return picture;
}

TEST(Crop, TakesThePart) {
  const Picture part = crop(counted(3, 4), {1, 2, 2, 2});
  EXPECT_EQ(part.shape, (ImageShape{2, 2, 1}));
  EXPECT_EQ(part.values, (Values{6, 7, 10, 11}));
  const Picture colors{{2, 2, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};
  EXPECT_EQ(crop(colors, {0, 1, 2, 1}).values, (Values{4, 5, 6, 10, 11, 12}));
  EXPECT_EQ(crop(colors, {0, 0, 2, 2}).values, colors.values);
}

TEST(Crop, WhatIsNotInsideIsAnError) {
  const Picture picture = counted(3, 4);
  const auto refusal = [&](int64_t top, int64_t left, int64_t height, int64_t width) {
    return message([&] { crop(picture, {top, left, height, width}); });
  };
  EXPECT_EQ(refusal(2, 0, 2, 1), "crop: expected a part of 3 x 4 pixels of 1 value, got 2 x 1 from row 2, column 0 on");
  for (const auto& [top, left] : {std::pair(-1, 0), {0, -1}, {3, 0}, {0, 4}}) EXPECT_NE(refusal(top, left, 1, 1), "");
  for (const auto& [height, width] : {std::pair(0, 1), {1, 0}, {4, 1}, {1, 5}}) {
    EXPECT_NE(refusal(0, 0, height, width), "");
  }
  EXPECT_NE(refusal(1, 0, INT64_MAX, 1), "");
}

TEST(Crop, HalfAPixelGoesToTheEvenOffset) {
  EXPECT_EQ(centre_of(1, 4, 1, 2), (Window{0, 1, 1, 2}));
  EXPECT_EQ(centre_of(1, 4, 1, 3), (Window{0, 0, 1, 3}));  // of 0.5
  EXPECT_EQ(centre_of(1, 6, 1, 3), (Window{0, 2, 1, 3}));  // of 1.5
  EXPECT_EQ(centre_of(7, 9, 2, 9), (Window{2, 0, 2, 9}));  // of 2.5
}

TEST(Fit, EvaluationResizesAndTakesTheMiddle) {
  // The shorter side, 375, to floor(224 / 0.875) = 256, the longer to floor(256 * 500 / 375) = 341; 224 from row 16
  // and column 58 (of 58.5) on.
  Picture photo = plain_picture({375, 500, 1}, 0);
  for (size_t i = 0; i < photo.values.size(); ++i) photo.values[i] = static_cast<uint8_t>(i * i / 91);
  const Picture expected = crop(resize(photo, 256, 341, Resampling::kBicubic), {16, 58, 224, 224});
  EXPECT_EQ(fit_for_evaluation(photo, 224, 224, 0.875, Resampling::kBicubic).values, expected.values);
  // Where all of it is to be seen, and where its proportions are already those.
  EXPECT_EQ(fit_for_evaluation(photo, 375, 375, 1, Resampling::kBilinear).values,
            crop(photo, {0, 62, 375, 375}).values);
}

TEST(Fit, WhatIsNoSquareIsCovered) {
  // 30 x 20 is to cover 10 x 40: by 2 across, to 60 x 40; the middle 10 rows.
  const Picture picture = counted(30, 20);
  const Picture expected = crop(resize(picture, 60, 40, Resampling::kBilinear), {25, 0, 10, 40});
  EXPECT_EQ(fit_for_evaluation(picture, 10, 40, 1, Resampling::kBilinear).values, expected.values);
  for (const auto& [height, width] : {std::pair(1, 1), {3, 7}, {50, 2}, {64, 65}}) {
    for (const double fraction : {0.37, 0.875, 0.9, 1.0}) {
      EXPECT_EQ(fit_for_evaluation(picture, height, width, fraction, Resampling::kBilinear).shape,
                (ImageShape{height, width, 1}));
    }
  }
}

TEST(Fit, ALongStripDoesNotBecomeAHugePicture) {
  // As a whole 224 x 134,400,000 values.
  Picture strip = plain_picture({1, 600000, 1}, 40);
  std::fill(strip.values.begin() + 300000, strip.values.end(), 200);
  const Picture seen = fit_for_evaluation(strip, 224, 224, 1, Resampling::kBilinear);
  for (size_t i = 0; i < 224; ++i) EXPECT_EQ(seen.values[224 * 7 + i], seen.values[i]);
  EXPECT_EQ(seen.values[0], 40);
  EXPECT_EQ(seen.values[223], 200);
}

TEST(Fit, BadArgumentsAreErrors) {
  const Picture picture = counted(3, 4);
  const auto refusal = [&](int64_t height, int64_t width, double fraction) {
    return message([&] { fit_for_evaluation(picture, height, width, fraction, Resampling::kBicubic); });
  };
  EXPECT_EQ(refusal(0, 2, 1), "size: expected at least 1 x 1, got 0 x 2");
  for (const double fraction : {0.0, -1.0, 1.01, std::nan("")}) {
    EXPECT_EQ(refusal(2, 2, fraction), "crop_fraction: expected 0.01 to 1, got " + std::to_string(fraction));
  }
}

}  // namespace
}  // namespace aft

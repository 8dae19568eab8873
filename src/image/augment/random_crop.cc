#include "image/augment/random_crop.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "aft/error.h"
#include "image/crop.h"
#include "numbers/random_numbers.h"

namespace aft {
namespace {

constexpr int kTries = 10;
constexpr double kWidest = 4.0 / 3;  // width over height; the narrowest is the inverse

/// To the nearest whole number, but never 0.
int64_t side(double x) { return std::max<int64_t>(std::llrint(x), 1); }

/// In the middle, half a pixel to the upper left of it where there is none.
Window middle(const ImageShape& shape, int64_t height, int64_t width) {
  return {(shape.height - height) / 2, (shape.width - width) / 2, height, width};
}

}  // namespace

void require_crop_scale(const CropScale& scale) {
  if (scale.least > 0 && scale.least <= scale.most && scale.most <= 1) return;
  throw Error("data.crop_scale: expected two parts of the area, the least and the most, each above 0 and at most 1, " +
              ("got [" + std::to_string(scale.least)) + ", " + std::to_string(scale.most) + "]");
}

Window random_window(const ImageShape& shape, const CropScale& scale, uint64_t draw) {
  RandomNumbers numbers(draw);
  const auto area = static_cast<double>(shape.height * shape.width);
  for (int i = 0; i < kTries; ++i) {
    const double part = area * numbers.uniform(scale.least, scale.most);
    const double ratio = std::exp(numbers.uniform(-std::log(kWidest), std::log(kWidest)));
    const int64_t width = side(std::sqrt(part * ratio));
    const int64_t height = side(std::sqrt(part / ratio));
    if (height > shape.height || width > shape.width) continue;
    const int64_t top = numbers.below(shape.height - height + 1);
    return {top, numbers.below(shape.width - width + 1), height, width};
  }
  const auto height = static_cast<double>(shape.height);
  const auto width = static_cast<double>(shape.width);
  if (width * kWidest < height) return middle(shape, side(width * kWidest), shape.width);
  if (width > height * kWidest) return middle(shape, shape.height, side(height * kWidest));
  return {0, 0, shape.height, shape.width};
}

Picture random_resized_crop(const Picture& picture, int64_t height, int64_t width, const CropScale& scale,
                            Resampling resampling, uint64_t draw) {
  require_picture(picture);
  require_crop_scale(scale);
  return resize(crop(picture, random_window(picture.shape, scale, draw)), height, width, resampling);
}

}  // namespace aft

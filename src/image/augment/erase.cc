#include "image/augment/erase.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "aft/error.h"
#include "image/augment/color.h"
#include "numbers/random_numbers.h"

namespace aft {
namespace {

constexpr int kTries = 10;
constexpr double kLeast = 0.02;  // of the area
constexpr double kMost = 1.0 / 3;
constexpr double kFlattest = 0.3;  // height over width; the steepest is the inverse

double grey(const std::array<double, 3>& color) { return 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]; }

uint8_t noise(double mean, double deviation, RandomNumbers& numbers) {
  return static_cast<uint8_t>(std::lrint(std::clamp(mean + deviation * numbers.normal(), 0.0, 255.0)));
}

void fill(Picture& picture, int64_t top, int64_t left, int64_t height, int64_t width, RandomNumbers& numbers) {
  const int64_t channels = picture.shape.channels;
  const bool color = channels == 3;
  const std::array<double, 3> mean = color ? kPhotoMean : std::array<double, 3>{grey(kPhotoMean)};
  const std::array<double, 3> deviation = color ? kPhotoDeviation : std::array<double, 3>{grey(kPhotoDeviation)};
  for (int64_t y = top; y < top + height; ++y) {
    uint8_t* to = picture.values.data() + (y * picture.shape.width + left) * channels;
    for (int64_t x = 0; x < width; ++x, to += channels) {
      for (int64_t c = 0; c < channels; ++c) {
        to[c] = noise(mean[static_cast<size_t>(c)], deviation[static_cast<size_t>(c)], numbers);
      }
    }
  }
}

}  // namespace

void require_probability(double erase) {
  if (erase >= 0 && erase <= 1) return;
  throw Error("data.erase: expected a probability, 0 to 1, got " + std::to_string(erase));
}

void erase(Picture& picture, double probability, uint64_t draw) {
  require_picture(picture);
  require_probability(probability);
  RandomNumbers numbers(draw);
  if (!numbers.chance(probability)) return;
  const ImageShape& shape = picture.shape;
  const auto area = static_cast<double>(shape.height * shape.width);
  for (int i = 0; i < kTries; ++i) {
    const double part = area * numbers.uniform(kLeast, kMost);
    const double ratio = std::exp(numbers.uniform(std::log(kFlattest), -std::log(kFlattest)));
    const int64_t height = std::lrint(std::sqrt(part * ratio));
    const int64_t width = std::lrint(std::sqrt(part / ratio));
    if (height >= shape.height || width >= shape.width) continue;
    const int64_t top = numbers.below(shape.height - height + 1);
    const int64_t left = numbers.below(shape.width - width + 1);
    fill(picture, top, left, height, width, numbers);
    return;
  }
}

}  // namespace aft

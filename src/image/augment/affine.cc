#include "image/augment/affine.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numbers>
#include <string>

#include "aft/error.h"

namespace aft {
namespace {

/// Of two neighbours, 0 <= t <= 1 from the first to the second.
struct Linear {
  static constexpr int kTaps = 2;
  static double between(const std::array<double, 2>& v, double t) { return v[0] + (v[1] - v[0]) * t; }
};

/// Of four neighbours, 0 <= t <= 1 from the second to the third: a polynomial in t that is exact where all are equal,
/// which matters since results are rounded down.
struct Cubic {
  static constexpr int kTaps = 4;
  static double between(const std::array<double, 4>& v, double t) {
    const double slope = v[2] - v[0];
    const double square = 2 * (v[0] - v[1]) + v[2] - v[3];
    const double cube = v[1] - v[0] - v[2] + v[3];
    return v[1] + t * (slope + t * (square + t * cube));
  }
};

/// Along one axis: the neighbours of a position and how far it is from the one to the next.
template <typename Curve>
struct Neighbours {
  std::array<int64_t, Curve::kTaps> at;
  double t;

  Neighbours(double position, int64_t size) {
    const double first = std::floor(position - 0.5);
    t = position - 0.5 - first;
    for (int64_t k = 0; k < Curve::kTaps; ++k) {
      const int64_t place = static_cast<int64_t>(first) - (Curve::kTaps / 2 - 1) + k;
      at[static_cast<size_t>(k)] = std::clamp<int64_t>(place, 0, size - 1);
    }
  }
};

template <typename Curve>
uint8_t sample(const uint8_t* channel, const ImageShape& shape, const Neighbours<Curve>& down,
               const Neighbours<Curve>& across) {
  std::array<double, Curve::kTaps> rows;
  for (size_t i = 0; i < rows.size(); ++i) {
    const uint8_t* row = channel + down.at[i] * shape.width * shape.channels;
    std::array<double, Curve::kTaps> values;
    for (size_t j = 0; j < values.size(); ++j) values[j] = row[across.at[j] * shape.channels];
    rows[i] = Curve::between(values, across.t);
  }
  return static_cast<uint8_t>(std::clamp(Curve::between(rows, down.t), 0.0, 255.0));
}

template <typename Curve>
void transform_by(Picture& picture, const std::array<double, 6>& m, const Color& fill) {
  const ImageShape& shape = picture.shape;
  const std::vector<uint8_t> old = picture.values;
  uint8_t* to = picture.values.data();
  for (int64_t y = 0; y < shape.height; ++y) {
    for (int64_t x = 0; x < shape.width; ++x, to += shape.channels) {
      const double centre_x = static_cast<double>(x) + 0.5;
      const double centre_y = static_cast<double>(y) + 0.5;
      const double from_x = m[0] * centre_x + m[1] * centre_y + m[2];
      const double from_y = m[3] * centre_x + m[4] * centre_y + m[5];
      if (from_x >= 0 && from_x < static_cast<double>(shape.width) && from_y >= 0 &&
          from_y < static_cast<double>(shape.height)) {
        const Neighbours<Curve> down(from_y, shape.height);
        const Neighbours<Curve> across(from_x, shape.width);
        for (int64_t c = 0; c < shape.channels; ++c) to[c] = sample<Curve>(old.data() + c, shape, down, across);
      } else if (shape.channels == 1) {
        *to = grey_of(fill[0], fill[1], fill[2]);
      } else {
        std::copy(fill.begin(), fill.end(), to);
      }
    }
  }
}

}  // namespace

void transform(Picture& picture, const std::array<double, 6>& m, Resampling resampling, const Color& fill) {
  require_picture(picture);
  for (const double number : m) {
    if (!std::isfinite(number)) throw Error("transform: expected finite numbers, got " + std::to_string(number));
  }
  switch (resampling) {
    case Resampling::kBilinear:
      return transform_by<Linear>(picture, m, fill);
    case Resampling::kBicubic:
      return transform_by<Cubic>(picture, m, fill);
    case Resampling::kNearest:
      break;
  }
  throw Error("resampling: expected kBilinear or kBicubic, got kNearest");
}

void rotate(Picture& picture, double degrees, Resampling resampling, const Color& fill) {
  // Rounded, as Pillow's: a quarter turn is exact.
  const auto rounded = [](double x) { return std::round(x * 1e15) / 1e15; };
  const double angle = degrees * std::numbers::pi / 180;
  const double cosine = rounded(std::cos(angle));
  const double sine = rounded(std::sin(angle));
  const double x = static_cast<double>(picture.shape.width) / 2;
  const double y = static_cast<double>(picture.shape.height) / 2;
  transform(picture, {cosine, -sine, (sine * y - cosine * x) + x, sine, cosine, (-sine * x - cosine * y) + y},
            resampling, fill);
}

void shear_x(Picture& picture, double factor, Resampling resampling, const Color& fill) {
  transform(picture, {1, factor, 0, 0, 1, 0}, resampling, fill);
}

void shear_y(Picture& picture, double factor, Resampling resampling, const Color& fill) {
  transform(picture, {1, 0, 0, factor, 1, 0}, resampling, fill);
}

void translate_x(Picture& picture, double part, Resampling resampling, const Color& fill) {
  transform(picture, {1, 0, part * static_cast<double>(picture.shape.width), 0, 1, 0}, resampling, fill);
}

void translate_y(Picture& picture, double part, Resampling resampling, const Color& fill) {
  transform(picture, {1, 0, 0, 0, 1, part * static_cast<double>(picture.shape.height)}, resampling, fill);
}

}  // namespace aft

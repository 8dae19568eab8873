#include "image/crop.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "aft/error.h"

namespace aft {
namespace {

/// To the nearest whole number, halves to the even one.
int64_t rounded(double x) { return std::llrint(x); }

}  // namespace

Picture crop(const Picture& picture, const Window& part) {
  require_picture(picture);
  const auto& [top, left, height, width] = part;
  const ImageShape& shape = picture.shape;
  const auto inside = [](int64_t begin, int64_t count, int64_t size) {
    return begin >= 0 && count >= 1 && count <= size && begin <= size - count;
  };
  if (!inside(top, height, shape.height) || !inside(left, width, shape.width)) {
    throw Error("crop: expected a part of " + text_of(shape) + ", got " + std::to_string(height) + " x " +
                std::to_string(width) + " from row " + std::to_string(top) + ", column " + std::to_string(left) +
                " on");
  }
  Picture out{{height, width, shape.channels}, {}};
  out.values.reserve(static_cast<size_t>(out.shape.bytes()));
  for (int64_t y = top; y < top + height; ++y) {
    const auto row = picture.values.begin() + (y * shape.width + left) * shape.channels;
    out.values.insert(out.values.end(), row, row + width * shape.channels);
  }
  return out;
}

Window centre_of(int64_t height, int64_t width, int64_t part_height, int64_t part_width) {
  return {rounded(static_cast<double>(height - part_height) / 2), rounded(static_cast<double>(width - part_width) / 2),
          part_height, part_width};
}

Picture fit_for_evaluation(const Picture& picture, int64_t height, int64_t width, double crop_fraction,
                           Resampling resampling) {
  require_picture(picture);
  if (height < 1 || width < 1) {
    throw Error("size: expected at least 1 x 1, got " + std::to_string(height) + " x " + std::to_string(width));
  }
  if (!(crop_fraction >= 0.01 && crop_fraction <= 1)) {
    throw Error("crop_fraction: expected 0.01 to 1, got " + std::to_string(crop_fraction));
  }
  const int64_t from_height = picture.shape.height;
  const int64_t from_width = picture.shape.width;
  int64_t to_height = static_cast<int64_t>(static_cast<double>(height) / crop_fraction);
  int64_t to_width = static_cast<int64_t>(static_cast<double>(width) / crop_fraction);
  if (to_height == to_width) {
    const int64_t shorter = std::min(from_height, from_width);
    to_height = to_height * from_height / shorter;
    to_width = to_width * from_width / shorter;
  } else {
    const double ratio = std::min(static_cast<double>(from_height) / static_cast<double>(to_height),
                                  static_cast<double>(from_width) / static_cast<double>(to_width));
    to_height = rounded(static_cast<double>(from_height) / ratio);
    to_width = rounded(static_cast<double>(from_width) / ratio);
  }
  const Window centre = centre_of(to_height, to_width, height, width);
  if (to_height == from_height && to_width == from_width) return crop(picture, centre);
  // Not crop(resize()): what is long and narrow would be huge in between.
  return resize_within(picture, to_height, to_width, resampling, centre);
}

}  // namespace aft

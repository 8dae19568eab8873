#include "image/picture.h"

#include <algorithm>
#include <string>
#include <utility>

#include "aft/error.h"

namespace aft {
namespace {

constexpr uint8_t kWhite = 255;
constexpr int64_t kMostPixels = int64_t{1} << 24;
constexpr int64_t kLine = 1;  // pixels between two pictures

}  // namespace

std::string text_of(const ImageShape& shape) {
  return std::to_string(shape.height) + " x " + std::to_string(shape.width) + " pixels of " +
         std::to_string(shape.channels) + (shape.channels == 1 ? " value" : " values");
}

void require_picture(const Picture& picture) {
  const ImageShape& shape = picture.shape;
  const bool good = shape.height >= 1 && shape.width >= 1 && (shape.channels == 1 || shape.channels == 3);
  if (good && std::ssize(picture.values) == shape.bytes()) return;
  throw Error("picture: expected at least one pixel, of 1 or 3 values, got " + text_of(shape) + ", in " +
              std::to_string(picture.values.size()) + " values");
}

void require_few_pixels(const std::string& name, int64_t height, int64_t width) {
  if (height <= kMostPixels / std::max<int64_t>(width, 1)) return;
  throw Error(name + ": expected at most " + std::to_string(kMostPixels) + " pixels, got " + std::to_string(height) +
              " x " + std::to_string(width) + "; make it smaller");
}

Picture with_channels(Picture picture, int64_t channels) {
  const int64_t held = picture.shape.channels;
  for (const int64_t number : {held, channels}) {
    if (number != 1 && number != 3) throw Error("channels: expected 1 or 3, got " + std::to_string(number));
  }
  if (held == channels) return picture;
  Picture out = plain_picture({picture.shape.height, picture.shape.width, channels}, 0);
  const uint8_t* from = picture.values.data();
  if (channels == 3) {
    for (size_t i = 0; i < out.values.size(); ++i) out.values[i] = from[i / 3];
  } else {
    for (size_t i = 0; i < out.values.size(); ++i, from += 3) out.values[i] = grey_of(from[0], from[1], from[2]);
  }
  return out;
}

Picture plain_picture(const ImageShape& shape, uint8_t value) {
  return {shape, std::vector<uint8_t>(static_cast<size_t>(shape.bytes()), value)};
}

Picture grid(std::span<const Picture> pictures, int64_t columns) {
  if (pictures.empty()) throw Error("pictures: expected at least one for a grid, got none");
  if (columns < 1) throw Error("columns: expected at least 1, got " + std::to_string(columns));
  const ImageShape shape = pictures.front().shape;
  for (const Picture& picture : pictures) {
    if (picture.shape != shape || std::ssize(picture.values) != shape.bytes()) {
      throw Error("pictures: expected all to be " + text_of(shape) + ", as the first, got " + text_of(picture.shape) +
                  " in " + std::to_string(picture.values.size()) + " values");
    }
  }
  const int64_t count = std::ssize(pictures);
  const int64_t across = std::min(columns, count);
  const int64_t down = (count + columns - 1) / columns;
  Picture all = plain_picture(
      {down * (shape.height + kLine) + kLine, across * (shape.width + kLine) + kLine, shape.channels}, kWhite);
  const int64_t row_values = shape.width * shape.channels;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t top = kLine + i / columns * (shape.height + kLine);
    const int64_t left = kLine + i % columns * (shape.width + kLine);
    for (int64_t y = 0; y < shape.height; ++y) {
      std::copy_n(pictures[static_cast<size_t>(i)].values.begin() + y * row_values, row_values,
                  all.values.begin() + ((top + y) * all.shape.width + left) * shape.channels);
    }
  }
  return all;
}

}  // namespace aft

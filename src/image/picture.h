#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace aft {

struct ImageShape {
  int64_t height = 0;
  int64_t width = 0;
  int64_t channels = 0;

  [[nodiscard]] int64_t bytes() const { return height * width * channels; }
  bool operator==(const ImageShape&) const = default;
};

/// "32 x 32 pixels of 3 values"
std::string text_of(const ImageShape& shape);

/// Throws aft::Error, naming the file `name`, if an image of it has more than 2^24 pixels: checked before memory is
/// taken for them.
void require_few_pixels(const std::string& name, int64_t height, int64_t width);

/// An image of 8 bits a value. Channels: 1, grey, or 3, red, green and blue.
struct Picture {
  ImageShape shape;
  std::vector<uint8_t> values;  // [height, width, channels]: the channels of a pixel beside each other
};

/// Throws aft::Error unless it has 1 or 3 channels, a pixel at least, and as many values as its shape says.
void require_picture(const Picture& picture);

/// The grey of a colour: 0.299 red + 0.587 green + 0.114 blue (ITU-R BT.601) to the nearest, in 2^16ths, which gives
/// the values of Pillow's mode L.
constexpr uint8_t grey_of(int red, int green, int blue) {
  return static_cast<uint8_t>((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16);
}

/// The picture with 1 or 3 channels: grey is the same in all three, and of three the grey_of() is taken. Throws
/// aft::Error for another number, wanted or there.
Picture with_channels(Picture picture, int64_t channels);

/// All pixels of one value, the same in all channels.
Picture plain_picture(const ImageShape& shape, uint8_t value);

/// Pictures of one shape beside each other, `columns` in a row and the last row perhaps shorter, with white lines of
/// one pixel between and around them. Where the last row has none it is white. Throws aft::Error if there is no
/// picture, one differs in its shape or has the wrong number of values, or `columns` is not positive.
Picture grid(std::span<const Picture> pictures, int64_t columns);

}  // namespace aft

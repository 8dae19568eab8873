#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "data/images.h"

namespace aft {

/// An image of 8 bits a value. Channels: 1, grey, or 3, red, green and blue.
struct Picture {
  ImageShape shape;
  std::vector<uint8_t> values;  // [height, width, channels]: the channels of a pixel beside each other
};

/// All pixels of one value, the same in all channels.
Picture plain_picture(const ImageShape& shape, uint8_t value);

/// Pictures of one shape beside each other, `columns` in a row and the last row perhaps shorter, with white lines of
/// one pixel between and around them. Where the last row has none it is white. Throws aft::Error if there is no
/// picture, one differs in its shape or has the wrong number of values, or `columns` is not positive.
Picture grid(std::span<const Picture> pictures, int64_t columns);

}  // namespace aft

#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "image/picture.h"

namespace aft {

/// The picture as a PNG file: 8 bits a value, without palette, interlacing, time or gamma; the same bytes from the same
/// picture and libpng. Throws aft::Error unless it has 1 or 3 channels, at least one pixel and as many values as pixels
/// and channels.
std::vector<uint8_t> encode_png(const Picture& picture);

/// Writes that file, whole or not at all.
void write_png(const std::filesystem::path& path, const Picture& picture);

/// Reads a PNG file, with 1 channel if it is grey and 3 otherwise: values of fewer than 8 bits are spread over 0 to
/// 255, of those of 16 bits the nearest of 8 is taken, palettes are looked up, interlaced files put in order. What the
/// file says of gamma and profiles is ignored: the values are those that stand in it. Throws aft::Error, naming the
/// file, if it is missing or no PNG file, is truncated or corrupt, has transparency, or has more than 2^24 pixels;
/// memory is taken only after that is checked.
Picture read_png(const std::filesystem::path& path);

}  // namespace aft

#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "image/picture.h"

namespace aft {

/// The picture as a PNG file: 8 bits a value, without palette, interlacing, time or gamma; the same bytes from the same
/// picture and libpng. Throws aft::Error unless it has 1 or 3 channels, at least one pixel and as many values as pixels
/// and channels.
std::vector<uint8_t> encode_png(const Picture& picture);

/// Writes that file, whole or not at all.
void write_png(const std::filesystem::path& path, const Picture& picture);

/// The picture that `bytes`, those of the PNG file `name`, hold, with 1 channel if it is grey and 3 otherwise: values
/// of fewer than 8 bits are spread over 0 to 255, of those of 16 bits the nearest of 8 is taken, palettes are looked
/// up, interlaced files put in order. Transparency is dropped and leaves the colours as they stand, and what the file
/// says of gamma and profiles is ignored. Throws aft::Error, naming the file, if it is no PNG file, is truncated or
/// corrupt, or has more than 2^24 pixels; memory is taken only after that is checked.
Picture decode_png(std::span<const uint8_t> bytes, const std::string& name);

/// Whether bytes begin as those of a PNG file.
bool begins_like_png(std::span<const uint8_t> bytes);

}  // namespace aft

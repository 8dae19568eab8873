#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "image/picture.h"

namespace aft {

/// The picture that `bytes`, those of the JPEG file `name`, hold, with 1 channel if it is grey and 3 otherwise:
/// baseline and progressive files of 8 bits a value, by libjpeg-turbo's defaults (accurate integer transform, smooth
/// upsampling of colours), as Pillow decodes them. CMYK and YCCK are taken as Adobe's programs write them, inverted,
/// and become red, green and blue without a profile, as by Pillow's convert("RGB"). What the file says of orientation
/// and profiles is ignored. Throws aft::Error, naming the file, if it is no JPEG file, is truncated or corrupt, if only
/// in a way that a viewer would overlook, is of another kind, or has more than 2^24 pixels or 100 scans; memory is
/// taken only after the pixels are counted.
Picture decode_jpeg(std::span<const uint8_t> bytes, const std::string& name);

/// Whether bytes begin as those of a JPEG file.
bool begins_like_jpeg(std::span<const uint8_t> bytes);

}  // namespace aft

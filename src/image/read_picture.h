#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "image/picture.h"

// The one way in for files of pictures: JPEG (image/jpeg.h) and PNG (image/png.h), told apart by their first bytes.

namespace aft {

/// Whether the file is named .jpg, .jpeg or .png, in either case.
bool is_named_as_picture(const std::filesystem::path& path);

/// The picture that `bytes`, those of the file `name`, hold. Throws aft::Error, naming the file, if they begin as
/// neither format does, saying how they begin, or as the decoder of the format.
Picture decode_picture(std::span<const uint8_t> bytes, const std::string& name);

/// The same of a file, of at most 256 MiB. Throws aft::Error, naming it, if it cannot be read too.
Picture read_picture(const std::filesystem::path& path);

}  // namespace aft

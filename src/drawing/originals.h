#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "data/images.h"
#include "image/picture.h"

namespace aft {

/// The first `count` images of the set: of test, or where it has no test of valid, or else of train; fewer if there are
/// no more.
std::vector<Picture> first_pictures(const ImageSet& images, int64_t count);

/// `path`: a JPEG or PNG file, which is one image, or the folder of a data set (load_any_images()), of which the first
/// are taken. Throws aft::Error, naming it, if it is neither, cannot be read, or its images are not of `shape`.
std::vector<Picture> read_originals(const std::filesystem::path& path, const ImageShape& shape, int64_t count);

}  // namespace aft

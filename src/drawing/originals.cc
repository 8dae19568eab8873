#include "drawing/originals.h"

#include <algorithm>
#include <optional>
#include <system_error>

#include "aft/error.h"
#include "image/read_picture.h"

namespace aft {

std::vector<Picture> first_pictures(const ImageSet& images, int64_t count) {
  Split split = Split::kTest;
  if (images.size(split) == 0) split = Split::kValid;
  if (images.size(split) == 0) split = Split::kTrain;
  std::vector<Picture> pictures;
  for (int64_t i = 0; i < std::min(count, images.size(split)); ++i) {
    pictures.push_back(plain_picture(images.shape(), 0));
    images.read(split, i, std::nullopt, pictures.back().values);
  }
  return pictures;
}

std::vector<Picture> read_originals(const std::filesystem::path& path, const ImageShape& shape, int64_t count) {
  std::error_code error;
  std::vector<Picture> pictures;
  if (std::filesystem::is_directory(path, error)) {
    pictures = first_pictures(*load_any_images(path, {shape}), count);
  } else {
    pictures = {read_picture(path)};
  }
  if (pictures.front().shape != shape) {
    throw Error(path.string() + ": expected images of " + text_of(shape) + ", as the model draws, got " +
                text_of(pictures.front().shape) + "; give images of its size and colours");
  }
  return pictures;
}

}  // namespace aft

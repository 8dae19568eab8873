#include "image/originals.h"

#include <algorithm>
#include <optional>
#include <system_error>

#include "image/png.h"

namespace aft {

std::vector<Picture> first_pictures(const Images& images, int64_t count) {
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

std::vector<Picture> read_originals(const std::filesystem::path& path, int64_t count) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return first_pictures(*load_image_folder(path), count);
  return {read_png(path)};
}

}  // namespace aft

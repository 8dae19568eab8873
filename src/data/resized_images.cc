#include "data/resized_images.h"

#include <algorithm>
#include <utility>

#include "aft/error.h"
#include "image/crop.h"

namespace aft {

ResizedImages::ResizedImages(std::unique_ptr<const ImageSet> images, const ImageView& view)
    : ImageSet(view.shape), images_(std::move(images)), view_(view) {
  if (images_->shape().channels != view.shape.channels) {
    throw Error("data.path: expected images of " + std::to_string(view.shape.channels) + " values a pixel, got " +
                text_of(images_->shape()));
  }
  const auto names = images_->class_names();
  set_classes(images_->classes(), {names.begin(), names.end()});
}

int64_t ResizedImages::bytes(Split split, int64_t index) const {
  require_index(split, index);
  return shape().bytes();
}

Label ResizedImages::read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const {
  require_room(split, index, out.size());
  Picture picture = {images_->shape(), std::vector<uint8_t>(static_cast<size_t>(images_->shape().bytes()))};
  const Label label = images_->read(split, index, draw, picture.values);
  picture = fit_for_evaluation(picture, shape().height, shape().width, view_.crop, view_.resampling);
  std::copy(picture.values.begin(), picture.values.end(), out.begin());
  return label;
}

}  // namespace aft

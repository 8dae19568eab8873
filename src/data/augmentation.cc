#include "data/augmentation.h"

#include <algorithm>
#include <string>

#include "aft/error.h"
#include "image/augment/erase.h"
#include "numbers/mix.h"

namespace aft {
namespace {

void flip(Picture& picture) {
  const int64_t channels = picture.shape.channels;
  const int64_t row = picture.shape.width * channels;
  for (auto begin = picture.values.begin(); begin != picture.values.end(); begin += row) {
    for (int64_t left = 0, right = row - channels; left < right; left += channels, right -= channels) {
      std::swap_ranges(begin + left, begin + left + channels, begin + right);
    }
  }
}

void shift_values(Picture& picture, int64_t jitter, uint64_t number) {
  // The remainder favours some values by less than one in 10^16.
  const uint64_t drawn = number % static_cast<uint64_t>(2 * jitter + 1);
  const int shift = static_cast<int>(drawn) - static_cast<int>(jitter);
  for (uint8_t& value : picture.values) value = static_cast<uint8_t>(std::clamp(value + shift, 0, 255));
}

}  // namespace

Augmentation augmentation_of(const DataConfig& config) {
  Augmentation augmentation{config.flip, config.jitter};
  if (!config.crop_scale.empty()) {
    if (config.crop_scale.size() != 2) {
      throw Error("data.crop_scale: expected two parts of the area, the least and the most, or none, got " +
                  std::to_string(config.crop_scale.size()));
    }
    augmentation.crop = {config.crop_scale[0], config.crop_scale[1]};
  }
  augmentation.rand_augment = {config.rand_augment, config.magnitude, config.magnitude_deviation};
  augmentation.erase = config.erase;
  return augmentation;
}

void require_augmentation(const Augmentation& augmentation) {
  if (augmentation.jitter < 0 || augmentation.jitter > 255) {
    throw Error("data.jitter: expected 0 to 255, got " + std::to_string(augmentation.jitter));
  }
  if (augmentation.crop) require_crop_scale(*augmentation.crop);
  require_rand_augment(augmentation.rand_augment);
  require_probability(augmentation.erase);
}

Picture augmented(Picture picture, const ImageView& view, const Augmentation& augmentation, uint64_t draw) {
  // Each has a number of its own, used or not: what one draws does not depend on whether the others are on.
  const auto number = [&](uint64_t n) { return mix(draw + n * kMixStep); };
  if (augmentation.crop) {
    picture = random_resized_crop(picture, view.shape.height, view.shape.width, *augmentation.crop, view.resampling,
                                  number(2));
  }
  if (augmentation.flip && (number(0) & 1) != 0) flip(picture);
  if (augmentation.jitter > 0) shift_values(picture, augmentation.jitter, number(1));
  if (augmentation.rand_augment.operations > 0) rand_augment(picture, augmentation.rand_augment, number(3));
  if (augmentation.erase > 0) erase(picture, augmentation.erase, number(4));
  return picture;
}

}  // namespace aft

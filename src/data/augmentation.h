#pragma once

#include <cstdint>
#include <optional>

#include "data/data.h"
#include "image/augment/rand_augment.h"
#include "image/augment/random_crop.h"
#include "image/picture.h"
#include "image/resize.h"

namespace aft {

/// How a model sees pictures, in training and evaluation alike.
struct ImageView {
  ImageShape shape;
  Resampling resampling = Resampling::kBicubic;  // by which they are brought to the shape
  double crop = 1;                               // fit_for_evaluation()'s crop_fraction
};

/// What is done to an image that is read with a draw, in this order. `flip` and `jitter` are those of "An Attention
/// Free Transformer" for CIFAR-10, which has both, with a jitter of 10; the others, with `flip`, those of DeiT.
struct Augmentation {
  bool flip = false;  // left to right, with probability one half; after the crop
  /// One whole number, drawn uniformly from [-jitter, jitter], is added to every value of the image, and the sums are
  /// clipped to [0, 255]. In [0, 255]; 0: none. One number for the whole image is how we read the paper, which leaves
  /// open whether each value has one of its own.
  int64_t jitter = 0;
  std::optional<CropScale> crop = {};  // random_resized_crop() of the whole picture, ahead of all others
  RandAugment rand_augment{0};
  double erase = 0;  // the probability of erase()
};

/// That of the configuration.
Augmentation augmentation_of(const DataConfig& config);

/// Throws aft::Error, naming the key, for what is out of its range.
void require_augmentation(const Augmentation& augmentation);

/// The picture as an example of training. It is cropped and resized to the view's shape where `crop` says so; otherwise
/// it has that shape. A pure function of its arguments. Throws aft::Error for a picture of other than 1 or 3 channels,
/// where more than `flip` and `jitter` is on.
Picture augmented(Picture picture, const ImageView& view, const Augmentation& augmentation, uint64_t draw);

}  // namespace aft

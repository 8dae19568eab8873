#pragma once

#include <cstdint>
#include <span>

#include "image/augment/color.h"
#include "image/picture.h"

namespace aft {

/// RandAugment (Cubuk et al. 2019) as timm's "rand-m9-n2-mstd0.5-inc1", with which DeiT is trained.
struct RandAugment {
  int64_t operations = 2;  // drawn for a picture, with replacement; each is carried out with probability one half
  double magnitude = 9;    // 0 to 10. Each operation has its own, N(magnitude, deviation) clipped to [0, 10]
  double deviation = 0.5;
  Color fill = kPhotoColor;  // of what comes from outside the picture
};

/// Throws aft::Error, naming the key, unless operations are 0 to 100, magnitude 0 to 10 and deviation 0 to 100.
void require_rand_augment(const RandAugment& options);

/// An operation of RandAugment: `apply` at a magnitude of 0 to 10, which for some means a step in either direction.
struct AugmentOperation {
  const char* name;
  void (*apply)(Picture& picture, double magnitude, bool negative, const Color& fill);
};

/// timm's list of those whose effect grows with the magnitude, in its order and by its names.
std::span<const AugmentOperation> augment_operations();

/// Pictures are moved by bicubic interpolation: DeiT's recipe sets it, and where a recipe sets none timm draws from
/// bilinear and bicubic. A pure function of its arguments. Throws aft::Error for a picture that is not one, and as
/// require_rand_augment().
void rand_augment(Picture& picture, const RandAugment& options, uint64_t draw);

}  // namespace aft

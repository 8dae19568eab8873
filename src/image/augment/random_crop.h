#pragma once

#include <cstdint>

#include "image/picture.h"
#include "image/resize.h"

namespace aft {

/// How large a part of the picture's area a random window takes.
struct CropScale {
  double least = 0.08;
  double most = 1;
};

/// Throws aft::Error, naming the key, unless 0 < least <= most <= 1.
void require_crop_scale(const CropScale& scale);

/// The window of torchvision's RandomResizedCrop: its part of the area uniform in the scale, the logarithm of its width
/// over its height uniform in [log 3/4, log 4/3], its place uniform among those inside. The first of ten tries that
/// fits in the picture; if none does, the largest window in the middle whose proportions are in that range. A pure
/// function of its arguments.
Window random_window(const ImageShape& shape, const CropScale& scale, uint64_t draw);

/// The random_window() of the picture, resized; the filter sees nothing outside the window. Throws aft::Error as
/// resize() and require_crop_scale().
Picture random_resized_crop(const Picture& picture, int64_t height, int64_t width, const CropScale& scale,
                            Resampling resampling, uint64_t draw);

}  // namespace aft

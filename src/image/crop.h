#pragma once

#include <cstdint>

#include "image/picture.h"
#include "image/resize.h"

namespace aft {

/// The part of the picture. Throws aft::Error unless it has a pixel and lies inside.
Picture crop(const Picture& picture, const Window& part);

/// The middle of what is `height` x `width`; where there is no very middle, half a pixel beside it, to the even offset
/// (as torchvision's center_crop()).
Window centre_of(int64_t height, int64_t width, int64_t part_height, int64_t part_width);

/// How timm shows a picture for evaluation: resized, its proportions kept, until it just covers
/// floor(height / crop_fraction) x floor(width / crop_fraction), and of that the middle height x width. For a square
/// the longer side of what is resized is rounded down, otherwise to the nearest, as there. Throws aft::Error for a
/// picture that is not one, a size below 1, or a crop_fraction outside [0.01, 1].
Picture fit_for_evaluation(const Picture& picture, int64_t height, int64_t width, double crop_fraction,
                           Resampling resampling);

}  // namespace aft

#pragma once

#include <array>

#include "image/augment/color.h"
#include "image/picture.h"
#include "image/resize.h"

// Operations that move the pixels: those of Pillow's Image.transform(AFFINE) and Image.rotate(), value by value. What
// comes from outside the picture has the colour `fill`, in a grey picture its grey. Each throws aft::Error for a
// picture that is not one, a resampling other than kBilinear and kBicubic, or a number that is not finite.

namespace aft {

/// Pixel (x, y) becomes what was at (m[0] x + m[1] y + m[2], m[3] x + m[4] y + m[5]), the centre of the upper left
/// pixel being (0.5, 0.5), interpolated between the 2 x 2 (bilinear) or 4 x 4 (cubic convolution with a = -1) pixels
/// around, of which those outside are as the nearest inside.
void transform(Picture& picture, const std::array<double, 6>& m, Resampling resampling, const Color& fill);

/// Turns the picture about its middle, counter-clockwise.
void rotate(Picture& picture, double degrees, Resampling resampling, const Color& fill);
/// Row y moves `factor` * y pixels to the left, column x the same upwards; y and x are those of the pixels' centres.
void shear_x(Picture& picture, double factor, Resampling resampling, const Color& fill);
void shear_y(Picture& picture, double factor, Resampling resampling, const Color& fill);
/// Moves the picture to the left, or upwards, by a part of its width, or height.
void translate_x(Picture& picture, double part, Resampling resampling, const Color& fill);
void translate_y(Picture& picture, double part, Resampling resampling, const Color& fill);

}  // namespace aft

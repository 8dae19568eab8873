#pragma once

#include <cstdint>

#include "image/picture.h"

// Operations that give every value another, channel by channel: those of Pillow's ImageOps and ImageEnhance, value by
// value. Each throws aft::Error for a picture that is not one.

namespace aft {

/// The lowest value of a channel becomes 0, its highest 255, and the others lie in between.
void auto_contrast(Picture& picture);
/// Spreads the values of a channel such that about as many pixels have each.
void equalize(Picture& picture);
void invert(Picture& picture);
/// Keeps the `bits` upper bits of a value; 0 to 8.
void posterize(Picture& picture, int64_t bits);
/// Inverts the values that are at least `threshold`.
void solarize(Picture& picture, int64_t threshold);
/// Adds `amount` to the values below 128, clipped to 255; at least 0.
void solarize_add(Picture& picture, int64_t amount);

// The picture and its like without the quality, mixed in the ratio factor : 1 - factor, clipped: 0 is without, 1 the
// picture as it is, above 1 more of it than there was. factor is 0 to 10^6.

/// From grey. A grey picture stays as it is.
void adjust_color(Picture& picture, double factor);
/// From the mean of the picture's grey.
void adjust_contrast(Picture& picture, double factor);
/// From black.
void adjust_brightness(Picture& picture, double factor);
/// From a blurred picture: of the 3 x 3 pixels around, 5/13 the middle and 1/13 each of the others. The pixels of the
/// border stay as they are.
void adjust_sharpness(Picture& picture, double factor);

}  // namespace aft

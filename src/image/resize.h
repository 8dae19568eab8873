#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "image/picture.h"

// Pictures and tables in another size, by separable filters that widen with the reduction (antialiasing). Values are
// those of Pillow's Image.resize(), which training and evaluation of image models go by.

namespace aft {

/// kNearest: the source at the position of the result's centre. kBilinear: a triangle. kBicubic: the cubic convolution
/// of Keys (1981) with a = -1/2.
enum class Resampling { kNearest, kBilinear, kBicubic };

/// Of "nearest", "bilinear" or "bicubic". Throws aft::Error for another name.
Resampling resampling_named(std::string_view name);

/// Along one axis: result i is the sum of weights[i * taps + j] * source[first[i] + j] over j < count[i] <= taps. The
/// sources lie inside; the weights of a result sum to 1.
struct FilterWeights {
  int64_t taps = 0;
  std::vector<int64_t> first;   // [results]
  std::vector<int64_t> count;   // [results]
  std::vector<double> weights;  // [results, taps]; 0 from count on
};

/// The weights for `results` values, evenly over [begin, end) of an axis of `size` sources, source k being [k, k + 1).
/// 0 <= begin < end <= size, floats because Pillow's are. Throws aft::Error unless size is 1 to 2^24 and results are at
/// least 1.
FilterWeights filter_weights(int64_t size, float begin, float end, int64_t results, Resampling resampling);

/// A part of a picture, in pixels: pixel (y, x) is [y, y + 1) x [x, x + 1).
struct Box {
  float top = 0;
  float left = 0;
  float bottom = 0;
  float right = 0;
};

/// The picture, or the box of it, in another size: Image.resize((width, height), resampling, box) of Pillow 12, value
/// by value. (Rows first, then columns, each rounded. Pillow takes pictures over a hundred times as high as wide in the
/// other order, and from version 13 on more of them: what is rounded and clipped in between then differs.) As there,
/// the filters see what is around the box; to keep them inside, crop() first. Throws aft::Error for a picture that is
/// not one, a size that is not 1 to 2^24, or a box that is empty or not inside.
Picture resize(const Picture& picture, int64_t height, int64_t width, Resampling resampling);
Picture resize(const Picture& picture, int64_t height, int64_t width, Resampling resampling, const Box& box);

/// Pixels of a picture: `height` rows from `top`, `width` columns from `left` on.
struct Window {
  int64_t top = 0;
  int64_t left = 0;
  int64_t height = 0;
  int64_t width = 0;

  bool operator==(const Window&) const = default;
};

/// What resize() gives within the window, at the cost of that alone, so that height and width may be large. Throws
/// aft::Error as resize(), and for a window that has no pixel or is not inside.
Picture resize_within(const Picture& picture, int64_t height, int64_t width, Resampling resampling,
                      const Window& window);

/// resize() of numbers, not rounded: [height, width, channels] to [new_height, new_width, channels], for any number
/// of channels. kBilinear and kBicubic are torch's interpolate(antialias=True, align_corners=False), kNearest its
/// "nearest-exact". Throws aft::Error for a size that is not 1 to 2^24 or another number of values.
std::vector<float> resize_floats(std::span<const float> values, int64_t height, int64_t width, int64_t channels,
                                 int64_t new_height, int64_t new_width, Resampling resampling);

}  // namespace aft

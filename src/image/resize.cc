#include "image/resize.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>

#include "aft/error.h"

namespace aft {
namespace {

constexpr int64_t kMostAlong = int64_t{1} << 24;  // up to there every position is a float

/// How far the filter reaches to either side of its centre, in sources where it is not widened.
double reach_of(Resampling resampling) { return resampling == Resampling::kBicubic ? 2 : 1; }

double filter(Resampling resampling, double x) {
  x = std::abs(x);
  if (resampling == Resampling::kBilinear) return x < 1 ? 1 - x : 0;
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/// An axis of `size` sources, of which [begin, end) becomes `results` values, and of these the `count` from `first` on.
struct Axis {
  int64_t size;
  float begin;
  float end;
  int64_t results;
  int64_t first;
  int64_t count;

  [[nodiscard]] double scale() const { return static_cast<double>(end - begin) / static_cast<double>(results); }
};

FilterWeights nearest_weights(const Axis& axis) {
  const auto count = static_cast<size_t>(axis.count);
  FilterWeights out{1, {}, std::vector<int64_t>(count, 1), std::vector<double>(count, 1.0)};
  double position = axis.begin + axis.scale() / 2;
  for (int64_t i = 0; i < axis.first + axis.count; ++i) {
    if (i >= axis.first) out.first.push_back(std::min(static_cast<int64_t>(position), axis.size - 1));
    // Not begin + (i + 1/2) scale: Pillow adds up, and what is rounded decides between neighbours.
    position += axis.scale();
  }
  return out;
}

FilterWeights weights_along(const Axis& axis, Resampling resampling) {
  if (axis.size < 1 || axis.size > kMostAlong || axis.results < 1) {
    throw Error("size: expected 1 to " + std::to_string(kMostAlong) + " sources and at least one result, got " +
                std::to_string(axis.size) + " and " + std::to_string(axis.results));
  }
  if (resampling == Resampling::kNearest) return nearest_weights(axis);
  const double widening = std::max(axis.scale(), 1.0);
  const double reach = reach_of(resampling) * widening;
  FilterWeights out;
  out.taps = std::min(2 * static_cast<int64_t>(std::ceil(reach)) + 1, axis.size);
  out.weights.resize(static_cast<size_t>(axis.count * out.taps));
  for (int64_t i = 0; i < axis.count; ++i) {
    const double centre = axis.begin + (static_cast<double>(axis.first + i) + 0.5) * axis.scale();
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(centre - reach + 0.5), 0);
    const int64_t count = std::min(static_cast<int64_t>(centre + reach + 0.5), axis.size) - first;
    double* weights = out.weights.data() + i * out.taps;
    double sum = 0;
    for (int64_t j = 0; j < count; ++j) {
      weights[j] = filter(resampling, (static_cast<double>(first + j) - centre + 0.5) * (1 / widening));
      sum += weights[j];
    }
    for (int64_t j = 0; j < count; ++j) weights[j] /= sum;
    out.first.push_back(first);
    out.count.push_back(count);
  }
  return out;
}

/// 8-bit values by whole numbers: weights of 22 bits after the point, sums of 32 bits, rounded to the nearest value.
struct Fixed {
  using Value = uint8_t;
  using Sum = int32_t;
  static constexpr int kBits = 22;
  static constexpr Sum kStart = 1 << (kBits - 1);
  static Sum weight(double w) { return static_cast<Sum>(w * (1 << kBits) + (w < 0 ? -0.5 : 0.5)); }
  static Value value(Sum sum) { return static_cast<Value>(std::clamp(sum >> kBits, 0, 255)); }
};

struct Exact {
  using Value = double;
  using Sum = double;
  static constexpr Sum kStart = 0;
  static Sum weight(double w) { return w; }
  static Value value(Sum sum) { return sum; }
};

template <typename Arithmetic>
std::vector<typename Arithmetic::Sum> weights_of(const FilterWeights& axis) {
  std::vector<typename Arithmetic::Sum> weights(axis.weights.size());
  std::transform(axis.weights.begin(), axis.weights.end(), weights.begin(), Arithmetic::weight);
  return weights;
}

/// Filters every row: [rows, width, channels] to [rows, results, channels].
template <typename Arithmetic>
std::vector<typename Arithmetic::Value> filter_rows(const typename Arithmetic::Value* in, int64_t rows, int64_t width,
                                                    int64_t channels, const FilterWeights& axis) {
  const auto weights = weights_of<Arithmetic>(axis);
  const int64_t results = std::ssize(axis.first);
  std::vector<typename Arithmetic::Value> out(static_cast<size_t>(rows * results * channels));
  auto* to = out.data();
  for (int64_t y = 0; y < rows; ++y, in += width * channels) {
    for (int64_t i = 0; i < results; ++i) {
      const auto* weight = weights.data() + i * axis.taps;
      const int64_t count = axis.count[static_cast<size_t>(i)];
      for (int64_t c = 0; c < channels; ++c) {
        const auto* from = in + axis.first[static_cast<size_t>(i)] * channels + c;
        typename Arithmetic::Sum sum = Arithmetic::kStart;
        for (int64_t j = 0; j < count; ++j) sum += weight[j] * from[j * channels];
        *to++ = Arithmetic::value(sum);
      }
    }
  }
  return out;
}

/// Filters every column: [height, row_values] from row `first_row` on to [results, row_values].
template <typename Arithmetic>
std::vector<typename Arithmetic::Value> filter_columns(const std::vector<typename Arithmetic::Value>& in,
                                                       int64_t first_row, int64_t row_values,
                                                       const FilterWeights& axis) {
  const auto weights = weights_of<Arithmetic>(axis);
  const int64_t results = std::ssize(axis.first);
  std::vector<typename Arithmetic::Value> out(static_cast<size_t>(results * row_values));
  std::vector<typename Arithmetic::Sum> sums(static_cast<size_t>(row_values));
  for (int64_t i = 0; i < results; ++i) {
    std::fill(sums.begin(), sums.end(), Arithmetic::kStart);
    for (int64_t j = 0; j < axis.count[static_cast<size_t>(i)]; ++j) {
      const auto weight = weights[static_cast<size_t>(i * axis.taps + j)];
      const auto* from = in.data() + (axis.first[static_cast<size_t>(i)] + j - first_row) * row_values;
      for (int64_t k = 0; k < row_values; ++k) sums[static_cast<size_t>(k)] += weight * from[k];
    }
    std::transform(sums.begin(), sums.end(), out.begin() + i * row_values, Arithmetic::value);
  }
  return out;
}

/// [height, width, channels] to the results of both axes: rows first, and of those only what the columns need.
template <typename Arithmetic>
std::vector<typename Arithmetic::Value> filter_both(const typename Arithmetic::Value* in, int64_t width,
                                                    int64_t channels, const FilterWeights& down,
                                                    const FilterWeights& across) {
  const int64_t begin = down.first.front();
  const int64_t end = down.first.back() + down.count.back();
  const auto rows = filter_rows<Arithmetic>(in + begin * width * channels, end - begin, width, channels, across);
  return filter_columns<Arithmetic>(rows, begin, std::ssize(across.first) * channels, down);
}

Picture filtered(const Picture& picture, const FilterWeights& down, const FilterWeights& across) {
  const ImageShape& shape = picture.shape;
  return {{std::ssize(down.first), std::ssize(across.first), shape.channels},
          filter_both<Fixed>(picture.values.data(), shape.width, shape.channels, down, across)};
}

void require_size(int64_t height, int64_t width) {
  if (height >= 1 && width >= 1 && height <= kMostAlong && width <= kMostAlong) return;
  throw Error("size: expected 1 to " + std::to_string(kMostAlong) + " along an axis, got " + std::to_string(height) +
              " x " + std::to_string(width));
}

}  // namespace

Resampling resampling_named(std::string_view name) {
  if (name == "nearest") return Resampling::kNearest;
  if (name == "bilinear") return Resampling::kBilinear;
  if (name == "bicubic") return Resampling::kBicubic;
  throw Error("resampling: expected nearest, bilinear or bicubic, got " + std::string(name));
}

FilterWeights filter_weights(int64_t size, float begin, float end, int64_t results, Resampling resampling) {
  return weights_along({size, begin, end, results, 0, results}, resampling);
}

Picture resize(const Picture& picture, int64_t height, int64_t width, Resampling resampling) {
  const Box all{0, 0, static_cast<float>(picture.shape.height), static_cast<float>(picture.shape.width)};
  return resize(picture, height, width, resampling, all);
}

Picture resize(const Picture& picture, int64_t height, int64_t width, Resampling resampling, const Box& box) {
  require_picture(picture);
  require_size(height, width);
  const ImageShape& shape = picture.shape;
  const auto inside = [](float begin, float end, int64_t size) {
    return begin >= 0 && begin < end && end <= static_cast<float>(size);
  };
  if (!inside(box.top, box.bottom, shape.height) || !inside(box.left, box.right, shape.width)) {
    throw Error("box: expected one inside " + text_of(shape) + ", got rows " + std::to_string(box.top) + " to " +
                std::to_string(box.bottom) + ", columns " + std::to_string(box.left) + " to " +
                std::to_string(box.right));
  }
  return filtered(picture, filter_weights(shape.height, box.top, box.bottom, height, resampling),
                  filter_weights(shape.width, box.left, box.right, width, resampling));
}

Picture resize_within(const Picture& picture, int64_t height, int64_t width, Resampling resampling,
                      const Window& window) {
  require_picture(picture);
  require_size(window.height, window.width);
  if (window.top < 0 || window.top > height - window.height || window.left < 0 || window.left > width - window.width) {
    throw Error("window: expected one inside " + std::to_string(height) + " x " + std::to_string(width) + ", got " +
                std::to_string(window.height) + " x " + std::to_string(window.width) + " from row " +
                std::to_string(window.top) + ", column " + std::to_string(window.left) + " on");
  }
  const ImageShape& shape = picture.shape;
  const auto along = [&](int64_t size, int64_t results, int64_t first, int64_t count) {
    return weights_along({size, 0, static_cast<float>(size), results, first, count}, resampling);
  };
  return filtered(picture, along(shape.height, height, window.top, window.height),
                  along(shape.width, width, window.left, window.width));
}

std::vector<float> resize_floats(std::span<const float> values, int64_t height, int64_t width, int64_t channels,
                                 int64_t new_height, int64_t new_width, Resampling resampling) {
  require_size(height, width);
  require_size(new_height, new_width);
  const FilterWeights down = filter_weights(height, 0, static_cast<float>(height), new_height, resampling);
  const FilterWeights across = filter_weights(width, 0, static_cast<float>(width), new_width, resampling);
  if (channels < 1 || std::ssize(values) != height * width * channels) {
    throw Error("values: expected " + std::to_string(height) + " x " + std::to_string(width) + " x " +
                std::to_string(channels) + " of them, got " + std::to_string(values.size()));
  }
  const std::vector<double> exact(values.begin(), values.end());
  const std::vector<double> results = filter_both<Exact>(exact.data(), width, channels, down, across);
  return {results.begin(), results.end()};
}

}  // namespace aft

#include "image/augment/tones.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <string>

#include "aft/error.h"

namespace aft {
namespace {

using Table = std::array<uint8_t, 256>;      // what becomes of each value
using Histogram = std::array<int64_t, 256>;  // how many pixels have it

template <typename Function>
Table table_of(const Function& function) {
  Table table{};
  for (int value = 0; value < 256; ++value) {
    table[static_cast<size_t>(value)] = static_cast<uint8_t>(std::clamp<int64_t>(function(value), 0, 255));
  }
  return table;
}

/// The same for all channels.
void apply_table(Picture& picture, const Table& table) {
  require_picture(picture);
  for (uint8_t& value : picture.values) value = table[value];
}

/// To each channel the table that `table_for` makes of its histogram.
template <typename TableFor>
void apply_by_histogram(Picture& picture, const TableFor& table_for) {
  require_picture(picture);
  const auto channels = static_cast<size_t>(picture.shape.channels);
  for (size_t c = 0; c < channels; ++c) {
    Histogram histogram{};
    for (size_t i = c; i < picture.values.size(); i += channels) ++histogram[picture.values[i]];
    const Table table = table_for(histogram);
    for (size_t i = c; i < picture.values.size(); i += channels) picture.values[i] = table[picture.values[i]];
  }
}

Table same() {
  return table_of([](int value) { return value; });
}

Table stretched(const Histogram& histogram) {
  const auto used = [](int64_t count) { return count > 0; };
  const auto low = std::find_if(histogram.begin(), histogram.end(), used) - histogram.begin();
  const auto high = histogram.rend() - std::find_if(histogram.rbegin(), histogram.rend(), used) - 1;
  if (high <= low) return same();
  const double scale = 255.0 / static_cast<double>(high - low);
  const double offset = static_cast<double>(-low) * scale;
  return table_of([&](int value) { return static_cast<int64_t>(value * scale + offset); });
}

Table equalized(const Histogram& histogram) {
  const int64_t pixels = std::accumulate(histogram.begin(), histogram.end(), int64_t{0});
  const int64_t highest = *std::find_if(histogram.rbegin(), histogram.rend(), [](int64_t count) { return count > 0; });
  const int64_t step = (pixels - highest) / 255;
  if (step == 0) return same();  // also where all pixels have one value
  int64_t below = step / 2;
  return table_of([&](int value) {
    const int64_t place = below / step;
    below += histogram[static_cast<size_t>(value)];
    return place;
  });
}

/// Of single precision, as Pillow's Image.blend().
uint8_t blended(int from, int to, float factor) {
  const float value = static_cast<float>(from) + factor * static_cast<float>(to - from);
  return static_cast<uint8_t>(std::clamp(value, 0.0F, 255.0F));
}

/// The table of a blend with one value.
Table blended_with(int from, double factor) {
  return table_of([&](int value) { return blended(from, value, static_cast<float>(factor)); });
}

void require_factor(double factor) {
  if (!(factor >= 0 && factor <= 1e6)) {
    throw Error("factor: expected 0 to 1000000, got " + std::to_string(factor));
  }
}

uint8_t grey_at(const Picture& picture, int64_t pixel) {
  const uint8_t* value = picture.values.data() + pixel * picture.shape.channels;
  return picture.shape.channels == 1 ? *value : grey_of(value[0], value[1], value[2]);
}

}  // namespace

void auto_contrast(Picture& picture) { apply_by_histogram(picture, stretched); }

void equalize(Picture& picture) { apply_by_histogram(picture, equalized); }

void invert(Picture& picture) {
  apply_table(picture, table_of([](int value) { return 255 - value; }));
}

void posterize(Picture& picture, int64_t bits) {
  if (bits < 0 || bits > 8) throw Error("bits: expected 0 to 8, got " + std::to_string(bits));
  apply_table(picture, table_of([&](int value) { return value >> (8 - bits) << (8 - bits); }));
}

void solarize(Picture& picture, int64_t threshold) {
  apply_table(picture, table_of([&](int value) { return value < threshold ? value : 255 - value; }));
}

void solarize_add(Picture& picture, int64_t amount) {
  if (amount < 0) throw Error("amount: expected at least 0, got " + std::to_string(amount));
  amount = std::min<int64_t>(amount, 255);
  apply_table(picture, table_of([&](int value) { return value < 128 ? value + amount : value; }));
}

void adjust_color(Picture& picture, double factor) {
  require_picture(picture);
  require_factor(factor);
  if (picture.shape.channels == 1) return;
  for (int64_t pixel = 0; pixel < picture.shape.height * picture.shape.width; ++pixel) {
    const uint8_t grey = grey_at(picture, pixel);
    for (int64_t c = 0; c < 3; ++c) {
      uint8_t& value = picture.values[static_cast<size_t>(pixel * 3 + c)];
      value = blended(grey, value, static_cast<float>(factor));
    }
  }
}

void adjust_contrast(Picture& picture, double factor) {
  require_picture(picture);
  require_factor(factor);
  const int64_t pixels = picture.shape.height * picture.shape.width;
  int64_t sum = 0;
  for (int64_t pixel = 0; pixel < pixels; ++pixel) sum += grey_at(picture, pixel);
  const int mean = static_cast<int>(static_cast<double>(sum) / static_cast<double>(pixels) + 0.5);
  apply_table(picture, blended_with(mean, factor));
}

void adjust_brightness(Picture& picture, double factor) {
  require_factor(factor);
  apply_table(picture, blended_with(0, factor));
}

void adjust_sharpness(Picture& picture, double factor) {
  require_picture(picture);
  require_factor(factor);
  const int64_t row = picture.shape.width * picture.shape.channels;
  const int64_t next = picture.shape.channels;
  const std::vector<uint8_t> old = picture.values;
  for (int64_t y = 1; y + 1 < picture.shape.height; ++y) {
    for (int64_t i = next; i < row - next; ++i) {
      const uint8_t* at = old.data() + y * row + i;
      const auto three = [&](int64_t k) { return at[k - next] + at[k] + at[k + next]; };
      // The nearest: thirteenths are never halfway.
      const int blurred = (2 * (three(-row) + three(0) + three(row) + 4 * *at) + 13) / 26;
      picture.values[static_cast<size_t>(y * row + i)] = blended(blurred, *at, static_cast<float>(factor));
    }
  }
}

}  // namespace aft

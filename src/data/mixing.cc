#include "data/mixing.h"

#include <algorithm>
#include <cmath>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "aft/error.h"
#include "numbers/mix.h"

namespace aft {
namespace {

constexpr double kLeastAlpha = 1e-3;
constexpr double kMostAlpha = 1e3;
constexpr uint64_t kWhole = 1 << 16;  // lambda is counted in parts of it
// Parts these numbers from those of the augmentation, which follow the draw itself.
constexpr uint64_t kOwn = 0x6d6978696e67;

/// The logarithm of a number of Gamma(alpha), which itself would vanish for a small alpha. Marsaglia and Tsang draw
/// from Gamma(alpha + 1); times u^(1 / alpha) it is of Gamma(alpha).
double log_gamma_number(double alpha, RandomNumbers& numbers) {
  const double d = alpha + 1 - 1.0 / 3;
  const double c = 1 / std::sqrt(9 * d);
  const auto log_uniform = [&] { return std::log(1 - numbers.uniform()); };  // finite
  while (true) {
    const double x = numbers.normal();
    const double root = 1 + c * x;
    const double log_u = log_uniform();
    if (root <= 0) continue;
    const double log_v = 3 * std::log(root);
    if (log_u >= x * x / 2 + d - d * root * root * root + d * log_v) continue;
    return std::log(d) + log_v + log_uniform() / alpha;
  }
}

/// Of `own`, in place, and `other`. Whole numbers: the same on every machine.
void mix_up(std::span<uint8_t> own, std::span<const uint8_t> other, uint64_t weight) {
  const auto first = static_cast<uint32_t>(weight);
  const auto second = static_cast<uint32_t>(kWhole - weight);
  for (size_t i = 0; i < own.size(); ++i) {
    own[i] = static_cast<uint8_t>((first * own[i] + second * other[i] + kWhole / 2) / kWhole);
  }
}

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  [[nodiscard]] int64_t size() const { return end - begin; }
};

/// The box along one side of the image.
Range cut(int64_t side, double ratio, int64_t centre) {
  const int64_t half = static_cast<int64_t>(static_cast<double>(side) * ratio) / 2;
  return {std::max<int64_t>(centre - half, 0), std::min(centre + half, side)};
}

}  // namespace

double draw_beta(double alpha, RandomNumbers& numbers) {
  const double first = log_gamma_number(alpha, numbers);
  const double second = log_gamma_number(alpha, numbers);
  return 1 / (1 + std::exp(second - first));
}

void validate(const Mixing& mixing) {
  const auto text = [](double value) {
    std::ostringstream out;
    out << value;
    return out.str();
  };
  for (const auto& [key, alpha] : {std::pair("data.mixup", mixing.mixup), std::pair("data.cutmix", mixing.cutmix)}) {
    if (alpha == 0 || (alpha >= kLeastAlpha && alpha <= kMostAlpha)) continue;
    throw Error(std::string(key) + ": expected 0 (off) or 0.001 to 1000, got " + text(alpha));
  }
  if (!(mixing.probability >= 0 && mixing.probability <= 1)) {
    throw Error("data.mix_probability: expected 0 to 1, got " + text(mixing.probability));
  }
}

MixedImages::MixedImages(std::unique_ptr<const ImageSet> images, const Mixing& mixing)
    : images_(std::move(images)), mixing_((validate(mixing), mixing)) {}

Label MixedImages::read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const {
  const Label own = images_->read(split, index, draw, out);
  if (split != Split::kTrain || !draw || (mixing_.mixup == 0 && mixing_.cutmix == 0)) return own;
  const ImageShape& shape = images_->shape();
  RandomNumbers numbers(mix(*draw ^ kOwn));
  // Each is drawn, used or not, and lambda last, which takes as many as it takes.
  const bool mixed = numbers.chance(mixing_.probability);
  const bool first_kind = numbers.chance(0.5);
  const int64_t partner = numbers.below(images_->size(split));
  const uint64_t partner_draw = numbers.next();
  const int64_t row = numbers.below(shape.height);
  const int64_t column = numbers.below(shape.width);
  if (!mixed) return own;
  const bool mixes_up = mixing_.cutmix == 0 || (mixing_.mixup > 0 && first_kind);
  const double lambda = draw_beta(mixes_up ? mixing_.mixup : mixing_.cutmix, numbers);
  std::vector<uint8_t> other(out.size());
  const auto second = [&] { return images_->read(split, partner, partner_draw, other).first; };
  if (mixes_up) {
    const auto weight = static_cast<uint64_t>(std::lround(lambda * static_cast<double>(kWhole)));
    if (weight == kWhole) return own;
    const Label label{own.first, second(), static_cast<float>(weight) / static_cast<float>(kWhole)};
    mix_up(out, other, weight);
    return label;
  }
  const double ratio = std::sqrt(1 - lambda);
  const Range rows = cut(shape.height, ratio, row);
  const Range columns = cut(shape.width, ratio, column);
  const int64_t area = rows.size() * columns.size();
  if (area == 0) return own;
  const int64_t all = shape.height * shape.width;
  const Label label{own.first, second(), static_cast<float>(all - area) / static_cast<float>(all)};
  for (int64_t y = rows.begin; y < rows.end; ++y) {
    const int64_t from = (y * shape.width + columns.begin) * shape.channels;
    std::copy_n(other.begin() + from, columns.size() * shape.channels, out.begin() + from);
  }
  return label;
}

}  // namespace aft

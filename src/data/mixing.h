#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/data_set.h"
#include "data/images.h"
#include "numbers/random_numbers.h"

namespace aft {

/// How training images are mixed. Alpha is that of Beta(alpha, alpha), which lambda is drawn from: 0, where the kind is
/// off, or 0.001 to 1000.
struct Mixing {
  double mixup = 0;        // alpha of Mixup (Zhang et al. 2018)
  double cutmix = 0;       // alpha of CutMix (Yun et al. 2019)
  double probability = 1;  // that an image is mixed, in [0, 1]; where both kinds are on, each has half of it
};

/// The images of another set, those of train mixed where they are read with a draw. Everything is drawn for each image
/// alone, by numbers that depend on its draw only: whether it is mixed and how, the partner (any image of train, itself
/// too), the draw of the partner's augmentation, lambda, and the place of CutMix's box.
///
/// Mixup: lambda is rounded to a multiple of 2^-16, and every value is lambda times the image's and 1 - lambda times
/// the partner's, rounded to nearest, halves up; `share` is that lambda.
///
/// CutMix: a box of the partner replaces that of the image. As in timm its sides are twice the whole part of half of
/// the whole part of sqrt(1 - lambda) times the image's, its centre is any pixel, and it is clipped at the edges;
/// `share` is what is left of the image.
///
/// An image that keeps all of its own is not mixed: it has no second label.
class MixedImages : public DataSet {
 public:
  /// Throws aft::Error for numbers out of range.
  MixedImages(std::unique_ptr<const ImageSet> images, const Mixing& mixing);

  [[nodiscard]] int64_t size(Split split) const override { return images_->size(split); }
  [[nodiscard]] int64_t bytes(Split split, int64_t index) const override { return images_->bytes(split, index); }
  Label read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const override;
  [[nodiscard]] std::vector<std::string> skipped() const override { return images_->skipped(); }
  [[nodiscard]] std::span<const std::string> class_names() const override { return images_->class_names(); }
  [[nodiscard]] uint64_t checksum(Split split) const override { return images_->checksum(split); }

 private:
  std::unique_ptr<const ImageSet> images_;
  Mixing mixing_;
};

/// A number of Beta(alpha, alpha), in [0, 1], from two of Gamma(alpha) by Marsaglia and Tsang 2000: exact but for the
/// rounding of f64.
double draw_beta(double alpha, RandomNumbers& numbers);

/// Throws aft::Error, naming the key of a recipe, for numbers out of range.
void validate(const Mixing& mixing);

}  // namespace aft

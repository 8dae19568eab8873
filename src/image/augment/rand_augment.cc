#include "image/augment/rand_augment.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "aft/error.h"
#include "image/augment/affine.h"
#include "image/augment/tones.h"
#include "numbers/random_numbers.h"

namespace aft {
namespace {

constexpr double kTop = 10;  // the largest magnitude
constexpr auto kMoving = Resampling::kBicubic;

/// A step of `most` at the largest magnitude.
double step(double most, double magnitude, bool negative) {
  const double size = magnitude / kTop * most;
  return negative ? -size : size;
}

/// Of ImageEnhance: 1 changes nothing.
double factor(double magnitude, bool negative) { return std::max(0.1, 1 + step(0.9, magnitude, negative)); }

/// The part of `most` that goes by the magnitude, rounded down.
int64_t whole(int64_t most, double magnitude) {
  return static_cast<int64_t>(magnitude / kTop * static_cast<double>(most));
}

constexpr AugmentOperation kOperations[] = {
    {"AutoContrast", [](Picture& picture, double, bool, const Color&) { auto_contrast(picture); }},
    {"Equalize", [](Picture& picture, double, bool, const Color&) { equalize(picture); }},
    {"Invert", [](Picture& picture, double, bool, const Color&) { invert(picture); }},
    {"Rotate", [](Picture& picture, double magnitude, bool negative,
                  const Color& fill) { rotate(picture, step(30, magnitude, negative), kMoving, fill); }},
    {"PosterizeIncreasing",
     [](Picture& picture, double magnitude, bool, const Color&) { posterize(picture, 4 - whole(4, magnitude)); }},
    {"SolarizeIncreasing",
     [](Picture& picture, double magnitude, bool, const Color&) { solarize(picture, 256 - whole(256, magnitude)); }},
    {"SolarizeAdd",
     [](Picture& picture, double magnitude, bool, const Color&) { solarize_add(picture, whole(110, magnitude)); }},
    {"ColorIncreasing", [](Picture& picture, double magnitude, bool negative,
                           const Color&) { adjust_color(picture, factor(magnitude, negative)); }},
    {"ContrastIncreasing", [](Picture& picture, double magnitude, bool negative,
                              const Color&) { adjust_contrast(picture, factor(magnitude, negative)); }},
    {"BrightnessIncreasing", [](Picture& picture, double magnitude, bool negative,
                                const Color&) { adjust_brightness(picture, factor(magnitude, negative)); }},
    {"SharpnessIncreasing", [](Picture& picture, double magnitude, bool negative,
                               const Color&) { adjust_sharpness(picture, factor(magnitude, negative)); }},
    {"ShearX", [](Picture& picture, double magnitude, bool negative,
                  const Color& fill) { shear_x(picture, step(0.3, magnitude, negative), kMoving, fill); }},
    {"ShearY", [](Picture& picture, double magnitude, bool negative,
                  const Color& fill) { shear_y(picture, step(0.3, magnitude, negative), kMoving, fill); }},
    {"TranslateXRel", [](Picture& picture, double magnitude, bool negative,
                         const Color& fill) { translate_x(picture, step(0.45, magnitude, negative), kMoving, fill); }},
    {"TranslateYRel", [](Picture& picture, double magnitude, bool negative,
                         const Color& fill) { translate_y(picture, step(0.45, magnitude, negative), kMoving, fill); }},
};

}  // namespace

void require_rand_augment(const RandAugment& options) {
  if (options.operations < 0 || options.operations > 100) {
    throw Error("data.rand_augment: expected 0 to 100 operations a picture, got " + std::to_string(options.operations));
  }
  if (!(options.magnitude >= 0 && options.magnitude <= kTop)) {
    throw Error("data.magnitude: expected 0 to 10, got " + std::to_string(options.magnitude));
  }
  if (!(options.deviation >= 0 && options.deviation <= 100)) {
    throw Error("data.magnitude_deviation: expected 0 to 100, got " + std::to_string(options.deviation));
  }
}

std::span<const AugmentOperation> augment_operations() { return kOperations; }

void rand_augment(Picture& picture, const RandAugment& options, uint64_t draw) {
  require_picture(picture);
  require_rand_augment(options);
  RandomNumbers numbers(draw);
  for (int64_t i = 0; i < options.operations; ++i) {
    // All are drawn, used or not: what the next operation is does not depend on this one.
    const auto& operation = kOperations[numbers.below(std::ssize(kOperations))];
    const bool wanted = numbers.chance(0.5);
    const bool negative = numbers.chance(0.5);
    const double magnitude = options.magnitude + options.deviation * numbers.normal();
    if (wanted) operation.apply(picture, std::clamp(magnitude, 0.0, kTop), negative, options.fill);
  }
}

}  // namespace aft

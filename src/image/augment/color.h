#pragma once

#include <array>
#include <cstdint>

namespace aft {

/// Red, green and blue.
using Color = std::array<uint8_t, 3>;

/// Mean colour and deviation of the photos of ImageNet, in values of 0 to 255, by which timm and torchvision normalise.
constexpr std::array<double, 3> kPhotoMean = {0.485 * 255, 0.456 * 255, 0.406 * 255};
constexpr std::array<double, 3> kPhotoDeviation = {0.229 * 255, 0.224 * 255, 0.225 * 255};
/// The mean, rounded.
constexpr Color kPhotoColor = {124, 116, 104};

}  // namespace aft

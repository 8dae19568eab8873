#pragma once

#include <cstdint>

#include "image/picture.h"

namespace aft {

/// Throws aft::Error, naming the key, unless it is one.
void require_probability(double erase);

/// Random erasing (Zhong et al. 2017) as timm's of mode "pixel": with probability `probability` a box is filled by
/// noise, each value by its own. The box's part of the area is uniform in [0.02, 1/3], the logarithm of its height over
/// its width in [log 0.3, -log 0.3], its place among those inside. The first of ten tries that is lower and narrower
/// than the picture; none may be. Noise is kPhotoMean + kPhotoDeviation N(0, 1), rounded and clipped to 0 to 255. (timm
/// erases after the values have been normalised, and so clips nothing: there 3 % of them lie outside of what a picture
/// can show.) For a grey picture mean and deviation are those of the channels, weighted as for grey. A pure function of
/// its arguments. Throws aft::Error for a picture that is not one, or a probability outside [0, 1].
void erase(Picture& picture, double probability, uint64_t draw);

}  // namespace aft

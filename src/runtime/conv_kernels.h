#pragma once

#include <string>
#include <vector>

#include "aft/runtime/model_file.h"

namespace aft::runtime {

/// The kernels w [H, ...] of the AFT-conv mixer at `mixer` ("blocks.0.mixer."), as the operator takes them: gamma
/// (weight - mean) / sqrt(var + 1e-5) + beta over the weights of a head, var biased; or the weights themselves, where
/// the model is not reparameterised.
std::vector<float> conv_kernels(const ModelFile& file, const std::string& mixer);

}  // namespace aft::runtime

#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "aft/config/model_config.h"
#include "random_model.h"

namespace aft::test {

/// The whole model in f64 by plain loops over its formula, whole sequences only: the truth for the tests.
/// Returns the logits after every token: [T, vocabulary]. A pixel_lm reads its start token first: [1 + T, vocabulary].
std::vector<double> naive_logits(const ModelConfig& config, const Tensors& tensors, std::span<const uint8_t> tokens);

}  // namespace aft::test

#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "aft/config/model_config.h"

namespace aft {

/// The learned position biases w of one layer of an AFT model: of one head, or one that all channels share.
struct PositionWeights {
  int64_t layer = 0;
  int64_t head = 0;
  int64_t rows = 0;
  int64_t columns = 0;
  bool is_kernel = false;  // w by offset from the target, which is in the middle; else by target (row) and source
  std::vector<double> w;   // [rows, columns]
};

/// All of a model file or run folder, layer by layer, of each layer head by head: kernels of aft_conv1d and aft_conv2d,
/// matrices of aft_local (0 outside the window) and aft_full. Throws aft::Error for a model that has none.
std::vector<PositionWeights> position_weights(const std::filesystem::path& model);

/// The weights e^w / sum e^w of every pair of patches [T, T], those of equal keys, class token dropped: what
/// share_within() takes. `config`: the model's.
std::vector<double> pair_weights(const PositionWeights& weights, const ModelConfig& config);

}  // namespace aft

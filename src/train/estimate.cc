#include <algorithm>

#include "aft/models.h"
#include "aft/train.h"

namespace aft {

MemoryEstimate estimate_memory(const Recipe& recipe) {
  const ModelConfig& m = recipe.model;
  MemoryEstimate estimate;
  estimate.parameters = parameter_count(m);
  estimate.state_bytes = estimate.parameters * 4 * static_cast<int64_t>(sizeof(float));  // weight, gradient, 2 moments
  // What one position of one layer leaves for the backward, in floats: two norms in and out, qkv, mixer out, two
  // branches, and the MLP before and after GELU; twice the logits for the loss. Dropout keeps three masks' worth more.
  const auto d = static_cast<double>(m.channels);
  const double dropout = m.dropout > 0 ? 4 * d : 0;
  const double layer = 11 * d + 2 * static_cast<double>(m.mlp_channels) + dropout;
  const double position = static_cast<double>(m.layers) * layer + 3 * 256 + 4 * d;
  const auto length = static_cast<double>(recipe.train.chunk > 0 ? recipe.train.chunk : m.context);
  estimate.activation_bytes =
      static_cast<int64_t>(std::min(9e18, static_cast<double>(recipe.train.batch) * length * position * sizeof(float)));
  return estimate;
}

}  // namespace aft

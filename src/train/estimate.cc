#include <algorithm>

#include "config/architecture.h"
#include "train/train.h"

namespace aft {

MemoryEstimate estimate_memory(const Recipe& recipe) {
  const ModelConfig& m = recipe.model;
  MemoryEstimate estimate;
  estimate.parameters = parameter_count(m);
  const int64_t copies = recipe.train.ema > 0 ? 5 : 4;  // weight, gradient, 2 moments, average
  estimate.state_bytes = estimate.parameters * copies * static_cast<int64_t>(sizeof(float));
  // What one position of one layer leaves for the backward, in floats: two norms in and out, qkv, mixer out, two
  // branches, and the MLP before and after GELU; twice the logits for the loss. Dropout keeps three masks' worth more.
  // In bf16 the residual branch before either norm, what is outside the layers, and the weights themselves stay f32;
  // the weights are there in bf16 too.
  const auto d = static_cast<double>(m.channels);
  const bool narrow = recipe.train.precision == "bf16";
  const double share = narrow ? 0.5 : 1;
  const double dropout = m.dropout > 0 ? 4 * d : 0;
  const double mixer = mixer_entry(m.mixer.name).kept(m);
  const double layer = 2 * d + share * (9 * d + 2 * static_cast<double>(m.mlp_channels) + mixer + dropout);
  const double logits = is_causal(m) ? 3 * static_cast<double>(m.vocabulary) : 0;
  const double position = static_cast<double>(m.layers) * layer + logits + 4 * d;
  const auto length = static_cast<double>(recipe.train.chunk > 0 ? recipe.train.chunk : positions(m));
  const double numbers = static_cast<double>(recipe.train.batch) * length * position +
                         (narrow ? share * static_cast<double>(estimate.parameters) : 0);
  estimate.activation_bytes = static_cast<int64_t>(std::min(9e18, numbers * sizeof(float)));
  return estimate;
}

}  // namespace aft

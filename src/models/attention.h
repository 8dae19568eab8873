#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <tuple>

#include "models/model.h"

namespace aft {

/// Causal multi-head softmax attention (Vaswani et al. 2017), the baseline. Parameters qkv and output as in AFTSimple.
/// Its state is the cache of all keys and values so far, [B, heads, positions, d / heads] each.
class AttentionImpl : public torch::nn::Cloneable<AttentionImpl> {
 public:
  AttentionImpl(int64_t channels_, int64_t heads_);
  void reset() override;

  /// x [B, T, d] -> [B, T, d].
  torch::Tensor forward(const torch::Tensor& x);
  std::tuple<torch::Tensor, MixerState> forward_with_state(const torch::Tensor& x, const MixerState& state);
  [[nodiscard]] MixerState initial_state(int64_t batch) const;

  int64_t channels;
  int64_t heads;
  torch::nn::Linear qkv{nullptr};
  torch::nn::Linear output{nullptr};
};
TORCH_MODULE(Attention);

}  // namespace aft

#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <tuple>

#include "models/model.h"

namespace aft {

/// Multi-head softmax attention (Vaswani et al. 2017, Eq. 1), the baseline: per head softmax(q k^T / sqrt(d / heads)) v
/// over the positions to t if `causal`, else over all. Parameters qkv and output as in AFTSimple. Time O(T^2 d), memory
/// O(T d) where LibTorch has a fused kernel, else O(T^2 heads) more. Its state is the cache of all keys and values so
/// far, [B, heads, positions, d / heads] each.
class AttentionImpl : public torch::nn::Cloneable<AttentionImpl> {
 public:
  /// Throws aft::Error unless heads divides channels.
  AttentionImpl(int64_t channels_, int64_t heads_, bool causal_ = true);
  void reset() override;

  /// x [B, T, d] -> [B, T, d].
  torch::Tensor forward(const torch::Tensor& x);
  /// Going on from `state`. Throws aft::Error unless causal, as initial_state() does.
  std::tuple<torch::Tensor, MixerState> forward_with_state(const torch::Tensor& x, const MixerState& state);
  [[nodiscard]] MixerState initial_state(int64_t batch) const;

  int64_t channels;
  int64_t heads;
  bool causal;
  torch::nn::Linear qkv{nullptr};
  torch::nn::Linear output{nullptr};
};
TORCH_MODULE(Attention);

}  // namespace aft

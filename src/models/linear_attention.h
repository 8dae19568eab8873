#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <tuple>

#include "models/model.h"

namespace aft {

/// Linear attention (Katharopoulos et al. 2020, Eq. 5 to 7 and 9): per head, with phi(x) = elu(x) + 1 and sums over the
/// positions t' <= t if `causal`, else over all,
///     y[t] = phi(q[t]) S / (phi(q[t]) . z),    S = sum_t' phi(k[t'])^T v[t'],    z = sum_t' phi(k[t']).
/// Time O(T d^2 / heads). Causal, S and z are kept once in 64 positions, and the scores of a position reach back to
/// there: memory O(T d + T heads + T d^2 / (64 heads)). The state is S [B, heads, d / heads, d / heads] and z [B,
/// heads, d / heads], of one size for ever (f32 for 16-bit weights). There is no epsilon: phi is computed as e^x below
/// 0, not as (e^x - 1) + 1, and each query is scaled by its greatest e^x, which cancels. So a denominator is 0 only if
/// its products are all below the smallest number (e^-87 in f32), about the size of the keys' own; such a y is 0.
class LinearAttentionImpl : public torch::nn::Cloneable<LinearAttentionImpl> {
 public:
  /// Throws aft::Error unless heads divides channels.
  LinearAttentionImpl(int64_t channels_, int64_t heads_, bool causal_ = true);
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
TORCH_MODULE(LinearAttention);

}  // namespace aft

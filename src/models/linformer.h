#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include "models/model.h"

namespace aft {

/// Attention of low rank (Wang et al. 2020, Eq. 7): per head softmax(q (E k)^T / sqrt(d / heads)) (F v), where E and F
/// [rank, positions] replace the T keys and values by `rank` mixtures of them; one pair serves all heads (the paper's
/// headwise sharing). A sequence shorter than `positions` uses the first T columns. Not causal: every mixture has the
/// whole sequence in it, so there is no state. Time O(T rank d), memory O(T d + rank d), plus O(T rank heads) where
/// LibTorch has no fused kernel.
class LinformerImpl : public torch::nn::Cloneable<LinformerImpl> {
 public:
  /// Throws aft::Error unless heads divides channels and positions and rank are at least 1.
  LinformerImpl(int64_t channels_, int64_t heads_, int64_t positions_, int64_t rank_);
  void reset() override;

  /// x [B, T, d] -> [B, T, d], T at most positions, else it throws aft::Error.
  torch::Tensor forward(const torch::Tensor& x);

  int64_t channels;
  int64_t heads;
  int64_t positions;
  int64_t rank;
  torch::nn::Linear qkv{nullptr};
  torch::nn::Linear output{nullptr};
  torch::Tensor e;  // [rank, positions], of the keys; N(0, 1 / rank) at first, as f
  torch::Tensor f;  // [rank, positions], of the values
};
TORCH_MODULE(Linformer);

}  // namespace aft

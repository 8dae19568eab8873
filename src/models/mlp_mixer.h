#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include "models/model.h"

namespace aft {

/// The token mixing of MLP-Mixer (Tolstikhin et al. 2021, Eq. 1, first line): every channel by itself goes through one
/// MLP over time, positions -> hidden -> positions, with a GELU between; all channels share it. (Norm and residual are
/// the block's, as is the MLP over channels.) Not causal, no state, and only for T = positions. Time O(T hidden d), so
/// O(T^2 d) where hidden grows with T; memory O((T + hidden) d).
class MlpMixerImpl : public torch::nn::Cloneable<MlpMixerImpl> {
 public:
  /// Throws aft::Error unless both are at least 1.
  MlpMixerImpl(int64_t positions_, int64_t hidden_);
  void reset() override;

  /// x [B, positions, d] -> the same, for any d; another length throws aft::Error.
  torch::Tensor forward(const torch::Tensor& x);

  int64_t positions;
  int64_t hidden;
  torch::nn::Linear up{nullptr};
  torch::nn::Linear down{nullptr};
};
TORCH_MODULE(MlpMixer);

}  // namespace aft

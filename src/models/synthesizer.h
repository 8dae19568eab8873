#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <string>
#include <tuple>

#include "models/model.h"

namespace aft {

/// A linear layer with weights of its own for each head: weight [heads, outputs, inputs], bias [heads, outputs].
class HeadLinearImpl : public torch::nn::Cloneable<HeadLinearImpl> {
 public:
  HeadLinearImpl(int64_t heads_, int64_t inputs_, int64_t outputs_);
  void reset() override;

  /// x [heads, rows, inputs] -> [heads, rows, count], the first `count` of the outputs.
  torch::Tensor forward(const torch::Tensor& x, int64_t count);

  int64_t heads;
  int64_t inputs;
  int64_t outputs;
  torch::Tensor weight;
  torch::Tensor bias;
};
TORCH_MODULE(HeadLinear);

/// Attention without queries or keys (Synthesizer, Tay et al. 2021, Eq. 1 to 4): per head softmax(A) v over the
/// positions to t if `causal`, else over the T that there are. "random": A = r [heads, positions, positions], learned
/// and the same for every input. "dense": row t of A is scores(relu(hidden(x[t]))), with d / heads channels of x[t] for
/// each head, d / heads hidden ones and `positions` scores, of which those of the first T count. Time O(T^2 d), "dense"
/// as much again for its scores; memory O(T d + T^2 heads), "dense" B times as many scores. The state is all values so
/// far, [B, heads, positions, d / heads].
class SynthesizerImpl : public torch::nn::Cloneable<SynthesizerImpl> {
 public:
  /// Throws aft::Error unless heads divides channels, positions is at least 1 and kind is "random" or "dense".
  SynthesizerImpl(int64_t channels_, int64_t heads_, int64_t positions_, std::string kind_, bool causal_ = true);
  void reset() override;

  /// x [B, T, d] -> [B, T, d], T at most positions, else it throws aft::Error.
  torch::Tensor forward(const torch::Tensor& x);
  /// Going on from `state`, whose positions count. Throws aft::Error unless causal, as initial_state() does.
  std::tuple<torch::Tensor, MixerState> forward_with_state(const torch::Tensor& x, const MixerState& state);
  [[nodiscard]] MixerState initial_state(int64_t batch) const;

  int64_t channels;
  int64_t heads;
  int64_t positions;
  std::string kind;
  bool causal;
  torch::nn::Linear value{nullptr};
  torch::nn::Linear output{nullptr};
  torch::Tensor r;             // "random" only
  HeadLinear hidden{nullptr};  // "dense" only, as scores
  HeadLinear scores{nullptr};

 private:
  torch::Tensor mix(const torch::Tensor& x, const torch::Tensor& v);
};
TORCH_MODULE(Synthesizer);

}  // namespace aft

#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <tuple>

#include "models/model.h"

namespace aft {

/// Softmax attention over a window (the sliding window of Beltagy et al. 2020, section 3.1; the local attention of
/// Parmar et al. 2018): per head softmax(q k^T / sqrt(d / heads)) v over t - window < t' <= t if `causal`, else over
/// |t - t'| < window. Unlike AFT-local nothing outside the window is seen. Blocks of `window` queries see the keys that
/// any of them needs: time O(T window d), memory O(T d) and a mask O(T window) that batch and heads share (plus
/// O(T window heads) where LibTorch has no fused kernel). The state is the last window - 1 keys and values, or all
/// there are, [B, heads, positions, d / heads] each.
class SlidingWindowImpl : public torch::nn::Cloneable<SlidingWindowImpl> {
 public:
  /// Throws aft::Error unless heads divides channels and window is at least 1.
  SlidingWindowImpl(int64_t channels_, int64_t heads_, int64_t window_, bool causal_ = true);
  void reset() override;

  /// x [B, T, d] -> [B, T, d].
  torch::Tensor forward(const torch::Tensor& x);
  /// Going on from `state`. Throws aft::Error unless causal, as initial_state() does.
  std::tuple<torch::Tensor, MixerState> forward_with_state(const torch::Tensor& x, const MixerState& state);
  [[nodiscard]] MixerState initial_state(int64_t batch) const;

  int64_t channels;
  int64_t heads;
  int64_t window;
  bool causal;
  torch::nn::Linear qkv{nullptr};
  torch::nn::Linear output{nullptr};

 private:
  [[nodiscard]] torch::Tensor attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) const;
};
TORCH_MODULE(SlidingWindow);

}  // namespace aft

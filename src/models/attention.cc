#include "models/attention.h"

namespace aft {

AttentionImpl::AttentionImpl(int64_t channels_, int64_t heads_) : channels(channels_), heads(heads_) { reset(); }

void AttentionImpl::reset() {
  qkv = register_module("qkv", torch::nn::Linear(channels, 3 * channels));
  output = register_module("output", torch::nn::Linear(channels, channels));
}

torch::Tensor AttentionImpl::forward(const torch::Tensor& x) {
  return std::get<0>(forward_with_state(x, initial_state(x.size(0))));
}

std::tuple<torch::Tensor, MixerState> AttentionImpl::forward_with_state(const torch::Tensor& x,
                                                                        const MixerState& state) {
  const int64_t batch = x.size(0);
  const int64_t time = x.size(1);
  const auto parts = qkv(x).view({batch, time, 3, heads, channels / heads}).permute({2, 0, 3, 1, 4}).unbind(0);
  const auto& q = parts[0];  // [B, heads, T, d / heads]
  auto k = parts[1];
  auto v = parts[2];
  const int64_t before = state.tensors[0].size(2);
  std::optional<torch::Tensor> mask;
  if (before > 0) {
    k = torch::cat({state.tensors[0], k}, 2);
    v = torch::cat({state.tensors[1], v}, 2);
    // Row t sees the cache and its own chunk to t.
    mask = torch::ones({time, before + time}, x.options().dtype(torch::kBool)).tril(before);
  }
  const auto y = at::scaled_dot_product_attention(q, k, v, mask, 0.0, !mask.has_value());
  return {output(y.transpose(1, 2).reshape({batch, time, channels})), MixerState{{k, v}}};
}

MixerState AttentionImpl::initial_state(int64_t batch) const {
  const auto empty = torch::empty({batch, heads, 0, channels / heads}, qkv->weight.options().requires_grad(false));
  return {{empty, empty}};
}

}  // namespace aft

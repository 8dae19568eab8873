#include "models/attention.h"

#include "models/mixer_parts.h"

namespace aft {

AttentionImpl::AttentionImpl(int64_t channels_, int64_t heads_, bool causal_)
    : channels(channels_), heads(heads_), causal(causal_) {
  check_heads("Attention", heads, channels);
  reset();
}

void AttentionImpl::reset() {
  qkv = register_module("qkv", torch::nn::Linear(channels, 3 * channels));
  output = register_module("output", torch::nn::Linear(channels, channels));
}

torch::Tensor AttentionImpl::forward(const torch::Tensor& x) {
  const auto [q, k, v] = split_qkv(qkv(x), heads);
  return output(join_heads(at::scaled_dot_product_attention(q, k, v, {}, 0.0, causal)));
}

std::tuple<torch::Tensor, MixerState> AttentionImpl::forward_with_state(const torch::Tensor& x,
                                                                        const MixerState& state) {
  check_causal("Attention", causal);
  check_state("Attention", state, 2);
  const int64_t time = x.size(1);
  const auto [q, new_k, new_v] = split_qkv(qkv(x), heads);
  const int64_t before = state.tensors[0].size(2);
  const auto k = append(state.tensors[0], new_k);
  const auto v = append(state.tensors[1], new_v);
  std::optional<torch::Tensor> mask;
  // Row t sees the cache and its own chunk to t.
  if (before > 0) mask = torch::ones({time, before + time}, x.options().dtype(torch::kBool)).tril(before);
  const auto y = at::scaled_dot_product_attention(q, k, v, mask, 0.0, !mask.has_value());
  return {output(join_heads(y)), MixerState{{k, v}}};
}

MixerState AttentionImpl::initial_state(int64_t batch) const {
  check_causal("Attention", causal);
  const auto empty = empty_cache(batch, heads, channels, qkv);
  return {{empty, empty}};
}

}  // namespace aft

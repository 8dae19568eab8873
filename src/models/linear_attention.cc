#include "models/linear_attention.h"

#include <ATen/OpMathType.h>

#include <algorithm>
#include <vector>

#include "models/mixer_parts.h"

namespace aft {
namespace {

constexpr int64_t kChunk = 64;  // positions between two sums that are kept

torch::Tensor key_features(const torch::Tensor& k) { return k.clamp_max(0).exp() + k.relu(); }

// Of a row that is negative throughout, phi times e^-max: the ratio is the same, and the row cannot vanish.
torch::Tensor query_features(const torch::Tensor& q) {
  const auto shift = q.detach().amax(-1, true).clamp_max(0);
  return (q.clamp_max(0) - shift).exp() + q.relu();
}

// A further column of ones, so that one product gives numerator and denominator.
torch::Tensor with_ones(const torch::Tensor& v) { return torch::constant_pad_nd(v, {0, 1}, 1); }

// [..., dk + 1] -> [..., dk]. Where the last column is 0, so are all.
torch::Tensor ratio(const torch::Tensor& sums) {
  const auto den = sums.slice(-1, -1);
  return sums.slice(-1, 0, -1) / den.masked_fill(den == 0, 1);
}

}  // namespace

LinearAttentionImpl::LinearAttentionImpl(int64_t channels_, int64_t heads_, bool causal_)
    : channels(channels_), heads(heads_), causal(causal_) {
  check_heads("LinearAttention", heads, channels);
  reset();
}

void LinearAttentionImpl::reset() {
  qkv = register_module("qkv", torch::nn::Linear(channels, 3 * channels));
  output = register_module("output", torch::nn::Linear(channels, channels));
}

torch::Tensor LinearAttentionImpl::forward(const torch::Tensor& x) {
  check_sequence("LinearAttention", x, channels);
  if (causal) return std::get<0>(forward_with_state(x, initial_state(x.size(0))));
  const auto [q, k, v] = split_qkv(qkv(x), heads);
  const auto sums = torch::matmul(key_features(k).transpose(-1, -2), with_ones(v));
  return output(join_heads(ratio(torch::matmul(query_features(q), sums))));
}

std::tuple<torch::Tensor, MixerState> LinearAttentionImpl::forward_with_state(const torch::Tensor& x,
                                                                              const MixerState& state) {
  check_causal("LinearAttention", causal);
  check_sequence("LinearAttention", x, channels);
  check_state("LinearAttention", state, 2);
  const int64_t time = x.size(1);
  const int64_t chunk = std::min(kChunk, time);
  const int64_t chunks = (time + chunk - 1) / chunk;
  const auto chunked = [&](const torch::Tensor& y) {  // [B, heads, T, n] -> [B, heads, chunks, chunk, n]
    return torch::constant_pad_nd(y, {0, 0, 0, chunks * chunk - time}).unflatten(2, {chunks, chunk});
  };
  const auto parts = split_qkv(qkv(x), heads);
  const auto q = chunked(query_features(parts[0]));
  const auto k = chunked(key_features(parts[1]));
  const auto v = chunked(with_ones(parts[2]));

  // A loop and not cumsum, which has no deterministic order on a GPU. The sums have the state's dtype.
  auto sums = torch::cat({state.tensors[0], state.tensors[1].unsqueeze(-1)}, -1);  // [B, heads, dk, dk + 1]
  std::vector<torch::Tensor> before;
  for (const auto& added : torch::matmul(k.transpose(-1, -2), v).unbind(2)) {
    before.push_back(sums);
    sums = sums + added;
  }
  const auto scores = torch::matmul(q, k.transpose(-1, -2)).tril();
  const auto all = torch::matmul(scores, v) + torch::matmul(q, torch::stack(before, 2).to(q.scalar_type()));
  const auto y = ratio(all).flatten(2, 3).narrow(2, 0, time);
  return {output(join_heads(y)), MixerState{{sums.slice(-1, 0, -1), sums.select(-1, -1)}}};
}

MixerState LinearAttentionImpl::initial_state(int64_t batch) const {
  check_causal("LinearAttention", causal);
  const int64_t width = channels / heads;
  const auto options = qkv->weight.options().requires_grad(false).dtype(at::toOpMathType(qkv->weight.scalar_type()));
  return {{torch::zeros({batch, heads, width, width}, options), torch::zeros({batch, heads, width}, options)}};
}

}  // namespace aft

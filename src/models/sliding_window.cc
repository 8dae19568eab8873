#include "models/sliding_window.h"

#include <algorithm>

#include "models/mixer_parts.h"

namespace aft {

SlidingWindowImpl::SlidingWindowImpl(int64_t channels_, int64_t heads_, int64_t window_, bool causal_)
    : channels(channels_), heads(heads_), window(window_), causal(causal_) {
  check_heads("SlidingWindow", heads, channels);
  check_positive("SlidingWindow", "window", window);
  reset();
}

void SlidingWindowImpl::reset() {
  qkv = register_module("qkv", torch::nn::Linear(channels, 3 * channels));
  output = register_module("output", torch::nn::Linear(channels, channels));
}

torch::Tensor SlidingWindowImpl::forward(const torch::Tensor& x) {
  check_sequence("SlidingWindow", x, channels);
  const auto [q, k, v] = split_qkv(qkv(x), heads);
  return output(join_heads(attend(q, k, v)));
}

std::tuple<torch::Tensor, MixerState> SlidingWindowImpl::forward_with_state(const torch::Tensor& x,
                                                                            const MixerState& state) {
  check_causal("SlidingWindow", causal);
  check_sequence("SlidingWindow", x, channels);
  check_state("SlidingWindow", state, 2);
  const auto [q, new_k, new_v] = split_qkv(qkv(x), heads);
  const auto k = append(state.tensors[0], new_k);
  const auto v = append(state.tensors[1], new_v);
  const int64_t kept = std::min(window - 1, k.size(2));
  // Copies, which let go of the rest.
  const auto last = [kept](const torch::Tensor& y) { return y.narrow(2, y.size(2) - kept, kept).clone(); };
  return {output(join_heads(attend(q, k, v))), MixerState{{last(k), last(v)}}};
}

// q [B, heads, T, d / heads] -> the same; k and v [B, heads, before + T, d / heads].
torch::Tensor SlidingWindowImpl::attend(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v) const {
  const int64_t time = q.size(2);
  const int64_t keys = k.size(2);
  const int64_t before = keys - time;
  const int64_t left = std::min(window, keys) - 1;  // keys on that side of a query
  const int64_t right = causal ? 0 : left;
  const int64_t block = std::min(left + 1, time);
  const int64_t blocks = (time + block - 1) / block;
  const int64_t span = left + block + right;  // keys that a block of queries sees
  const int64_t padding = blocks * block - time;
  const auto spans = [&](const torch::Tensor& y) {  // -> [B heads, blocks, span, d / heads]
    return torch::constant_pad_nd(y, {0, 0, left - before, padding + right})
        .unfold(2, span, block)
        .transpose(-1, -2)
        .flatten(0, 1);
  };
  const auto queries = torch::constant_pad_nd(q, {0, 0, 0, padding}).unflatten(2, {blocks, block}).flatten(0, 1);

  // Query i of a block sees columns i to i + left + right of its span; column j of block n is key n block + j + before
  // - left, if there is one. Every row sees some, padding too.
  const auto index = torch::TensorOptions(torch::kInt64).device(q.device());
  const auto i = torch::arange(block, index).view({block, 1});
  const auto j = torch::arange(span, index);
  const auto key = torch::arange(blocks, index).view({blocks, 1, 1}) * block + j + (before - left);
  const auto mask = (j >= i) & (j <= i + left + right) & (key >= 0) & (key < keys);  // [blocks, block, span]
  const auto y = at::scaled_dot_product_attention(queries, spans(k), spans(v), mask.unsqueeze(0));
  return y.flatten(1, 2).narrow(1, 0, time).unflatten(0, {q.size(0), heads});
}

MixerState SlidingWindowImpl::initial_state(int64_t batch) const {
  check_causal("SlidingWindow", causal);
  const auto empty = empty_cache(batch, heads, channels, qkv);
  return {{empty, empty}};
}

}  // namespace aft

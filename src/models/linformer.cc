#include "models/linformer.h"

#include <cmath>

#include "models/mixer_parts.h"

namespace aft {

LinformerImpl::LinformerImpl(int64_t channels_, int64_t heads_, int64_t positions_, int64_t rank_)
    : channels(channels_), heads(heads_), positions(positions_), rank(rank_) {
  check_heads("Linformer", heads, channels);
  check_positive("Linformer", "positions", positions);
  check_positive("Linformer", "rank", rank);
  reset();
}

void LinformerImpl::reset() {
  qkv = register_module("qkv", torch::nn::Linear(channels, 3 * channels));
  output = register_module("output", torch::nn::Linear(channels, channels));
  const double deviation = 1 / std::sqrt(static_cast<double>(rank));
  e = register_parameter("e", torch::randn({rank, positions}) * deviation);
  f = register_parameter("f", torch::randn({rank, positions}) * deviation);
}

torch::Tensor LinformerImpl::forward(const torch::Tensor& x) {
  check_sequence("Linformer", x, channels);
  const int64_t time = x.size(1);
  check_positions("Linformer", time, positions);
  const auto [q, k, v] = split_qkv(qkv(x), heads);
  const auto along_time = [time](const torch::Tensor& table, const torch::Tensor& y) {
    return torch::linear(y.transpose(2, 3), table.narrow(1, 0, time)).transpose(2, 3);  // [B, heads, rank, d / heads]
  };
  return output(join_heads(at::scaled_dot_product_attention(q, along_time(e, k), along_time(f, v))));
}

}  // namespace aft

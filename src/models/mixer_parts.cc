#include "models/mixer_parts.h"

#include <sstream>
#include <string>

#include "aft/error.h"

namespace aft {
namespace {

template <typename... Words>
[[noreturn]] void fail(const char* mixer, const Words&... words) {
  std::ostringstream text;
  text << mixer << ": ";
  (text << ... << words);
  throw Error(text.str());
}

}  // namespace

void check_positive(const char* mixer, const char* name, int64_t value) {
  if (value < 1) fail(mixer, name, ": expected at least 1, got ", value, "; set it");
}

void check_heads(const char* mixer, int64_t heads, int64_t channels) {
  check_positive(mixer, "channels", channels);
  check_positive(mixer, "heads", heads);
  if (channels % heads != 0) {
    fail(mixer, "heads: expected a divisor of channels = ", channels, ", got ", heads, "; change one of them");
  }
}

void check_sequence(const char* mixer, const torch::Tensor& x, int64_t channels) {
  if (x.dim() != 3 || x.size(2) != channels || x.size(0) < 1 || x.size(1) < 1) {
    fail(mixer, "x: expected [batch, time, ", channels, "], batch and time at least 1, got ", x.sizes(),
         "; reshape it, or make the mixer with other channels");
  }
}

void check_positions(const char* mixer, int64_t end, int64_t positions) {
  if (end > positions) {
    fail(mixer, "x: expected at most positions = ", positions, " in all, got ", end,
         "; shorten it, or make the mixer with more positions");
  }
}

void check_causal(const char* mixer, bool causal) {
  if (!causal) fail(mixer, "causal: expected true for a state, got false; run the whole sequence at once");
}

void check_state(const char* mixer, const MixerState& state, size_t tensors) {
  if (state.tensors.size() != tensors) {
    fail(mixer, "state: expected ", tensors, " tensors, got ", state.tensors.size(),
         "; begin with this mixer's initial_state()");
  }
}

torch::Tensor split_heads(const torch::Tensor& x, int64_t heads) {
  return x.unflatten(2, {heads, x.size(2) / heads}).transpose(1, 2);
}

torch::Tensor join_heads(const torch::Tensor& x) { return x.transpose(1, 2).flatten(2); }

std::array<torch::Tensor, 3> split_qkv(const torch::Tensor& qkv, int64_t heads) {
  const auto parts = qkv.chunk(3, 2);
  return {split_heads(parts[0], heads), split_heads(parts[1], heads), split_heads(parts[2], heads)};
}

torch::Tensor append(const torch::Tensor& cached, const torch::Tensor& x) {
  // Without anything to join, x keeps its dtype: under autocast that is not the weights'.
  return cached.size(2) == 0 ? x : torch::cat({cached, x}, 2);
}

torch::Tensor empty_cache(int64_t batch, int64_t heads, int64_t channels, const torch::nn::Linear& layer) {
  return torch::empty({batch, heads, 0, channels / heads}, layer->weight.options().requires_grad(false));
}

}  // namespace aft

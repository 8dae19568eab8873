#include "models/synthesizer.h"

#include <cmath>
#include <limits>
#include <utility>

#include "aft/error.h"
#include "models/mixer_parts.h"

namespace aft {

HeadLinearImpl::HeadLinearImpl(int64_t heads_, int64_t inputs_, int64_t outputs_)
    : heads(heads_), inputs(inputs_), outputs(outputs_) {
  reset();
}

void HeadLinearImpl::reset() {
  const double bound = 1 / std::sqrt(static_cast<double>(inputs));  // as torch::nn::Linear
  weight = register_parameter("weight", torch::empty({heads, outputs, inputs}).uniform_(-bound, bound));
  bias = register_parameter("bias", torch::empty({heads, outputs}).uniform_(-bound, bound));
}

torch::Tensor HeadLinearImpl::forward(const torch::Tensor& x, int64_t count) {
  return torch::baddbmm(bias.narrow(1, 0, count).unsqueeze(1), x, weight.narrow(1, 0, count).transpose(1, 2));
}

SynthesizerImpl::SynthesizerImpl(int64_t channels_, int64_t heads_, int64_t positions_, std::string kind_, bool causal_)
    : channels(channels_), heads(heads_), positions(positions_), kind(std::move(kind_)), causal(causal_) {
  check_heads("Synthesizer", heads, channels);
  check_positive("Synthesizer", "positions", positions);
  if (kind != "random" && kind != "dense") {
    throw Error("Synthesizer: kind: expected \"random\" or \"dense\", got \"" + kind + "\"; set one of them");
  }
  reset();
}

void SynthesizerImpl::reset() {
  value = register_module("value", torch::nn::Linear(channels, channels));
  output = register_module("output", torch::nn::Linear(channels, channels));
  if (kind == "random") {
    r = register_parameter("r", torch::randn({heads, positions, positions}));
  } else {
    const int64_t width = channels / heads;
    hidden = register_module("hidden", HeadLinear(heads, width, width));
    scores = register_module("scores", HeadLinear(heads, width, positions));
  }
}

torch::Tensor SynthesizerImpl::forward(const torch::Tensor& x) {
  check_sequence("Synthesizer", x, channels);
  check_positions("Synthesizer", x.size(1), positions);
  return mix(x, split_heads(value(x), heads));
}

std::tuple<torch::Tensor, MixerState> SynthesizerImpl::forward_with_state(const torch::Tensor& x,
                                                                          const MixerState& state) {
  check_causal("Synthesizer", causal);
  check_sequence("Synthesizer", x, channels);
  check_state("Synthesizer", state, 1);
  check_positions("Synthesizer", state.tensors[0].size(2) + x.size(1), positions);
  const auto v = append(state.tensors[0], split_heads(value(x), heads));
  return {mix(x, v), MixerState{{v}}};
}

// x [B, T, d], the last of the positions that v [B, heads, sources, d / heads] has -> [B, T, d].
torch::Tensor SynthesizerImpl::mix(const torch::Tensor& x, const torch::Tensor& v) {
  const int64_t batch = x.size(0);
  const int64_t time = x.size(1);
  const int64_t sources = v.size(2);
  const int64_t before = sources - time;
  const auto weights = [&](const torch::Tensor& a) {  // [..., T, sources]
    if (!causal) return a.softmax(-1);
    const auto future = torch::ones({time, sources}, x.options().dtype(torch::kBool)).triu(before + 1);
    return a.masked_fill(future, -std::numeric_limits<double>::infinity()).softmax(-1);
  };
  if (kind == "random") {
    // One product a head for the whole batch, whose weights are the same.
    const auto a = weights(r.narrow(1, before, time).narrow(2, 0, sources));
    const auto y = torch::matmul(a, v.permute({1, 2, 0, 3}).flatten(2));  // [heads, T, B d / heads]
    return output(y.unflatten(2, {batch, channels / heads}).permute({2, 1, 0, 3}).flatten(2));
  }
  const auto rows = x.unflatten(2, {heads, channels / heads}).permute({2, 0, 1, 3}).flatten(1, 2);
  const auto a = scores(hidden(rows, channels / heads).relu(), sources).unflatten(1, {batch, time});
  return output(join_heads(torch::matmul(weights(a), v.transpose(0, 1)).transpose(0, 1)));
}

MixerState SynthesizerImpl::initial_state(int64_t batch) const {
  check_causal("Synthesizer", causal);
  return {{empty_cache(batch, heads, channels, value)}};
}

}  // namespace aft

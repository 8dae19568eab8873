#include "models/mixers.h"

#include "aft/error.h"
#include "aft/torch.h"
#include "models/attention.h"

namespace aft {
namespace {

MixerState pack(const State& state) {
  return {{state.position, state.max, state.den, state.num, state.ring_key, state.ring_value}};
}

State unpack(const MixerState& state) {
  const auto& t = state.tensors;
  return {t[0], t[1], t[2], t[3], t[4], t[5]};
}

/// For the layers of aft/torch.h, whose state is aft::State.
template <typename Holder>
Mixer wrap_aft(Holder layer) {
  return {layer.ptr(), [layer](const torch::Tensor& x) mutable { return layer->forward(x); },
          [layer](const torch::Tensor& x, const MixerState& state) mutable {
            auto [y, next] = layer->forward_with_state(x, unpack(state));
            return std::make_tuple(y, pack(next));
          },
          [layer](int64_t batch) { return pack(layer->initial_state(batch)); }};
}

Mixer make_aft_simple(const ModelConfig& config) {
  nn::AFTSimpleOptions options;
  options.channels = config.channels;
  return wrap_aft(nn::AFTSimple(options));
}

Mixer make_aft_local(const ModelConfig& config) {
  nn::AFTLocalOptions options;
  options.channels = config.channels;
  options.context = config.context;
  options.window = config.window;
  options.factor_channels = config.factor_channels;
  return wrap_aft(nn::AFTLocal(options));
}

Mixer make_aft_full(const ModelConfig& config) {
  nn::AFTFullOptions options;
  options.channels = config.channels;
  options.context = config.context;
  options.factor_channels = config.factor_channels;
  return wrap_aft(nn::AFTFull(options));
}

Mixer make_aft_conv1d(const ModelConfig& config) {
  nn::AFTConv1dOptions options;
  options.channels = config.channels;
  options.heads = config.heads;
  options.kernel = config.window;
  return wrap_aft(nn::AFTConv1d(options));
}

Mixer make_attention(const ModelConfig& config) {
  Attention layer(config.channels, config.heads);
  return {
      layer.ptr(), [layer](const torch::Tensor& x) mutable { return layer->forward(x); },
      [layer](const torch::Tensor& x, const MixerState& state) mutable { return layer->forward_with_state(x, state); },
      [layer](int64_t batch) { return layer->initial_state(batch); }};
}

double no_factors(const ModelConfig& /*config*/) { return 0; }
double context_factors(const ModelConfig& config) {
  return 2.0 * static_cast<double>(config.context) * static_cast<double>(config.factor_channels);
}

double conv1d_kernels(const ModelConfig& config) {
  return static_cast<double>(config.heads) * (static_cast<double>(config.window) + 2);
}

struct Entry {
  const char* name;
  Mixer (*make)(const ModelConfig& config);
  double (*own_parameters)(const ModelConfig& config);  // beside the qkv and output projections
};

// A new mixer is one line here.
constexpr Entry kMixers[] = {
    {"aft_simple", make_aft_simple, no_factors},     {"aft_local", make_aft_local, context_factors},
    {"aft_conv1d", make_aft_conv1d, conv1d_kernels}, {"aft_full", make_aft_full, context_factors},
    {"attention", make_attention, no_factors},
};

const Entry& find(const ModelConfig& config) {
  std::string known;
  for (const Entry& entry : kMixers) {
    if (config.mixer == entry.name) return entry;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw Error("model.mixer: expected one of " + known + ", got " + config.mixer);
}

}  // namespace

Mixer make_mixer(const ModelConfig& config) { return find(config).make(config); }

double mixer_parameter_count(const ModelConfig& config) {
  const auto d = static_cast<double>(config.channels);
  const double qkv = 2 * d + static_cast<double>(key_channels(config));
  return qkv * d + qkv + d * d + d + find(config).own_parameters(config);
}

}  // namespace aft

#include "models/mixers.h"

#include "aft/error.h"
#include "aft/torch.h"
#include "config/architecture.h"
#include "models/attention.h"
#include "models/linear_attention.h"
#include "models/linformer.h"
#include "models/mlp_mixer.h"
#include "models/sliding_window.h"
#include "models/synthesizer.h"
#include "runtime/mixer/mixer.h"

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

/// For the layers of this folder, whose state is a MixerState.
template <typename Holder>
Mixer wrap(Holder layer) {
  return {
      layer.ptr(), [layer](const torch::Tensor& x) mutable { return layer->forward(x); },
      [layer](const torch::Tensor& x, const MixerState& state) mutable { return layer->forward_with_state(x, state); },
      [layer](int64_t batch) { return layer->initial_state(batch); }};
}

/// For layers that see all positions at once and have no state.
template <typename Holder>
Mixer wrap_stateless(Holder layer, const char* name) {
  const auto refuse = [name]() -> Error {
    return Error(std::string("state: ") + name + " is not causal and has none");
  };
  return {
      layer.ptr(), [layer](const torch::Tensor& x) mutable { return layer->forward(x); },
      [refuse](const torch::Tensor&, const MixerState&) -> std::tuple<torch::Tensor, MixerState> { throw refuse(); },
      [refuse](int64_t) -> MixerState { throw refuse(); }};
}

Mixer make_aft_simple(const ModelConfig& config) {
  nn::AFTSimpleOptions options;
  options.channels = config.channels;
  options.causal = is_causal(config);
  options.gate = runtime::gate_of(config);
  return wrap_aft(nn::AFTSimple(options));
}

Mixer make_aft_local(const ModelConfig& config) {
  nn::AFTLocalOptions options;
  options.channels = config.channels;
  options.context = positions(config);
  options.window = config.mixer.window;
  options.factor_channels = config.mixer.factor_channels;
  options.causal = is_causal(config);
  options.gate = runtime::gate_of(config);
  return wrap_aft(nn::AFTLocal(options));
}

Mixer make_aft_full(const ModelConfig& config) {
  nn::AFTFullOptions options;
  options.channels = config.channels;
  options.context = positions(config);
  options.factor_channels = config.mixer.factor_channels;
  options.causal = is_causal(config);
  options.gate = runtime::gate_of(config);
  return wrap_aft(nn::AFTFull(options));
}

Mixer make_aft_conv1d(const ModelConfig& config) {
  nn::AFTConv1dOptions options;
  options.channels = config.channels;
  options.heads = config.mixer.heads;
  options.kernel = config.mixer.window;
  options.causal = is_causal(config);
  options.gate = runtime::gate_of(config);
  return wrap_aft(nn::AFTConv1d(options));
}

Mixer make_aft_conv2d(const ModelConfig& config) {
  nn::AFTConv2dOptions options;
  options.channels = config.channels;
  options.heads = config.mixer.heads;
  options.kernel = config.mixer.window;
  options.gate = runtime::gate_of(config);
  options.grid = patch_grid(config);
  options.reparameterised = config.mixer.reparameterised;
  options.global = config.mixer.global;
  return wrap_stateless(nn::AFTConv2d(options), "aft_conv2d");
}

Mixer make_attention(const ModelConfig& config) {
  return wrap(Attention(config.channels, config.mixer.heads, is_causal(config)));
}

Mixer make_linear_attention(const ModelConfig& config) {
  return wrap(LinearAttention(config.channels, config.mixer.heads, is_causal(config)));
}

Mixer make_sliding_window(const ModelConfig& config) {
  return wrap(SlidingWindow(config.channels, config.mixer.heads, config.mixer.window, is_causal(config)));
}

Mixer make_synthesizer(const ModelConfig& config) {
  return wrap(
      Synthesizer(config.channels, config.mixer.heads, positions(config), config.mixer.weights, is_causal(config)));
}

Mixer make_linformer(const ModelConfig& config) {
  return wrap_stateless(Linformer(config.channels, config.mixer.heads, positions(config), config.mixer.rank),
                        "linformer");
}

Mixer make_mlp_mixer(const ModelConfig& config) {
  return wrap_stateless(MlpMixer(positions(config), config.mixer.hidden), "mlp_mixer");
}

struct Entry {
  const char* name;
  Mixer (*make)(const ModelConfig& config);
};

// A new mixer is one line here, and an entry of src/config/mixers.cc.
constexpr Entry kMixers[] = {
    {"aft_simple", make_aft_simple},
    {"aft_local", make_aft_local},
    {"aft_conv1d", make_aft_conv1d},
    {"aft_conv2d", make_aft_conv2d},
    {"aft_full", make_aft_full},
    {"attention", make_attention},
    {"linear_attention", make_linear_attention},
    {"sliding_window", make_sliding_window},
    {"linformer", make_linformer},
    {"synthesizer", make_synthesizer},
    {"mlp_mixer", make_mlp_mixer},
};

}  // namespace

Mixer make_mixer(const ModelConfig& config) {
  for (const Entry& entry : kMixers) {
    if (config.mixer.name == entry.name) return entry.make(config);
  }
  throw Error("mixer.name: no module here is called " + config.mixer.name);
}

}  // namespace aft

#pragma once

#include <functional>
#include <memory>
#include <tuple>

#include "models/models.h"

namespace aft {

/// A sequence mixer: [B, T, d] -> [B, T, d], causal. `module` holds its parameters under the names of the model file.
struct Mixer {
  std::shared_ptr<torch::nn::Module> module;
  std::function<torch::Tensor(const torch::Tensor& x)> forward;
  std::function<std::tuple<torch::Tensor, MixerState>(const torch::Tensor& x, const MixerState& state)>
      forward_with_state;
  std::function<MixerState(int64_t batch)> initial_state;
};

/// The mixer named by config.mixer. Throws aft::Error with the known names for an unknown one.
Mixer make_mixer(const ModelConfig& config);

/// Numbers in the parameters of the mixer named by config.mixer.
double mixer_parameter_count(const ModelConfig& config);

}  // namespace aft

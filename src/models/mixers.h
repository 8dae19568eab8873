#pragma once

#include <functional>
#include <memory>
#include <tuple>

#include "models/model.h"

namespace aft {

/// A sequence mixer: [B, T, d] -> [B, T, d]. Those without a state throw in the two functions that
/// need one. `module` holds its parameters under the names of the model file.
struct Mixer {
  std::shared_ptr<torch::nn::Module> module;
  std::function<torch::Tensor(const torch::Tensor& x)> forward;
  std::function<std::tuple<torch::Tensor, MixerState>(const torch::Tensor& x, const MixerState& state)>
      forward_with_state;
  std::function<MixerState(int64_t batch)> initial_state;
};

/// The mixer that the config names. Throws aft::Error with the known names for an unknown one.
Mixer make_mixer(const ModelConfig& config);

}  // namespace aft

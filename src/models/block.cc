#include "models/block.h"

namespace aft {

torch::nn::LayerNorm layer_norm(int64_t channels) {
  constexpr double kEps = 1e-5;
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({channels}).eps(kEps));
}

torch::Tensor drop(const torch::Tensor& x, const ModelConfig& config, bool training) {
  return config.dropout > 0 && training ? torch::dropout(x, config.dropout, true) : x;
}

void MLPImpl::reset() {
  up = register_module("up", torch::nn::Linear(config.channels, config.mlp_channels));
  down = register_module("down", torch::nn::Linear(config.mlp_channels, config.channels));
}

void Block::reset() {
  mixer_norm = register_module("mixer_norm", layer_norm(config.channels));
  mixer = make_mixer(config);
  mlp_norm = register_module("mlp_norm", layer_norm(config.channels));
  mlp = register_module("mlp", std::make_shared<MLPImpl>(config));
  register_module("mixer", mixer.module);
}

torch::nn::ModuleList make_blocks(const ModelConfig& config) {
  torch::nn::ModuleList blocks;
  for (int64_t layer = 0; layer < config.layers; ++layer) blocks->push_back(std::make_shared<Block>(config));
  return blocks;
}

Block& block(const torch::nn::ModuleList& blocks, size_t layer) { return *blocks->ptr<Block>(layer); }

torch::Tensor run_blocks(const torch::nn::ModuleList& blocks, torch::Tensor x, ModelState* state, bool training,
                         const Saw& saw) {
  for (size_t i = 0; i < blocks->size(); ++i) {
    Block& layer = block(blocks, i);
    torch::Tensor mixed;
    if (state) {
      std::tie(mixed, state->layers[i]) = layer.mixer.forward_with_state(layer.mixer_norm(x), state->layers[i]);
    } else {
      mixed = layer.mixer.forward(layer.mixer_norm(x));
    }
    saw("blocks." + std::to_string(i) + ".mixer", mixed);
    x = x + drop(mixed, layer.config, training);
    const auto lifted = layer.mlp->forward(layer.mlp_norm(x));
    saw("blocks." + std::to_string(i) + ".mlp", lifted);
    x = x + drop(lifted, layer.config, training);
  }
  return x;
}

}  // namespace aft

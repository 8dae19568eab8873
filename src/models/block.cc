#include "models/block.h"

namespace aft {

torch::nn::LayerNorm layer_norm(const ModelConfig& config) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({config.channels}).eps(config.norm_eps));
}

torch::Tensor keep_or_drop(const torch::Tensor& x, const ModelConfig& config, int64_t layer, bool training) {
  if (config.stochastic_depth == 0 || !training || layer == 0) return x;
  const double stays =
      1 - config.stochastic_depth * static_cast<double>(layer) / static_cast<double>(config.layers - 1);
  std::vector<int64_t> shape(static_cast<size_t>(x.dim()), 1);
  shape[0] = x.size(0);
  return x * torch::empty(shape, x.options()).bernoulli_(stays).div_(stays);
}

torch::Tensor drop(const torch::Tensor& x, const ModelConfig& config, bool training) {
  return config.dropout > 0 && training ? torch::dropout(x, config.dropout, true) : x;
}

void MLPImpl::reset() {
  up = register_module("up", torch::nn::Linear(config.channels, config.mlp_channels));
  down = register_module("down", torch::nn::Linear(config.mlp_channels, config.channels));
}

void Block::reset() {
  mixer_norm = register_module("mixer_norm", layer_norm(config));
  mixer = make_mixer(config);
  mlp_norm = register_module("mlp_norm", layer_norm(config));
  mlp = register_module("mlp", std::make_shared<MLPImpl>(config));
  register_module("mixer", mixer.module);
  if (config.layer_scale > 0) {
    const auto start = torch::full({config.channels}, config.layer_scale);
    mixer_scale = register_parameter("mixer_scale", start.clone());
    mlp_scale = register_parameter("mlp_scale", start.clone());
  }
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
    const auto branch = [&](const char* name, const torch::Tensor& y, const torch::Tensor& scale) {
      saw("blocks." + std::to_string(i) + name, y);
      const auto dropped = drop(y, layer.config, training);
      return keep_or_drop(scale.defined() ? dropped * scale : dropped, layer.config, static_cast<int64_t>(i), training);
    };
    x = x + branch(".mixer", mixed, layer.mixer_scale);
    x = x + branch(".mlp", layer.mlp->forward(layer.mlp_norm(x)), layer.mlp_scale);
  }
  return x;
}

}  // namespace aft

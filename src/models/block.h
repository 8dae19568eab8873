#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <functional>
#include <memory>
#include <string>

#include "models/mixers.h"
#include "models/model.h"

// What the models have in common: pre-LayerNorm blocks of a mixer and a two-layer GELU MLP, dropout on both residual
// branches (Zhai et al. 2021, section 4.2; Vaswani et al. 2017), and of classifiers LayerScale (Touvron et al. 2021)
// and stochastic depth (Huang et al. 2016).

namespace aft {

/// The layer norm of the model's channels and eps.
torch::nn::LayerNorm layer_norm(const ModelConfig& config);

/// What training leaves of a branch of layer `layer`: of each example, x [B, ...], all or nothing. The branch is left
/// out with a probability that rises linearly from 0 in the first layer to stochastic_depth in the last, and what stays
/// is divided by the probability to stay. Else x itself.
torch::Tensor keep_or_drop(const torch::Tensor& x, const ModelConfig& config, int64_t layer, bool training);

/// Dropout as the config says while training; else x itself.
torch::Tensor drop(const torch::Tensor& x, const ModelConfig& config, bool training);

struct MLPImpl : torch::nn::Cloneable<MLPImpl> {
  explicit MLPImpl(const ModelConfig& config_) : config(config_) { reset(); }
  void reset() override;
  torch::Tensor forward(const torch::Tensor& x) { return down(torch::gelu(up(x))); }
  ModelConfig config;
  torch::nn::Linear up{nullptr};
  torch::nn::Linear down{nullptr};
};

struct Block : torch::nn::Cloneable<Block> {
  explicit Block(const ModelConfig& config_) : config(config_) { reset(); }
  void reset() override;
  ModelConfig config;
  torch::nn::LayerNorm mixer_norm{nullptr};
  Mixer mixer;
  torch::Tensor mixer_scale;  // [d], LayerScale's; undefined where the model has none
  torch::nn::LayerNorm mlp_norm{nullptr};
  std::shared_ptr<MLPImpl> mlp;
  torch::Tensor mlp_scale;
};

torch::nn::ModuleList make_blocks(const ModelConfig& config);
Block& block(const torch::nn::ModuleList& blocks, size_t layer);

using Saw = std::function<void(const std::string& name, const torch::Tensor& value)>;

/// x [B, T, d] through all blocks; `state`, if there is one, is read and moved on. `saw` hears each branch.
torch::Tensor run_blocks(const torch::nn::ModuleList& blocks, torch::Tensor x, ModelState* state, bool training,
                         const Saw& saw);

}  // namespace aft

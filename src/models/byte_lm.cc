#include <ATen/CPUGeneratorImpl.h>

#include <cmath>

#include "aft/error.h"
#include "models/mixers.h"
#include "models/models.h"

namespace aft {
namespace {

constexpr double kNormEps = 1e-5;

torch::nn::LayerNorm layer_norm(int64_t channels) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({channels}).eps(kNormEps));
}

struct MLPImpl : torch::nn::Cloneable<MLPImpl> {
  explicit MLPImpl(const ModelConfig& config_) : config(config_) { reset(); }
  void reset() override {
    up = register_module("up", torch::nn::Linear(config.channels, config.mlp_channels));
    down = register_module("down", torch::nn::Linear(config.mlp_channels, config.channels));
  }
  torch::Tensor forward(const torch::Tensor& x) { return down(torch::gelu(up(x))); }
  ModelConfig config;
  torch::nn::Linear up{nullptr};
  torch::nn::Linear down{nullptr};
};

}  // namespace

struct ByteLMImpl::Embedding : torch::nn::Cloneable<Embedding> {
  explicit Embedding(const ModelConfig& config_) : config(config_) { reset(); }
  void reset() override {
    token = register_module("token", torch::nn::Embedding(config.vocabulary, config.channels));
    position = register_module("position", torch::nn::Embedding(config.context, config.channels));
  }
  ModelConfig config;
  torch::nn::Embedding token{nullptr};
  torch::nn::Embedding position{nullptr};
};

struct ByteLMImpl::Block : torch::nn::Cloneable<Block> {
  explicit Block(const ModelConfig& config_) : config(config_) { reset(); }
  void reset() override {
    mixer_norm = register_module("mixer_norm", layer_norm(config.channels));
    mixer = make_mixer(config);
    mlp_norm = register_module("mlp_norm", layer_norm(config.channels));
    mlp = register_module("mlp", std::make_shared<MLPImpl>(config));
    register_module("mixer", mixer.module);
  }
  ModelConfig config;
  torch::nn::LayerNorm mixer_norm{nullptr};
  Mixer mixer;
  torch::nn::LayerNorm mlp_norm{nullptr};
  std::shared_ptr<MLPImpl> mlp;
};

MixerState MixerState::detach() const {
  MixerState state = *this;
  for (auto& tensor : state.tensors) tensor = tensor.detach();
  return state;
}

ByteLMState ByteLMState::detach() const {
  ByteLMState state{position, {}};
  for (const auto& layer : layers) state.layers.push_back(layer.detach());
  return state;
}

ByteLMImpl::ByteLMImpl(const ModelConfig& config_) : config(config_) {
  validate(config);
  parameter_count(config);  // throws for what no memory could hold
  reset();
}

void ByteLMImpl::reset() {
  observe_ = nullptr;
  embedding_ = register_module("embedding", std::make_shared<Embedding>(config));
  blocks_ = register_module("blocks", torch::nn::ModuleList());
  for (int64_t layer = 0; layer < config.layers; ++layer) blocks_->push_back(std::make_shared<Block>(config));
  norm_ = register_module("norm", layer_norm(config.channels));
  head_ = register_module("head",
                          torch::nn::Linear(torch::nn::LinearOptions(config.channels, config.vocabulary).bias(false)));
  initialise(0);
}

ByteLMImpl::Block& ByteLMImpl::block(size_t layer) const { return *blocks_->ptr<Block>(layer); }

void ByteLMImpl::initialise(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  const auto generator = at::detail::createCPUGenerator(seed);
  // On whatever device the model is, it begins with the same weights.
  const auto draw = [&](torch::Tensor& value, double spread) {
    value.copy_(torch::empty(value.sizes(), value.options().device(torch::kCPU)).normal_(0, spread, generator));
  };
  const double residual_scale = 1 / std::sqrt(2.0 * static_cast<double>(config.layers));
  for (auto& item : named_parameters()) {
    const std::string& name = item.key();
    auto& value = item.value();
    if (name.ends_with(".u") || name.ends_with(".v")) {
      draw(value, 0.01);
    } else if (name.ends_with("mixer.weight")) {
      draw(value, 1);
    } else if (name.ends_with(".gamma") || name.ends_with(".beta")) {
      value.zero_();
    } else if (name.ends_with("norm.weight")) {
      value.fill_(1);
    } else if (name.ends_with(".bias")) {
      value.zero_();
    } else {
      const bool ends_branch = name.ends_with(".output.weight") || name.ends_with(".down.weight");
      draw(value, ends_branch ? 0.02 * residual_scale : 0.02);
    }
  }
}

torch::Tensor ByteLMImpl::forward(const torch::Tensor& bytes) { return run(bytes, nullptr); }

std::tuple<torch::Tensor, ByteLMState> ByteLMImpl::forward_with_state(const torch::Tensor& bytes,
                                                                      const ByteLMState& state) {
  ByteLMState next = state;
  auto logits = run(bytes, &next);
  return {std::move(logits), std::move(next)};
}

torch::Tensor ByteLMImpl::run(const torch::Tensor& bytes, ByteLMState* state) {
  if (bytes.dim() != 2 || bytes.scalar_type() != torch::kInt64) {
    throw Error("bytes: expected an int64 tensor [B, T], got " + std::string(bytes.toString()) + " of " +
                std::to_string(bytes.dim()) + " dimensions");
  }
  const int64_t time = bytes.size(1);
  const int64_t begin = state ? state->position : 0;
  if (begin + time > config.context) {
    throw Error("bytes: expected positions below the context " + std::to_string(config.context) + ", got up to " +
                std::to_string(begin + time - 1) + "; cut the text into windows of at most context bytes");
  }
  const auto drop = [&](const torch::Tensor& x) {
    return config.dropout > 0 && is_training() ? torch::dropout(x, config.dropout, true) : x;
  };
  auto x = drop(embedding_->token(bytes) + embedding_->position->weight.narrow(0, begin, time));  // [B, T, d]
  saw("embedding", x);
  for (size_t i = 0; i < blocks_->size(); ++i) {
    Block& layer = block(i);
    torch::Tensor mixed;
    if (state) {
      std::tie(mixed, state->layers[i]) = layer.mixer.forward_with_state(layer.mixer_norm(x), state->layers[i]);
    } else {
      mixed = layer.mixer.forward(layer.mixer_norm(x));
    }
    saw("blocks." + std::to_string(i) + ".mixer", mixed);
    x = x + drop(mixed);
    const auto lifted = layer.mlp->forward(layer.mlp_norm(x));
    saw("blocks." + std::to_string(i) + ".mlp", lifted);
    x = x + drop(lifted);
  }
  if (state) state->position = begin + time;
  auto logits = head_(norm_(x));
  saw("head", logits);
  return logits;
}

ByteLMState ByteLMImpl::initial_state(int64_t batch) const {
  ByteLMState state;
  for (size_t i = 0; i < blocks_->size(); ++i) state.layers.push_back(block(i).mixer.initial_state(batch));
  return state;
}

void ByteLMImpl::observe(std::function<void(const std::string&, const torch::Tensor&)> observe) {
  observe_ = std::move(observe);
}

void ByteLMImpl::saw(const std::string& name, const torch::Tensor& value) const {
  if (observe_) observe_(name, value);
}

int64_t parameter_count(const ModelConfig& config) {
  const auto d = static_cast<double>(config.channels);
  const auto f = static_cast<double>(config.mlp_channels);
  const double block = 4 * d + mixer_parameter_count(config) + 2 * d * f + f + d;
  const double total = (2.0 * static_cast<double>(config.vocabulary) + static_cast<double>(config.context)) * d +
                       static_cast<double>(config.layers) * block + 2 * d;
  if (total > 9007199254740992.0) throw Error("model: expected at most 2^53 parameters; make it smaller");
  return static_cast<int64_t>(total);
}

bool is_linear_weight(const std::string& parameter_name) {
  return parameter_name.ends_with(".weight") && !parameter_name.ends_with("norm.weight") &&
         !parameter_name.ends_with("mixer.weight") &&  // the kernel of aft_conv1d, of which only the direction matters
         !parameter_name.starts_with("embedding.");
}

}  // namespace aft

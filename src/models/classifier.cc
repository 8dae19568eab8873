#include "models/classifier.h"

#include "aft/error.h"
#include "config/architecture.h"
#include "models/block.h"

namespace aft {
namespace {

[[noreturn]] void no_state() {
  throw Error("state: a classifier sees all positions at once and has none; it is for language models");
}

}  // namespace

struct ClassifierImpl::Embedding : torch::nn::Cloneable<Embedding> {
  explicit Embedding(const ModelConfig& config_) : config(config_) { reset(); }
  void reset() override {
    const int64_t numbers = config.patch * config.patch * config.colors;
    patch = register_module("patch", torch::nn::Linear(numbers, config.channels));
    if (config.class_token) class_token = register_parameter("class", torch::zeros({config.channels}));
    if (config.position_embedding) {
      position = register_module("position", torch::nn::Embedding(positions(config), config.channels));
    }
  }
  ModelConfig config;
  torch::nn::Linear patch{nullptr};
  torch::Tensor class_token;  // [d]
  torch::nn::Embedding position{nullptr};
};

ClassifierImpl::ClassifierImpl(const ModelConfig& config_) : Model(config_) {
  validate(config);
  parameter_count(config);  // throws for what no memory could hold
  reset();
}

void ClassifierImpl::reset() {
  observe({});
  embedding_ = register_module("embedding", std::make_shared<Embedding>(config));
  blocks_ = register_module("blocks", make_blocks(config));
  norm_ = register_module("norm", layer_norm(config));
  if (config.classes > 0) head_ = register_module("head", torch::nn::Linear(config.channels, config.classes));
  initialise(0);
}

torch::Tensor ClassifierImpl::forward(const torch::Tensor& images) {
  const int64_t side = config.patch;
  const int64_t rows = config.height / side;
  const int64_t columns = config.width / side;
  if (images.dim() != 4 || images.size(1) != config.height || images.size(2) != config.width ||
      images.size(3) != config.colors) {
    throw Error("images: expected a tensor [B, " + std::to_string(config.height) + ", " + std::to_string(config.width) +
                ", " + std::to_string(config.colors) + "], got one of " + std::to_string(images.dim()) +
                " dimensions or another size");
  }
  const auto patches = images.view({images.size(0), rows, side, columns, side, config.colors})
                           .permute({0, 1, 3, 2, 4, 5})
                           .reshape({images.size(0), rows * columns, side * side * config.colors});
  const auto hear = [this](const std::string& name, const torch::Tensor& value) { saw(name, value); };
  auto x = embedding_->patch(patches);  // [B, T, d]
  if (config.class_token) {
    x = torch::cat({embedding_->class_token.to(x.scalar_type()).expand({x.size(0), 1, -1}), x}, 1);
  }
  if (config.position_embedding) x = x + embedding_->position->weight;
  x = drop(x, config, is_training());
  saw("embedding", x);
  x = run_blocks(blocks_, x, nullptr, is_training(), hear);
  const auto normal = norm_(x);
  auto y = config.class_token ? normal.select(1, 0) : normal.mean(1);
  if (config.classes > 0) y = head_(y);
  saw("head", y);
  return y;
}

std::tuple<torch::Tensor, ModelState> ClassifierImpl::forward_with_state(const torch::Tensor& /*images*/,
                                                                         const ModelState& /*state*/) {
  no_state();
}

ModelState ClassifierImpl::initial_state(int64_t /*batch*/) const { no_state(); }

}  // namespace aft

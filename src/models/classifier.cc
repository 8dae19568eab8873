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
    position = register_module("position", torch::nn::Embedding(positions(config), config.channels));
  }
  ModelConfig config;
  torch::nn::Linear patch{nullptr};
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
  norm_ = register_module("norm", layer_norm(config.channels));
  head_ = register_module("head", torch::nn::Linear(config.channels, config.classes));
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
  auto x = drop(embedding_->patch(patches) + embedding_->position->weight, config, is_training());  // [B, T, d]
  saw("embedding", x);
  x = run_blocks(blocks_, x, nullptr, is_training(), hear);
  auto logits = head_(norm_(x).mean(1));
  saw("head", logits);
  return logits;
}

std::tuple<torch::Tensor, ModelState> ClassifierImpl::forward_with_state(const torch::Tensor& /*images*/,
                                                                         const ModelState& /*state*/) {
  no_state();
}

ModelState ClassifierImpl::initial_state(int64_t /*batch*/) const { no_state(); }

}  // namespace aft

#include "models/language_model.h"

#include "aft/error.h"
#include "config/architecture.h"
#include "models/block.h"

namespace aft {

struct LanguageModelImpl::Embedding : torch::nn::Cloneable<Embedding> {
  explicit Embedding(const ModelConfig& config_) : config(config_) { reset(); }
  void reset() override {
    token = register_module("token", torch::nn::Embedding(token_rows(config), config.channels));
    position = register_module("position", torch::nn::Embedding(positions(config), config.channels));
  }
  ModelConfig config;
  torch::nn::Embedding token{nullptr};
  torch::nn::Embedding position{nullptr};
};

LanguageModelImpl::LanguageModelImpl(const ModelConfig& config_) : Model(config_) {
  validate(config);
  parameter_count(config);  // throws for what no memory could hold
  reset();
}

void LanguageModelImpl::reset() {
  observe({});
  embedding_ = register_module("embedding", std::make_shared<Embedding>(config));
  blocks_ = register_module("blocks", make_blocks(config));
  norm_ = register_module("norm", layer_norm(config));
  head_ = register_module("head",
                          torch::nn::Linear(torch::nn::LinearOptions(config.channels, config.vocabulary).bias(false)));
  initialise(0);
}

torch::Tensor LanguageModelImpl::forward(const torch::Tensor& tokens) { return run(tokens, nullptr); }

std::tuple<torch::Tensor, ModelState> LanguageModelImpl::forward_with_state(const torch::Tensor& tokens,
                                                                            const ModelState& state) {
  ModelState next = state;
  auto logits = run(tokens, &next);
  return {std::move(logits), std::move(next)};
}

torch::Tensor LanguageModelImpl::run(const torch::Tensor& tokens, ModelState* state) {
  if (tokens.dim() != 2 || tokens.scalar_type() != torch::kInt64) {
    throw Error("tokens: expected an int64 tensor [B, T], got " + std::string(tokens.toString()) + " of " +
                std::to_string(tokens.dim()) + " dimensions");
  }
  const int64_t time = tokens.size(1);
  const int64_t begin = state ? state->position : 0;
  if (begin + time > positions(config)) {
    throw Error("tokens: expected positions below the context " + std::to_string(positions(config)) + ", got up to " +
                std::to_string(begin + time - 1) + "; cut the text into windows of at most context bytes");
  }
  const auto hear = [this](const std::string& name, const torch::Tensor& value) { saw(name, value); };
  auto x = embedding_->token(tokens) + embedding_->position->weight.narrow(0, begin, time);  // [B, T, d]
  x = drop(x, config, is_training());
  saw("embedding", x);
  x = run_blocks(blocks_, x, state, is_training(), hear);
  if (state) state->position = begin + time;
  auto logits = head_(norm_(x));
  saw("head", logits);
  return logits;
}

ModelState LanguageModelImpl::initial_state(int64_t batch) const {
  ModelState state;
  for (size_t i = 0; i < blocks_->size(); ++i) state.layers.push_back(block(blocks_, i).mixer.initial_state(batch));
  return state;
}

}  // namespace aft

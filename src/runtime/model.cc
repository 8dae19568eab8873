#include "aft/runtime/model.h"

#include "aft/error.h"
#include "config/architecture.h"
#include "runtime/mixer/mixer.h"
#include "runtime/weights.h"

namespace aft::runtime {

Model Model::load(const std::filesystem::path& path, ThreadPool& pool) {
  const ModelFile file(path);
  if (!is_causal(file.config())) {
    throw Error(file.path().string() + ": expected a model that predicts the next token, got a " + file.config().model +
                ", which aft classify runs");
  }
  require_mixer(file.config(), file.path().string());
  Model model;
  model.weights_ = std::make_shared<const Weights>(file, pool);
  return model;
}

void Model::require(std::string_view model, std::string_view for_what) const {
  if (config().model == model) return;
  const std::string remedy = config().model == "pixel_lm" ? "; aft sample draws its images, aft-train eval measures it"
                                                          : "; aft generate writes its texts, aft eval measures it";
  throw Error(std::string(for_what) + ": expected a model of kind " + std::string(model) + ", got a " + config().model +
              remedy);
}

const ModelConfig& Model::config() const { return weights_->config; }

int64_t Model::parameters() const { return weights_->parameters; }

int64_t Model::matrix_parameters() const {
  int64_t count = 0;
  for (const Block& block : weights_->blocks) {
    for (const Linear* linear : {&block.qkv, &block.output, &block.up, &block.down}) {
      count += linear->outputs * linear->inputs;
    }
  }
  return count;
}

int64_t Model::weight_bytes_per_token() const {
  const ModelConfig& c = config();
  const int64_t d = c.channels;
  // Per block: matrices apart, two norms, biases, a row of the band for each head. Once: a row of each embedding, the
  // norm, the head.
  const int64_t block = 4 * d + qkv_channels(c) + d + c.mlp_channels + d +
                        (weights_->has_band ? weights_->heads * (weights_->left + 1) : 0);
  const int64_t floats = matrix_parameters() + c.layers * block + 2 * d + 2 * d + c.vocabulary * d;
  return floats * static_cast<int64_t>(sizeof(float));
}

}  // namespace aft::runtime

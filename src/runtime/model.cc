#include "aft/runtime/model.h"

#include "runtime/weights.h"

namespace aft::runtime {

Model Model::load(const std::filesystem::path& path, ThreadPool& pool) {
  Model model;
  model.weights_ = std::make_shared<const Weights>(ModelFile(path), pool);
  return model;
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
  const int64_t block = 4 * d + 2 * d + key_channels(c) + d + c.mlp_channels + d +
                        (weights_->has_band ? weights_->heads * (weights_->left + 1) : 0);
  const int64_t floats = matrix_parameters() + c.layers * block + 2 * d + 2 * d + c.vocabulary * d;
  return floats * static_cast<int64_t>(sizeof(float));
}

}  // namespace aft::runtime

#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "models/model.h"

namespace aft {

/// byte_lm and pixel_lm of Zhai et al. 2021, sections 4.1 and 4.2: token and learned position embedding, blocks, norm,
/// head. The values of an image, row by row, red, green and blue of a pixel one after another, share one token table
/// and one head; before the first stands the start token, the last row of the table.
class LanguageModelImpl : public torch::nn::Cloneable<LanguageModelImpl>, public Model {
 public:
  /// Throws aft::Error for an impossible configuration. Values are those of initialise(0).
  explicit LanguageModelImpl(const ModelConfig& config_);
  /// New parameters of the values of initialise(0); nothing observes them.
  void reset() override;

  torch::nn::Module& module() override { return *this; }
  [[nodiscard]] const torch::nn::Module& module() const override { return *this; }
  torch::Tensor forward(const torch::Tensor& tokens) override;
  std::tuple<torch::Tensor, ModelState> forward_with_state(const torch::Tensor& tokens,
                                                           const ModelState& state) override;
  [[nodiscard]] ModelState initial_state(int64_t batch) const override;

 private:
  struct Embedding;
  torch::Tensor run(const torch::Tensor& tokens, ModelState* state);

  // Children themselves, never theirs: clone() replaces what is inside.
  std::shared_ptr<Embedding> embedding_;
  torch::nn::ModuleList blocks_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Linear head_{nullptr};
};
TORCH_MODULE(LanguageModel);

}  // namespace aft

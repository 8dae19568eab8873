#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "models/model.h"

namespace aft {

/// Image classifier: patches of patch x patch pixels through one linear layer (as Dosovitskiy et al. 2021), a class
/// token before them and learned positions where the config has these, blocks whose mixer sees all positions, norm, the
/// class token or the mean over all positions, and a linear head, without which it gives features [B, d].
class ClassifierImpl : public torch::nn::Cloneable<ClassifierImpl>, public Model {
 public:
  /// Throws aft::Error for an impossible configuration. Values are those of initialise(0).
  explicit ClassifierImpl(const ModelConfig& config_);
  void reset() override;

  torch::nn::Module& module() override { return *this; }
  [[nodiscard]] const torch::nn::Module& module() const override { return *this; }
  torch::Tensor forward(const torch::Tensor& images) override;
  std::tuple<torch::Tensor, ModelState> forward_with_state(const torch::Tensor& images,
                                                           const ModelState& state) override;
  [[nodiscard]] ModelState initial_state(int64_t batch) const override;

 private:
  struct Embedding;

  std::shared_ptr<Embedding> embedding_;
  torch::nn::ModuleList blocks_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Linear head_{nullptr};
};
TORCH_MODULE(Classifier);

}  // namespace aft

#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>
#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "aft/runtime/model_config.h"

// Models for LibTorch. Parameter names are those of the model file, so saving is writing named_parameters().

namespace aft {

/// What one mixer remembers between two chunks of a sequence; only the mixer that made it knows what each tensor is.
struct MixerState {
  std::vector<torch::Tensor> tensors;
  [[nodiscard]] MixerState detach() const;
};

/// What a byte language model remembers: the number of positions read, and each layer's own state.
struct ByteLMState {
  int64_t position = 0;
  std::vector<MixerState> layers;
  /// The same values cut off the graph, for truncated back-propagation through time.
  [[nodiscard]] ByteLMState detach() const;
};

/// A sequence mixer chosen by name; see src/models/mixers.h.
struct Mixer;

/// Byte language model of Zhai et al. 2021, section 4.2: pre-LayerNorm blocks of mixer and two-layer GELU MLP, learned
/// positions, dropout on the embedding and on both residual branches.
class ByteLMImpl : public torch::nn::Cloneable<ByteLMImpl> {
 public:
  /// Throws aft::Error for an impossible configuration. Values are those of initialise(0).
  explicit ByteLMImpl(const ModelConfig& config_);
  /// New parameters of the values of initialise(0); nothing observes them.
  void reset() override;

  /// Linear and embedding weights N(0, 0.02^2), those that end a residual branch divided by sqrt(2 layers); position
  /// factors u, v N(0, 0.01^2); biases 0; norms 1 and 0. Drawn from a generator of its own, the same on every device.
  void initialise(uint64_t seed);

  /// bytes int64 [B, T], T at most config.context -> logits [B, T, 256] of each next byte.
  torch::Tensor forward(const torch::Tensor& bytes);
  /// Goes on from `state`; going past config.context throws aft::Error.
  std::tuple<torch::Tensor, ByteLMState> forward_with_state(const torch::Tensor& bytes, const ByteLMState& state);
  [[nodiscard]] ByteLMState initial_state(int64_t batch) const;

  /// Calls `observe(name, value)` for what each part of the next forwards returns; an empty function stops it.
  void observe(std::function<void(const std::string& name, const torch::Tensor& value)> observe);

  ModelConfig config;  // read only: the parameters are made for it

 private:
  struct Embedding;
  struct Block;
  [[nodiscard]] Block& block(size_t layer) const;
  torch::Tensor run(const torch::Tensor& bytes, ByteLMState* state);
  void saw(const std::string& name, const torch::Tensor& value) const;

  // Children themselves, never theirs: clone() replaces what is inside.
  std::shared_ptr<Embedding> embedding_;
  torch::nn::ModuleList blocks_{nullptr};
  torch::nn::LayerNorm norm_{nullptr};
  torch::nn::Linear head_{nullptr};
  std::function<void(const std::string&, const torch::Tensor&)> observe_;
};
TORCH_MODULE(ByteLM);

/// Numbers in the model's parameters, without making it. Throws aft::Error if there are more than 2^53.
int64_t parameter_count(const ModelConfig& config);

/// Whether weight decay applies: the weights of linear layers, not embeddings, biases, norms or position factors.
bool is_linear_weight(const std::string& parameter_name);

/// Writes the model file (f32, config in the metadata) from any device, whole or not at all. Throws aft::Error.
void save_model(const ByteLM& model, const std::filesystem::path& path);

/// The model of a model file, a trainer's checkpoint or a run folder, on the CPU. Throws aft::Error.
ByteLM load_model(const std::filesystem::path& path);

/// Gives the model the weights of a model file, a checkpoint or a run folder. Throws aft::Error, changing nothing, for
/// what does not fit: runtime::ModelFile::check_fits(). Tensors whose names match a pattern of `skip` ("head.*") stay
/// as they are; so do the rows of a table of positions that a model of a shorter context does not have.
void load_weights(ByteLM& model, const std::filesystem::path& path, const std::vector<std::string>& skip = {});

}  // namespace aft

#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "aft/config/model_config.h"

// Models for LibTorch. Parameter names are those of the model file, so saving is writing named_parameters().

namespace aft {

/// What one mixer remembers between two chunks of a sequence; only the mixer that made it knows what each tensor is.
struct MixerState {
  std::vector<torch::Tensor> tensors;
  [[nodiscard]] MixerState detach() const;
};

/// What a model remembers: the number of positions read, and each layer's own state.
struct ModelState {
  int64_t position = 0;
  std::vector<MixerState> layers;
  /// The same values cut off the graph, for truncated back-propagation through time.
  [[nodiscard]] ModelState detach() const;
};

/// What every model is to the trainer: logits of its input, whatever that is.
class Model {
 public:
  explicit Model(const ModelConfig& config_) : config(config_) {}
  virtual ~Model() = default;

  /// The module that holds the parameters: this very object.
  virtual torch::nn::Module& module() = 0;
  [[nodiscard]] virtual const torch::nn::Module& module() const = 0;

  /// Language models: tokens int64 [B, T] -> logits [B, T, vocabulary] of each next one. Classifiers: images f32 [B,
  /// height, width, colors] -> logits [B, classes].
  virtual torch::Tensor forward(const torch::Tensor& input) = 0;
  /// Goes on from `state`; language models alone, others throw aft::Error, as going past the last position does.
  virtual std::tuple<torch::Tensor, ModelState> forward_with_state(const torch::Tensor& input,
                                                                   const ModelState& state) = 0;
  [[nodiscard]] virtual ModelState initial_state(int64_t batch) const = 0;

  /// The values that the architecture table says, drawn from a generator of its own, the same on every device.
  void initialise(uint64_t seed);

  /// Calls `observe(name, value)` for what each part of the next forwards returns; an empty function stops it.
  void observe(std::function<void(const std::string& name, const torch::Tensor& value)> observe);

  ModelConfig config;  // read only: the parameters are made for it

 protected:
  void saw(const std::string& name, const torch::Tensor& value) const;

 private:
  std::function<void(const std::string&, const torch::Tensor&)> observe_;
};

using ModelPtr = std::shared_ptr<Model>;

/// The model that the config describes, of the values of initialise(0). Throws aft::Error for an impossible one.
ModelPtr make_model(const ModelConfig& config);

/// Writes the model file (f32, config in the metadata) from any device, whole or not at all. Throws aft::Error.
void save_model(const Model& model, const std::filesystem::path& path);

/// The model of a model file, a trainer's checkpoint or a run folder, on the CPU; a classifier for images of side x
/// side pixels unless that is 0. Throws aft::Error.
ModelPtr load_model(const std::filesystem::path& path, int64_t side = 0);

/// Gives the model the weights of a model file, a checkpoint or a run folder. Throws aft::Error, changing nothing, for
/// what does not fit: runtime::ModelFile::check_fits(). Tensors whose names match a pattern of `skip` ("head.*") stay
/// as they are; so do the rows of a table of positions that a model of a shorter context does not have.
void load_weights(Model& model, const std::filesystem::path& path, const std::vector<std::string>& skip = {});

}  // namespace aft

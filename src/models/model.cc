#include "models/model.h"

#include <ATen/CPUGeneratorImpl.h>

#include <map>

#include "aft/error.h"
#include "config/architecture.h"
#include "models/classifier.h"
#include "models/language_model.h"

namespace aft {

MixerState MixerState::detach() const {
  MixerState state = *this;
  for (auto& tensor : state.tensors) tensor = tensor.detach();
  return state;
}

ModelState ModelState::detach() const {
  ModelState state{position, {}};
  for (const auto& layer : layers) state.layers.push_back(layer.detach());
  return state;
}

void Model::initialise(uint64_t seed) {
  const torch::NoGradGuard no_grad;
  const auto generator = at::detail::createCPUGenerator(seed);
  std::map<std::string, TensorSpec> specs;
  for (const TensorSpec& spec : model_tensors(config)) specs[spec.name] = spec;
  for (auto& item : module().named_parameters()) {
    const TensorSpec& spec = specs.at(item.key());
    torch::Tensor& value = item.value();
    if (spec.init == Init::kNormal) {
      // On whatever device the model is, it begins with the same weights.
      value.copy_(torch::empty(value.sizes(), value.options().device(torch::kCPU)).normal_(0, spec.spread, generator));
    } else {
      value.fill_(spec.init == Init::kConstant ? spec.spread : spec.init == Init::kOnes ? 1 : 0);
    }
  }
}

void Model::observe(std::function<void(const std::string&, const torch::Tensor&)> observe) {
  observe_ = std::move(observe);
}

void Model::saw(const std::string& name, const torch::Tensor& value) const {
  if (observe_) observe_(name, value);
}

ModelPtr make_model(const ModelConfig& config) {
  if (config.model == "classifier") return std::make_shared<ClassifierImpl>(config);
  return std::make_shared<LanguageModelImpl>(config);
}

}  // namespace aft

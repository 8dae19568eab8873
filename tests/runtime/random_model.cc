#include "random_model.h"

#include <cmath>
#include <random>

#include "aft/io/safetensors.h"
#include "config/architecture.h"

namespace aft::test {

std::map<std::string, std::vector<int64_t>> shapes_of(const ModelConfig& config) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const TensorSpec& spec : model_tensors(config)) shapes[spec.name] = spec.shape;
  return shapes;
}

Tensors random_tensors(const ModelConfig& config, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;
  Tensors tensors;
  for (const auto& [name, shape] : shapes_of(config)) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    std::vector<float>& values = tensors[name];
    const bool is_norm = name.ends_with("norm.weight");
    const bool is_matrix = shape.size() == 2 && name.find("embedding") == std::string::npos;
    const float scale = is_matrix ? 1.5F / std::sqrt(static_cast<float>(shape[1])) : 0.5F;
    for (int64_t i = 0; i < count; ++i) values.push_back(normal(generator) * scale + (is_norm ? 1.0F : 0.0F));
  }
  return tensors;
}

void write_model(const std::filesystem::path& path, const ModelConfig& config, const Tensors& tensors) {
  std::map<std::string, TensorView> views;
  const auto shapes = shapes_of(config);
  for (const auto& [name, values] : tensors) {
    views[name] = {"F32", shapes.at(name), reinterpret_cast<const std::byte*>(values.data()),
                   values.size() * sizeof(float)};
  }
  write_safetensors(
      path, views,
      {{"format", "aft"}, {"format_version", "2"}, {"library_version", "0.1.0"}, {"config", to_json(config)}});
}

ModelConfig small_config(const std::string& mixer) {
  ModelConfig config;
  config.mixer.name = mixer;
  config.layers = 3;
  config.channels = 21;
  config.mlp_channels = 50;
  config.context = 48;
  config.mixer.heads = 7;
  config.mixer.window = 6;
  config.mixer.factor_channels = 5;
  return config;
}

ModelConfig small_pixel_config(const std::string& mixer, int64_t colors) {
  ModelConfig config = small_config(mixer);
  config.model = "pixel_lm";
  config.height = 5;
  config.width = 3;
  config.colors = colors;
  return config;
}

}  // namespace aft::test

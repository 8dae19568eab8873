// write_seeds FOLDER: a valid model file of each mixer in FOLDER/model_file, recipes in FOLDER/recipe.

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "aft/runtime/model_file.h"
#include "aft/train.h"

namespace {

namespace fs = std::filesystem;

void write_text(const fs::path& path, const std::string& text) {
  aft::write_file_atomically(path, text.data(), text.size());
}

/// As small as a model can be: every width 1.
void write_model(const fs::path& path, const aft::ModelConfig& config) {
  const std::vector<float> weights(static_cast<size_t>(config.vocabulary), 0.5F);
  std::map<std::string, aft::TensorView> tensors;
  for (const auto& [name, shape] : aft::runtime::model_tensors(config)) {
    size_t count = 1;
    for (const int64_t extent : shape) count *= static_cast<size_t>(extent);
    tensors[name] = {"F32", shape, reinterpret_cast<const std::byte*>(weights.data()), count * sizeof(float)};
  }
  aft::write_safetensors(
      path, tensors,
      {{"format", "aft"}, {"format_version", "1"}, {"library_version", "0"}, {"config", aft::to_json(config)}});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const fs::path models = fs::path(argv[1]) / "model_file";
  const fs::path recipes = fs::path(argv[1]) / "recipe";
  fs::create_directories(models);
  fs::create_directories(recipes);
  aft::Recipe recipe;
  recipe.data.path = "text.xz";
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "attention"}) {
    aft::ModelConfig config;
    config.mixer = mixer;
    config.layers = config.channels = config.mlp_channels = config.context = config.heads = config.window =
        config.factor_channels = 1;
    write_model(models / mixer, config);
    write_text(models / (std::string(mixer) + ".json"), aft::to_json(config));
    recipe.model = config;
    write_text(recipes / mixer, aft::to_toml(recipe));
  }
  write_text(models / "header", R"({"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"__metadata__":{"x":"y"}})" +
                                    std::string(9, '\0'));
  write_text(recipes / "override", "train.lr=1e-3");
}

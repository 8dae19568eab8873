#include <map>

#include "aft/error.h"
#include "aft/models.h"
#include "aft/runtime/safetensors.h"

namespace aft {
namespace {

constexpr const char* kFormatVersion = "1";
constexpr const char* kCheckpointPrefix = "weights.";  // a trainer's checkpoint holds its weights under this

std::string shape_text(c10::IntArrayRef shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

const std::string& metadata(const SafetensorsFile& file, const char* key, const std::string& path) {
  const auto it = file.metadata().find(key);
  if (it == file.metadata().end()) throw Error(path + ": not a model of aft: its metadata has no " + key);
  return it->second;
}

}  // namespace

void save_model(const ByteLM& model, const std::filesystem::path& path) {
  std::map<std::string, TensorView> views;
  std::vector<torch::Tensor> owners;
  for (const auto& item : model->named_parameters()) {
    const auto value = owners.emplace_back(item.value().detach().to(torch::kFloat32).contiguous());
    views[item.key()] = {"F32", value.sizes().vec(), static_cast<const std::byte*>(value.const_data_ptr()),
                         static_cast<size_t>(value.nbytes())};
  }
  write_safetensors(path, views,
                    {{"format", "aft"},
                     {"format_version", kFormatVersion},
                     {"library_version", AFT_VERSION},
                     {"config", to_json(model->config)}});
}

ByteLM load_model(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const std::string name = path.string();
  const std::string& format = metadata(file, "format", name);
  if (format != "aft" && format != "aft-checkpoint") throw Error(name + ": not a model of aft");
  const std::string prefix = format == "aft" ? "" : kCheckpointPrefix;
  if (metadata(file, "format_version", name) != kFormatVersion) {
    throw Error(name + ": format version " + metadata(file, "format_version", name) + ", this version reads " +
                kFormatVersion + "; use the version of aft that wrote it");
  }
  const ModelConfig config = model_config_from_json(metadata(file, "config", name));
  int64_t numbers = 0;
  for (const auto& [key, tensor] : file.tensors()) {
    if (!key.starts_with(prefix)) continue;
    if (tensor.dtype != "F32") throw Error(name + ": " + key + ": expected F32, got " + tensor.dtype);
    numbers += static_cast<int64_t>(tensor.bytes / sizeof(float));
  }
  // Before the model is made: a config that asks for more than the file holds would allocate in vain.
  if (numbers != parameter_count(config)) {
    throw Error(name + ": its config means " + std::to_string(parameter_count(config)) + " parameters, it holds " +
                std::to_string(numbers));
  }
  ByteLM model(config);
  const torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    const auto it = file.tensors().find(prefix + item.key());
    if (it == file.tensors().end()) throw Error(name + ": the tensor " + item.key() + " is missing");
    const TensorView& view = it->second;
    if (item.value().sizes() != c10::IntArrayRef(view.shape)) {
      throw Error(name + ": " + item.key() + ": expected shape " + shape_text(item.value().sizes()) + ", got " +
                  shape_text(view.shape));
    }
    item.value().copy_(torch::from_blob(const_cast<std::byte*>(view.data), view.shape, torch::kFloat32));
  }
  return model;
}

}  // namespace aft

#include "aft/runtime/model_file.h"

#include <map>

#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "models/model.h"

namespace aft {
namespace {

/// Every parameter from the file, by its name; where the file has fewer rows, the first ones.
void copy_weights(const runtime::ModelFile& file, Model& model, const std::vector<std::string>& skip) {
  const torch::NoGradGuard no_grad;
  for (auto& item : model.module().named_parameters()) {
    if (runtime::matches_any(item.key(), skip)) continue;
    auto values = torch::empty(file.tensors().at(item.key()).shape, torch::kFloat32);
    file.read(item.key(), 0, values.numel(), values.mutable_data_ptr<float>());
    item.value().narrow(0, 0, values.size(0)).copy_(values);
  }
}

}  // namespace

void save_model(const Model& model, const std::filesystem::path& path) {
  std::map<std::string, TensorView> views;
  std::vector<torch::Tensor> owners;
  for (const auto& item : model.module().named_parameters()) {
    const auto value = owners.emplace_back(item.value().detach().to(torch::kCPU, torch::kFloat32).contiguous());
    views[item.key()] = {"F32", value.sizes().vec(), static_cast<const std::byte*>(value.const_data_ptr()),
                         static_cast<size_t>(value.nbytes())};
  }
  write_safetensors(path, views,
                    {{"format", "aft"},
                     {"format_version", "2"},
                     {"library_version", AFT_VERSION},
                     {"config", to_json(model.config)}});
}

void load_weights(Model& model, const std::filesystem::path& path, const std::vector<std::string>& skip) {
  const runtime::ModelFile file(path);
  file.check_fits(model.config, skip);
  copy_weights(file, model, skip);
}

ModelPtr load_model(const std::filesystem::path& path) {
  const runtime::ModelFile file(path);
  ModelPtr model = make_model(file.config());
  copy_weights(file, *model, {});
  return model;
}

}  // namespace aft

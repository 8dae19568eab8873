#include "aft/runtime/model_file.h"

#include <map>

#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "config/architecture.h"
#include "models/model.h"

namespace aft {
namespace {

/// Every parameter from the file, by its name; where the file has fewer rows, the first ones.
void copy_weights(const runtime::ModelFile& file, Model& model, const std::vector<std::string>& skip) {
  const torch::NoGradGuard no_grad;
  auto parameters = model.module().named_parameters();
  for (const TensorPiece& piece : model_pieces(model.config)) {
    if (runtime::matches_any(piece.name, skip) || runtime::matches_any(piece.tensor, skip)) continue;
    std::vector<float> values = file.values(model.config, piece);
    auto whole = parameters[piece.tensor].narrow(0, piece.row, piece.shape[0]);
    const int64_t rows = static_cast<int64_t>(values.size()) / (whole.numel() / whole.size(0));
    auto to = whole.narrow(0, 0, rows);
    to.copy_(torch::from_blob(values.data(), to.sizes()));
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
  write_safetensors(path, views, model_metadata(model.config));
}

void load_weights(Model& model, const std::filesystem::path& path, const std::vector<std::string>& skip) {
  const runtime::ModelFile file(path);
  file.check_fits(model.config, skip);
  copy_weights(file, model, skip);
}

ModelPtr load_model(const std::filesystem::path& path, int64_t side) {
  const runtime::ModelFile file(path);
  ModelPtr model = make_model(with_side(file.config(), side));
  file.check_fits(model->config);
  copy_weights(file, *model, {});
  return model;
}

}  // namespace aft

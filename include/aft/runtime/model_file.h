#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "aft/runtime/model_config.h"
#include "aft/runtime/safetensors.h"

namespace aft::runtime {

/// The tensors of a model of this config, name to shape: part of the file format (docs/model-file.md).
std::map<std::string, std::vector<int64_t>> model_tensors(const ModelConfig& config);

/// `path` if it is a file, the model.safetensors in it if it is a run folder.
std::filesystem::path find_model(const std::filesystem::path& path);

/// A model file, checked: format, version, config, and every tensor's name, type and shape. Missing, extra and
/// mis-shaped tensors are reported together. Nothing of the weights is read.
class ModelFile {
 public:
  /// `path`: a model file or a run folder.
  explicit ModelFile(const std::filesystem::path& path);

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const std::string& library_version() const { return library_version_; }
  [[nodiscard]] int64_t parameters() const { return parameters_; }
  /// f32, dense; a name that is not of the model throws aft::Error.
  [[nodiscard]] const float* tensor(const std::string& name) const;
  [[nodiscard]] const std::map<std::string, TensorView>& tensors() const { return file_.tensors(); }

 private:
  std::filesystem::path path_;
  SafetensorsFile file_;
  ModelConfig config_;
  std::string library_version_;
  int64_t parameters_ = 0;
};

}  // namespace aft::runtime

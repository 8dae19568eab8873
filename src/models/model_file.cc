#include "aft/runtime/model_file.h"

#include <fnmatch.h>

#include <algorithm>
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

bool matches_any(const std::string& name, const std::vector<std::string>& patterns) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return fnmatch(pattern.c_str(), name.c_str(), 0) == 0; });
}

/// Whether the first dimension counts positions, so that a model of a longer context has the same rows and more.
bool is_context_table(const std::string& name) {
  return name == "embedding.position.weight" || name.ends_with(".mixer.u") || name.ends_with(".mixer.v");
}

/// What does not fit, in one sentence; a foreign file may hold thousands of tensors.
class Problems {
 public:
  void add(const std::string& problem) {
    constexpr int64_t kMostNamed = 8;
    if (++count_ <= kMostNamed) text_ += (text_.empty() ? "" : "; ") + problem;
    if (count_ == kMostNamed + 1) text_ += "; and more";
  }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  std::string text_;
  int64_t count_ = 0;
};

/// The weights of a model file, or of a trainer's checkpoint, by the names of the model's parameters.
class WeightsFile {
 public:
  explicit WeightsFile(const std::filesystem::path& path) : name_(path.string()), file_(path) {
    const std::string format = metadata("format");
    if (format != "aft" && format != "aft-checkpoint") throw Error(name_ + ": not a model of aft");
    if (const std::string version = metadata("format_version"); version != kFormatVersion) {
      throw Error(name_ + ": format version " + version + ", this version reads " + kFormatVersion +
                  "; use the version of aft that wrote it");
    }
    config_ = model_config_from_json(metadata("config"));
    const std::string prefix = format == "aft" ? "" : kCheckpointPrefix;
    for (const auto& [key, tensor] : file_.tensors()) {
      if (key.starts_with(prefix)) tensors_[key.substr(prefix.size())] = tensor;
    }
  }

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const std::map<std::string, TensorView>& tensors() const { return tensors_; }

  void check(const ModelConfig& config, const std::vector<std::string>& skip) const {
    if (config.layers > static_cast<int64_t>(tensors_.size())) {
      throw Error(name_ + ": expected a model of " + std::to_string(config.layers) + " layers, got only " +
                  std::to_string(tensors_.size()) + " tensors");
    }
    const auto expected = runtime::model_tensors(config);
    for (const auto& pattern : skip) {
      const auto matches = [&](const auto& tensor) { return matches_any(tensor.first, {pattern}); };
      if (std::none_of(expected.begin(), expected.end(), matches) &&
          std::none_of(tensors_.begin(), tensors_.end(), matches)) {
        throw Error("skip: \"" + pattern + "\" matches no tensor of the model and none of " + name_);
      }
    }
    Problems problems;
    for (const auto& [name, shape] : expected) {
      if (matches_any(name, skip)) continue;
      const auto it = tensors_.find(name);
      if (it == tensors_.end()) {
        problems.add(name + " is missing");
      } else if (it->second.dtype != "F32") {
        problems.add(name + " has type " + it->second.dtype + ", expected F32");
      } else if (!fits(name, it->second.shape, shape)) {
        problems.add(name + " has shape " + shape_text(it->second.shape) + ", expected " + shape_text(shape));
      }
    }
    for (const auto& [name, tensor] : tensors_) {
      if (!expected.contains(name) && !matches_any(name, skip)) problems.add(name + " does not belong to the model");
    }
    if (!problems.text().empty()) throw Error(name_ + ": its tensors do not fit the model: " + problems.text());
  }

 private:
  static bool fits(const std::string& name, std::vector<int64_t> got, const std::vector<int64_t>& expected) {
    if (is_context_table(name) && !got.empty()) got[0] = std::max(got[0], expected[0]);
    return got == expected;
  }

  [[nodiscard]] std::string metadata(const std::string& key) const {
    const auto it = file_.metadata().find(key);
    if (it == file_.metadata().end()) throw Error(name_ + ": not a model of aft: its metadata has no " + key);
    return it->second;
  }

  std::string name_;
  SafetensorsFile file_;
  ModelConfig config_;
  std::map<std::string, TensorView> tensors_;
};

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

void check_weights(const std::filesystem::path& path, const ModelConfig& config, const std::vector<std::string>& skip) {
  const WeightsFile weights(path);
  weights.check(config, skip);
}

void load_weights(ByteLM& model, const std::filesystem::path& path, const std::vector<std::string>& skip) {
  const WeightsFile weights(path);
  weights.check(model->config, skip);
  const torch::NoGradGuard no_grad;
  for (auto& item : model->named_parameters()) {
    if (matches_any(item.key(), skip)) continue;
    const TensorView& view = weights.tensors().at(item.key());
    const auto value = torch::from_blob(const_cast<std::byte*>(view.data), view.shape, torch::kFloat32);
    // A table of the context may have fewer rows in the file than in the model.
    item.value().narrow(0, 0, view.shape[0]).copy_(value);
  }
}

ByteLM load_model(const std::filesystem::path& path) {
  const ModelConfig config = WeightsFile(path).config();
  check_weights(path, config, {});  // before the model is made: a config may ask for more than the file holds
  ByteLM model(config);
  load_weights(model, path);
  return model;
}

}  // namespace aft

#include "aft/runtime/model_file.h"

#include <fnmatch.h>

#include <algorithm>
#include <string_view>

#include "aft/error.h"

namespace aft::runtime {
namespace {

std::string text(const std::vector<int64_t>& shape) {
  std::string out;
  for (const int64_t extent : shape) out += (out.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + out + "]";
}

const std::string& metadata(const SafetensorsFile& file, const char* key, const std::string& where) {
  const auto found = file.metadata().find(key);
  if (found == file.metadata().end()) {
    throw Error(where + ": a safetensors file, but not a model of aft (no \"" + key + "\" in its metadata)");
  }
  return found->second;
}

constexpr std::string_view kCheckpointPrefix = "weights.";  // of the weights in a trainer's checkpoint

/// Lists of names in errors stop here: a foreign file may hold thousands of tensors.
constexpr int kMostNamed = 8;

void add_problem(std::string* list, int64_t* count, const std::string& problem) {
  if (++*count <= kMostNamed) *list += (list->empty() ? "" : "; ") + problem;
}

/// Whether the first dimension counts positions, so that a model of a longer context has the same rows and more.
bool is_context_table(const std::string& name) {
  return name == "embedding.position.weight" || name.ends_with(".mixer.u") || name.ends_with(".mixer.v");
}

}  // namespace

bool matches_any(const std::string& name, const std::vector<std::string>& patterns) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0; });
}

std::map<std::string, std::vector<int64_t>> model_tensors(const ModelConfig& config) {
  const int64_t d = config.channels;
  std::map<std::string, std::vector<int64_t>> tensors = {
      {"embedding.token.weight", {config.vocabulary, d}},
      {"embedding.position.weight", {config.context, d}},
      {"norm.weight", {d}},
      {"norm.bias", {d}},
      {"head.weight", {config.vocabulary, d}},
  };
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    tensors[block + "mixer_norm.weight"] = {d};
    tensors[block + "mixer_norm.bias"] = {d};
    tensors[block + "mixer.qkv.weight"] = {2 * d + key_channels(config), d};
    tensors[block + "mixer.qkv.bias"] = {2 * d + key_channels(config)};
    tensors[block + "mixer.output.weight"] = {d, d};
    tensors[block + "mixer.output.bias"] = {d};
    if (config.mixer == "aft_local" || config.mixer == "aft_full") {
      tensors[block + "mixer.u"] = {config.context, config.factor_channels};
      tensors[block + "mixer.v"] = {config.context, config.factor_channels};
    }
    if (config.mixer == "aft_conv1d") {
      tensors[block + "mixer.weight"] = {config.heads, config.window};
      tensors[block + "mixer.gamma"] = {config.heads};
      tensors[block + "mixer.beta"] = {config.heads};
    }
    tensors[block + "mlp_norm.weight"] = {d};
    tensors[block + "mlp_norm.bias"] = {d};
    tensors[block + "mlp.up.weight"] = {config.mlp_channels, d};
    tensors[block + "mlp.up.bias"] = {config.mlp_channels};
    tensors[block + "mlp.down.weight"] = {d, config.mlp_channels};
    tensors[block + "mlp.down.bias"] = {d};
  }
  return tensors;
}

std::filesystem::path find_model(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) return path;
  for (const char* name : {"model.safetensors", "checkpoint.safetensors"}) {
    if (std::filesystem::exists(path / name, error)) return path / name;
  }
  throw Error(path.string() + ": expected a model file or a run folder, found no model.safetensors in this folder");
}

ModelFile::ModelFile(const std::filesystem::path& path) : path_(find_model(path)), file_(path_) {
  const std::string where = path_.string();
  const std::string& format = metadata(file_, "format", where);
  is_checkpoint_ = format == "aft-checkpoint";
  if (format != "aft" && !is_checkpoint_) throw Error(where + ": a safetensors file, but not a model of aft");
  const std::string& version = metadata(file_, "format_version", where);
  if (version != "1") {
    throw Error(where + ": its format version is \"" + version.substr(0, 40) +
                "\", this aft reads 1; use a newer version of aft");
  }
  library_version_ = metadata(file_, "library_version", where);
  try {
    config_ = model_config_from_json(metadata(file_, "config", where));
  } catch (const Error& e) {
    throw Error(where + ": " + e.what());
  }

  const std::string_view prefix = is_checkpoint_ ? kCheckpointPrefix : "";
  for (const auto& [name, tensor] : file_.tensors()) {
    if (name.starts_with(prefix)) tensors_.emplace(name.substr(prefix.size()), tensor);
  }

  for (const auto& [name, tensor] : tensors_) parameters_ += static_cast<int64_t>(tensor.bytes / sizeof(float));
  check_fits(config_);
}

void ModelFile::check_fits(const ModelConfig& config, const std::vector<std::string>& skip) const {
  const std::string where = path_.string();
  // A config that asks for more layers than the file has tensors is wrong whatever their names: no endless list.
  if (config.layers > static_cast<int64_t>(tensors_.size())) {
    throw Error(where + ": expected a model of " + std::to_string(config.layers) + " layers, but the file holds only " +
                std::to_string(tensors_.size()) + " tensors");
  }
  auto expected = model_tensors(config);
  for (const std::string& pattern : skip) {
    const auto matches = [&](const auto& tensor) { return matches_any(tensor.first, {pattern}); };
    if (std::none_of(expected.begin(), expected.end(), matches) &&
        std::none_of(tensors_.begin(), tensors_.end(), matches)) {
      throw Error("\"" + pattern + "\" matches no tensor of the model and none of " + where);
    }
  }
  std::string problems;
  int64_t count = 0;
  for (auto& [name, shape] : expected) {
    if (matches_any(name, skip)) continue;
    if (is_context_table(name)) shape[0] = std::min(config.context, config_.context);
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      add_problem(&problems, &count, name + " is missing");
    } else if (found->second.dtype != "F32") {
      add_problem(&problems, &count, name + " has type " + found->second.dtype + ", expected F32");
    } else if (found->second.shape != shape) {
      add_problem(&problems, &count, name + " has shape " + text(found->second.shape) + ", expected " + text(shape));
    }
  }
  for (const auto& [name, tensor] : tensors_) {
    if (expected.count(name) == 0 && !matches_any(name, skip)) {
      add_problem(&problems, &count, name + " does not belong to the model");
    }
  }
  if (count > kMostNamed) problems += "; and " + std::to_string(count - kMostNamed) + " more";
  if (count > 0) throw Error(where + ": its tensors do not fit the model: " + problems);
}

void ModelFile::read(const std::string& name, int64_t begin, int64_t count, float* to) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw Error(path_.string() + ": the tensor " + name + " is missing");
  file_.read(found->second, static_cast<size_t>(begin) * sizeof(float), static_cast<size_t>(count) * sizeof(float), to);
}

}  // namespace aft::runtime

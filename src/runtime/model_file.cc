#include "aft/runtime/model_file.h"

#include <limits>

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

/// Lists of names in errors stop here: a foreign file may hold thousands of tensors.
constexpr int kMostNamed = 8;

void add_problem(std::string* list, int64_t* count, const std::string& problem) {
  if (++*count <= kMostNamed) *list += (list->empty() ? "" : "; ") + problem;
}

}  // namespace

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
  const std::filesystem::path inside = path / "model.safetensors";
  if (!std::filesystem::exists(inside, error)) {
    throw Error(path.string() + ": expected a model file or a run folder, found no model.safetensors in this folder");
  }
  return inside;
}

ModelFile::ModelFile(const std::filesystem::path& path) : path_(find_model(path)), file_(path_) {
  const std::string where = path_.string();
  if (metadata(file_, "format", where) != "aft") throw Error(where + ": a safetensors file, but not a model of aft");
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

  std::string problems;
  int64_t count = 0;
  // A config that asks for more layers than the file has tensors is wrong whatever their names: no endless list.
  if (config_.layers > static_cast<int64_t>(file_.tensors().size())) {
    throw Error(where + ": its config says " + std::to_string(config_.layers) + " layers, but the file holds only " +
                std::to_string(file_.tensors().size()) + " tensors");
  }
  const auto expected = model_tensors(config_);
  for (const auto& [name, shape] : expected) {
    const auto found = file_.tensors().find(name);
    if (found == file_.tensors().end()) {
      add_problem(&problems, &count, name + " is missing");
    } else if (found->second.dtype != "F32") {
      add_problem(&problems, &count, name + " has type " + found->second.dtype + ", expected F32");
    } else if (found->second.shape != shape) {
      add_problem(&problems, &count, name + " has shape " + text(found->second.shape) + ", expected " + text(shape));
    }
  }
  for (const auto& [name, tensor] : file_.tensors()) {
    if (expected.count(name) == 0) add_problem(&problems, &count, name + " does not belong to the model");
    parameters_ += static_cast<int64_t>(tensor.bytes / sizeof(float));
  }
  if (count > kMostNamed) problems += "; and " + std::to_string(count - kMostNamed) + " more";
  if (count > 0) throw Error(where + ": its tensors do not fit its config: " + problems);
}

const float* ModelFile::tensor(const std::string& name) const {
  const auto found = file_.tensors().find(name);
  if (found == file_.tensors().end()) throw Error(path_.string() + ": the tensor " + name + " is missing");
  return reinterpret_cast<const float*>(found->second.data);
}

}  // namespace aft::runtime

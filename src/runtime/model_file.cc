#include "aft/runtime/model_file.h"

#include <fnmatch.h>

#include <algorithm>
#include <map>
#include <string_view>

#include "aft/error.h"
#include "config/architecture.h"

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

/// What the names of the model's tensors begin with in a trainer's checkpoint: those of the averages of the weights
/// where the run keeps them, as they are what it validates and saves.
std::string_view checkpoint_prefix(const SafetensorsFile& file) {
  const auto first = file.tensors().lower_bound("average.");
  return first != file.tensors().end() && first->first.starts_with("average.") ? "average." : "weights.";
}

/// Lists of names in errors stop here: a foreign file may hold thousands of tensors.
constexpr int kMostNamed = 8;

void add_problem(std::string* list, int64_t* count, const std::string& problem) {
  if (++*count <= kMostNamed) *list += (list->empty() ? "" : "; ") + problem;
}

}  // namespace

bool matches_any(const std::string& name, const std::vector<std::string>& patterns) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return ::fnmatch(pattern.c_str(), name.c_str(), 0) == 0; });
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
  if (version != "1" && version != "2") {
    throw Error(where + ": its format version is \"" + version.substr(0, 40) +
                "\", this aft reads 1 and 2; use a newer version of aft");
  }
  format_version_ = std::stoll(version);
  library_version_ = metadata(file_, "library_version", where);
  try {
    config_ = model_config_from_json(metadata(file_, "config", where));
  } catch (const Error& e) {
    throw Error(where + ": " + e.what());
  }

  const std::string_view prefix = is_checkpoint_ ? checkpoint_prefix(file_) : "";
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
  std::map<std::string, TensorSpec> expected;
  for (const TensorSpec& spec : model_tensors(config)) expected[spec.name] = spec;
  for (const std::string& pattern : skip) {
    const auto matches = [&](const auto& tensor) { return matches_any(tensor.first, {pattern}); };
    if (std::none_of(expected.begin(), expected.end(), matches) &&
        std::none_of(tensors_.begin(), tensors_.end(), matches)) {
      throw Error("\"" + pattern + "\" matches no tensor of the model and none of " + where);
    }
  }
  std::string problems;
  int64_t count = 0;
  for (const auto& [name, spec] : expected) {
    if (matches_any(name, skip)) continue;
    std::vector<int64_t> shape = spec.shape;
    if (spec.rows_are_positions) shape[0] = std::min(shape[0], positions(config_));
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
    if (!expected.contains(name) && !matches_any(name, skip)) {
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

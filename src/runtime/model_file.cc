#include "aft/runtime/model_file.h"

#include <fnmatch.h>

#include <algorithm>
#include <map>
#include <string_view>

#include "aft/error.h"
#include "config/architecture.h"
#include "image/resize.h"
#include "io/tensor_problems.h"

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

void require_none(const TensorProblems& problems, const std::string& where) {
  if (problems.any()) throw Error(where + ": its tensors do not fit the model: " + problems.list());
}

/// A config that asks for more layers than the file has tensors is wrong whatever their names: no endless list.
void require_tensors_for(int64_t layers, size_t tensors, const std::string& where) {
  if (layers <= static_cast<int64_t>(tensors)) return;
  throw Error(where + ": expected a model of " + std::to_string(layers) + " layers, but the file holds only " +
              std::to_string(tensors) + " tensors");
}

/// What the file must have where the model has `piece`: the shape, or any number of places. `own` is the file's config.
std::vector<int64_t> wanted_shape(const TensorPiece& piece, const ModelConfig& config, const ModelConfig& own) {
  std::vector<int64_t> shape = piece.shape;
  if (piece.rows_of == RowsOf::kPositions) shape[0] = std::min(shape[0], positions(own));
  const bool images = own.model == config.model && own.class_token == config.class_token;
  if (piece.rows_of == RowsOf::kPlaces && images) shape[0] = positions(own);
  return shape;
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
  check_tensors();
}

/// Whether they are those of the config in the file.
void ModelFile::check_tensors() const {
  const std::string where = path_.string();
  require_tensors_for(config_.layers, tensors_.size(), where);
  TensorProblems problems;
  std::map<std::string, TensorSpec> expected;
  for (const TensorSpec& spec : model_tensors(config_)) expected.emplace(spec.name, spec);
  for (const auto& [name, spec] : expected) {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
      problems.add(name + " is missing");
    } else if (found->second.dtype != "F32") {
      problems.add(name + " has type " + found->second.dtype + ", expected F32");
    } else if (found->second.shape != spec.shape) {
      problems.add(name + " has shape " + text(found->second.shape) + ", expected " + text(spec.shape));
    }
  }
  for (const auto& [name, tensor] : tensors_) {
    if (!expected.contains(name)) problems.add(name + " does not belong to the model");
  }
  require_none(problems, where);
}

void ModelFile::check_fits(const ModelConfig& config, const std::vector<std::string>& skip) const {
  const std::string where = path_.string();
  require_tensors_for(config.layers, tensors_.size(), where);
  std::map<std::string, TensorPiece> expected;
  std::map<std::string, TensorPiece> own;
  for (const TensorPiece& piece : model_pieces(config)) expected.emplace(piece.name, piece);
  for (const TensorPiece& piece : model_pieces(config_)) own.emplace(piece.name, piece);
  const auto skipped = [](const TensorPiece& piece, const std::vector<std::string>& patterns) {
    return matches_any(piece.name, patterns) || matches_any(piece.tensor, patterns);
  };
  for (const std::string& pattern : skip) {
    const auto matches = [&](const auto& item) { return skipped(item.second, {pattern}); };
    if (std::none_of(expected.begin(), expected.end(), matches) && std::none_of(own.begin(), own.end(), matches)) {
      throw Error("\"" + pattern + "\" matches no tensor of the model and none of " + where);
    }
  }
  TensorProblems problems;
  for (const auto& [name, piece] : expected) {
    if (skipped(piece, skip)) continue;
    const std::vector<int64_t> shape = wanted_shape(piece, config, config_);
    const auto found = own.find(name);
    if (found == own.end()) {
      problems.add(name + " is missing");
    } else if (found->second.shape != shape) {
      problems.add(name + " has shape " + text(found->second.shape) + ", expected " + text(shape));
    }
  }
  for (const auto& [name, piece] : own) {
    if (!expected.contains(name) && !skipped(piece, skip)) problems.add(name + " does not belong to the model");
  }
  require_none(problems, where);
}

std::vector<float> ModelFile::values(const ModelConfig& config, const TensorPiece& piece) const {
  for (const TensorPiece& own : model_pieces(config_)) {
    if (own.name != piece.name) continue;
    int64_t columns = 1;
    for (size_t i = 1; i < own.shape.size(); ++i) columns *= own.shape[i];
    std::vector<float> values(static_cast<size_t>(own.shape[0] * columns));
    read(own.tensor, own.row * columns, static_cast<int64_t>(values.size()), values.data());
    if (piece.rows_of != RowsOf::kPlaces || patch_grid(config_) == patch_grid(config)) return values;
    // The class token's row stands before the grid and stays.
    const auto [rows, width] = patch_grid(config_);
    const auto [new_rows, new_width] = patch_grid(config);
    const auto first = values.begin() + (config_.class_token ? columns : 0);
    std::vector<float> fitted(values.begin(), first);
    const auto resized = resize_floats(std::span<const float>(first, values.end()), rows, width, columns, new_rows,
                                       new_width, Resampling::kBicubic);
    fitted.insert(fitted.end(), resized.begin(), resized.end());
    return fitted;
  }
  throw Error(path_.string() + ": the tensor " + piece.name + " is missing");
}

void ModelFile::read(const std::string& name, int64_t begin, int64_t count, float* to) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw Error(path_.string() + ": the tensor " + name + " is missing");
  file_.read(found->second, static_cast<size_t>(begin) * sizeof(float), static_cast<size_t>(count) * sizeof(float), to);
}

std::vector<float> ModelFile::read(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw Error(path_.string() + ": the tensor " + name + " is missing");
  std::vector<float> values(found->second.bytes / sizeof(float));
  file_.read(found->second, values.data());
  return values;
}

}  // namespace aft::runtime

#include "train/checkpoint.h"

#include <map>
#include <nlohmann/json.hpp>

#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "train/json_value.h"

namespace aft {
namespace {

constexpr const char* kFormat = "aft-checkpoint";
constexpr const char* kFormatVersion = "2";

/// Where a flat tensor of the optimizer stands in a checkpoint, if there is one.
struct FlatTensor {
  const char* prefix;
  const torch::Tensor& (Optimizer::*flat)() const;
};
constexpr FlatTensor kFlatTensors[] = {{"weights.", &Optimizer::weight},
                                       {"first_moment.", &Optimizer::first_moment},
                                       {"second_moment.", &Optimizer::second_moment},
                                       {"average.", &Optimizer::average}};

TensorView view_of(const torch::Tensor& tensor, const char* dtype) {
  return {dtype, tensor.sizes().vec(), static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

/// The one list of what a state holds: writing and reading walk it.
template <typename State, typename Visit>
void visit_state(State& state, Visit&& visit) {
  visit("step", state.step);
  visit("position", state.position);
  visit("evaluated", state.evaluated);
  visit("seconds", state.seconds);
  visit("logged_nats", state.logged.nats);
  visit("logged_targets", state.logged.targets);
  visit("logged_correct", state.logged.correct);
  visit("logged_correct_5", state.logged.correct_5);
  visit("data_checksum", state.data_checksum);
  visit("valid_checksum", state.valid_checksum);
  visit("test_checksum", state.test_checksum);
}

std::string to_json(const RunState& state) {
  nlohmann::ordered_json json;
  visit_state(state, [&](const char* key, const auto& value) { json[key] = value; });
  if (state.best) json["best"] = *state.best;
  return json.dump();
}

RunState state_from_json(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  RunState state;
  visit_state(state, [&](const char* key, auto& value) { read_value(json, key, value); });
  if (json.contains("best")) read_value(json, "best", state.best.emplace());
  return state;
}

const TensorEntry& find(const SafetensorsFile& file, const std::filesystem::path& path, std::string_view name,
                        const torch::Tensor& into, const char* dtype) {
  const auto it = file.tensors().find(std::string(name));
  if (it == file.tensors().end()) throw Error(path.string() + ": the tensor " + std::string(name) + " is missing");
  if (it->second.dtype != dtype || c10::IntArrayRef(it->second.shape) != into.sizes()) {
    throw Error(path.string() + ": " + it->first + ": type or shape does not fit the recipe's model");
  }
  return it->second;
}

}  // namespace

void save_checkpoint(const std::filesystem::path& path, const ModelConfig& config, const std::string& recipe_toml,
                     const RunState& state, const Optimizer& optimizer, const torch::Generator& generator) {
  std::map<std::string, TensorView> views;
  std::vector<torch::Tensor> owners;
  for (const FlatTensor& part : kFlatTensors) {
    if (!(optimizer.*part.flat)().defined()) continue;
    const torch::Tensor& flat = owners.emplace_back((optimizer.*part.flat)().cpu());
    for (const FlatEntry& entry : optimizer.entries()) {
      views[part.prefix + entry.name] = view_of(Optimizer::slice(flat, entry), "F32");
    }
  }
  const auto generator_state = generator.get_state();
  views["generator"] = view_of(generator_state, "U8");
  write_safetensors(path, views,
                    {{"format", kFormat},
                     {"format_version", kFormatVersion},
                     {"library_version", AFT_VERSION},
                     {"config", to_json(config)},
                     {"recipe", recipe_toml},
                     {"state", to_json(state)}});
}

CheckpointHeader read_checkpoint_header(const std::filesystem::path& path) {
  const SafetensorsFile file(path);
  const auto& metadata = file.metadata();
  const auto value = [&](const char* key) {
    const auto it = metadata.find(key);
    return it == metadata.end() ? std::string() : it->second;
  };
  if (value("format") == kFormat && value("format_version") == "1") {
    throw Error(path.string() +
                ": its run was begun by an earlier version of aft, whose recipes and state were others; " +
                "go on with that version, or begin a new run with its weights by train.init");
  }
  if (value("format") != kFormat || value("format_version") != kFormatVersion) {
    throw Error(path.string() + ": expected a checkpoint of format " + kFormat + " " + kFormatVersion + ", got " +
                value("format") + " " + value("format_version"));
  }
  try {
    return {value("recipe"), state_from_json(value("state"))};
  } catch (const std::exception& error) {
    throw Error(path.string() + ": the checkpoint's state cannot be read (" + error.what() +
                "); go on with the version of aft that wrote it, or begin a new run from its weights by train.init");
  }
}

void restore_checkpoint(const std::filesystem::path& path, Optimizer& optimizer, torch::Generator* generator) {
  const SafetensorsFile file(path);
  torch::Tensor generator_state;
  if (generator != nullptr) {
    generator_state = generator->get_state();
    file.read(find(file, path, "generator", generator_state, "U8"), generator_state.mutable_data_ptr());
  }
  for (const FlatTensor& part : kFlatTensors) {
    const torch::Tensor& flat = (optimizer.*part.flat)();
    if (!flat.defined()) continue;
    const torch::Tensor host = flat.cpu();  // the same tensor if it is there already
    for (const FlatEntry& entry : optimizer.entries()) {
      const auto into = Optimizer::slice(host, entry);
      file.read(find(file, path, part.prefix + entry.name, into, "F32"), into.mutable_data_ptr());
    }
    if (!flat.is_cpu()) flat.copy_(host);
  }
  if (generator != nullptr) generator->set_state(generator_state);
}

}  // namespace aft

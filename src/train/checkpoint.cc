#include "train/checkpoint.h"

#include <map>
#include <nlohmann/json.hpp>

#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "train/json_value.h"

namespace aft {
namespace {

constexpr const char* kFormat = "aft-checkpoint";
constexpr const char* kFormatVersion = "1";

struct Part {
  const char* prefix;
  const torch::Tensor& (Optimizer::*flat)() const;
};
constexpr Part kParts[] = {{"weights.", &Optimizer::weight},
                           {"first_moment.", &Optimizer::first_moment},
                           {"second_moment.", &Optimizer::second_moment}};

TensorView view_of(const torch::Tensor& tensor, const char* dtype) {
  return {dtype, tensor.sizes().vec(), static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

std::string to_json(const RunState& state) {
  nlohmann::ordered_json json = {{"step", state.step},
                                 {"position", state.position},
                                 {"evaluated", state.evaluated},
                                 {"seconds", state.seconds},
                                 {"loss_sum", state.loss_sum},
                                 {"loss_count", state.loss_count},
                                 {"data_checksum", state.data_checksum},
                                 {"valid_checksum", state.valid_checksum},
                                 {"test_checksum", state.test_checksum}};
  if (state.best_valid_bits) json["best_valid_bits"] = *state.best_valid_bits;
  return json.dump();
}

RunState state_from_json(const std::string& text) {
  const auto json = nlohmann::json::parse(text);
  RunState state;
  read_value(json, "step", state.step);
  read_value(json, "position", state.position);
  read_value(json, "evaluated", state.evaluated);
  read_value(json, "seconds", state.seconds);
  read_value(json, "loss_sum", state.loss_sum);
  read_value(json, "loss_count", state.loss_count);
  read_value(json, "data_checksum", state.data_checksum);
  read_value(json, "valid_checksum", state.valid_checksum);
  read_value(json, "test_checksum", state.test_checksum);
  if (json.contains("best_valid_bits")) read_value(json, "best_valid_bits", state.best_valid_bits.emplace());
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
  for (const Part& part : kParts) {
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
  for (const Part& part : kParts) {
    const torch::Tensor& flat = (optimizer.*part.flat)();
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

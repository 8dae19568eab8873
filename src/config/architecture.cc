#include "config/architecture.h"

#include <cmath>

#include "aft/error.h"
#include "config/specs.h"

namespace aft {
namespace specs {

std::vector<TensorSpec> linear(const std::string& name, int64_t outputs, int64_t inputs) {
  return {{.name = name + ".weight", .shape = {outputs, inputs}, .spread = kSpread, .decays = true},
          {.name = name + ".bias", .shape = {outputs}, .init = Init::kZeros}};
}

std::vector<TensorSpec> qkv(const ModelConfig& config) {
  auto list = linear("qkv", qkv_channels(config), config.channels);
  for (TensorSpec& spec : list) {
    const std::string end = spec.name.substr(spec.name.find('.'));
    if (query_channels(config) > 0) spec.parts.push_back({"query" + end, query_channels(config)});
    spec.parts.push_back({"key" + end, key_channels(config)});
    spec.parts.push_back({"value" + end, config.channels});
  }
  return list;
}

std::vector<TensorSpec> branch_end(const std::string& name, int64_t outputs, int64_t inputs,
                                   const ModelConfig& config) {
  auto list = linear(name, outputs, inputs);
  list[0].spread = kSpread * (1 / std::sqrt(2.0 * static_cast<double>(config.layers)));
  return list;
}

std::vector<TensorSpec> norm(const std::string& name, int64_t channels) {
  return {{.name = name + ".weight", .shape = {channels}, .init = Init::kOnes},
          {.name = name + ".bias", .shape = {channels}, .init = Init::kZeros}};
}

std::vector<TensorSpec> join(std::vector<TensorSpec> first, const std::vector<TensorSpec>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

std::vector<TensorSpec> under(const std::string& prefix, std::vector<TensorSpec> list) {
  for (TensorSpec& spec : list) {
    spec.name.insert(0, prefix);
    for (Part& part : spec.parts) part.name.insert(0, prefix);
  }
  return list;
}

}  // namespace specs

namespace {

template <typename Entry>
const Entry& find(std::span<const Entry> entries, const char* what, std::string_view name) {
  std::string known;
  for (const Entry& entry : entries) {
    if (name == entry.name) return entry;
    known += (known.empty() ? "\"" : ", \"") + std::string(entry.name) + '"';
  }
  throw Error("model config: " + std::string(what) + ": expected one of " + known + ", got \"" + std::string(name) +
              '"');
}

/// LayerScale's factors of one branch (Touvron et al. 2021), where the model has them.
std::vector<TensorSpec> scale(const char* name, const ModelConfig& config) {
  if (config.layer_scale == 0) return {};
  return {{.name = name, .shape = {config.channels}, .init = Init::kConstant, .spread = config.layer_scale}};
}

/// The tensors of one layer, whatever the model.
std::vector<TensorSpec> layer_tensors(const ModelConfig& config) {
  const int64_t d = config.channels;
  std::vector<TensorSpec> list;
  for (const auto& part :
       {specs::norm("mixer_norm", d), specs::under("mixer.", mixer_entry(config.mixer.name).tensors(config)),
        scale("mixer_scale", config), specs::norm("mlp_norm", d), specs::linear("mlp.up", config.mlp_channels, d),
        specs::branch_end("mlp.down", d, config.mlp_channels, config), scale("mlp_scale", config)}) {
    list = specs::join(std::move(list), part);
  }
  return list;
}

double numbers_in(const std::vector<TensorSpec>& list) {
  double sum = 0;
  for (const TensorSpec& spec : list) {
    double product = 1;
    for (const int64_t extent : spec.shape) product *= static_cast<double>(extent);
    sum += product;
  }
  return sum;
}

}  // namespace

const MixerEntry& mixer_entry(std::string_view name) { return find(mixer_entries(), "mixer", name); }
const ModelEntry& model_entry(std::string_view name) { return find(model_entries(), "model", name); }

std::vector<std::string> mixers_of(const ModelEntry& model) {
  std::vector<std::string> names;
  for (const MixerEntry& mixer : mixer_entries()) {
    if (model.causal ? mixer.causal : mixer.not_causal) names.emplace_back(mixer.name);
  }
  return names;
}

bool is_causal(const ModelConfig& config) { return model_entry(config.model).causal; }
int64_t positions(const ModelConfig& config) { return model_entry(config.model).positions(config); }

int64_t qkv_channels(const ModelConfig& config) {
  return query_channels(config) + key_channels(config) + config.channels;
}

std::vector<TensorSpec> model_tensors(const ModelConfig& config) {
  std::vector<TensorSpec> list = model_entry(config.model).tensors(config);
  const std::vector<TensorSpec> layer = layer_tensors(config);
  for (int64_t i = 0; i < config.layers; ++i) {
    list = specs::join(std::move(list), specs::under("blocks." + std::to_string(i) + ".", layer));
  }
  return list;
}

std::map<std::string, std::string> model_metadata(const ModelConfig& config) {
  return {{"format", "aft"}, {"format_version", "2"}, {"library_version", AFT_VERSION}, {"config", to_json(config)}};
}

std::vector<TensorPiece> model_pieces(const ModelConfig& config) {
  std::vector<TensorPiece> pieces;
  for (const TensorSpec& spec : model_tensors(config)) {
    TensorPiece piece = {spec.name, spec.name, 0, spec.shape, spec.rows_of};
    if (spec.parts.empty()) pieces.push_back(piece);
    for (const Part& part : spec.parts) {
      piece.name = part.name;
      piece.shape[0] = part.rows;
      pieces.push_back(piece);
      piece.row += part.rows;
    }
  }
  return pieces;
}

int64_t parameter_count(const ModelConfig& config) {
  const double total = numbers_in(model_entry(config.model).tensors(config)) +
                       static_cast<double>(config.layers) * numbers_in(layer_tensors(config));
  if (total > 9007199254740992.0) throw Error("model: expected at most 2^53 parameters; make it smaller");
  return static_cast<int64_t>(total);
}

}  // namespace aft

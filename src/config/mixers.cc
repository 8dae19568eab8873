// The table of mixers.

#include <cmath>
#include <limits>

#include "aft/error.h"
#include "config/architecture.h"
#include "config/specs.h"

namespace aft {
namespace {

using M = MixerConfig;
using Specs = std::vector<TensorSpec>;

const Field<M> kHeads = {"heads", &M::heads};
const Field<M> kFactorChannels = {"factor_channels", &M::factor_channels};
const Field<M> kGate = {.name = "gate", .member = &M::gate, .words = {"sigmoid", "relu", "none"}};

[[noreturn]] void fail(const std::string& option, const std::string& expected, const std::string& got) {
  throw Error("model config: mixer." + option + ": expected " + expected + ", got " + got);
}

void heads_divide(const ModelConfig& config) {
  if (config.channels % config.mixer.heads == 0) return;
  fail("heads", "a divisor of channels = " + std::to_string(config.channels), std::to_string(config.mixer.heads));
}

/// Not causal, a kernel is centred on its position.
void check_conv1d(const ModelConfig& config) {
  heads_divide(config);
  if (is_causal(config) || config.mixer.window % 2 == 1) return;
  fail("window", "an odd number where the model is not causal", std::to_string(config.mixer.window));
}

/// A kernel is centred on its position of the image, so the positions must be places of it and no others.
void check_conv2d(const ModelConfig& config) {
  heads_divide(config);
  if (config.mixer.window % 2 == 0) fail("window", "an odd number", std::to_string(config.mixer.window));
  if (config.class_token) fail("name", "another mixer where model.class_token is true", "aft_conv2d");
}

/// The projections that AFT and attention have in common.
Specs plain(const ModelConfig& config) {
  return specs::join(specs::qkv(config), specs::branch_end("output", config.channels, config.channels, config));
}

/// What the rows of a table of positions are.
RowsOf rows_of_table(const ModelConfig& config) { return is_causal(config) ? RowsOf::kPositions : RowsOf::kPlaces; }

/// N(0, 0.01^2): the paper's u, v ~ N(0, 1e-2) read as a spread.
Specs with_factors(const ModelConfig& config) {
  const std::vector<int64_t> shape = {positions(config), config.mixer.factor_channels};
  Specs list = {{.name = "u", .shape = shape, .spread = 0.01, .rows_of = rows_of_table(config)},
                {.name = "v", .shape = shape, .spread = 0.01, .rows_of = rows_of_table(config)}};
  return specs::join(std::move(list), plain(config));
}

/// Of the kernels only the direction matters, so they do not decay; gamma and beta at 0 begin as AFT-simple.
Specs with_kernels(const ModelConfig& config, const std::vector<int64_t>& shape) {
  const int64_t heads = shape[0];
  Specs list = {{.name = "weight", .shape = shape, .spread = 1},
                {.name = "gamma", .shape = {heads}, .init = Init::kZeros},
                {.name = "beta", .shape = {heads}, .init = Init::kZeros}};
  return specs::join(std::move(list), plain(config));
}

Specs conv1d(const ModelConfig& config) { return with_kernels(config, {config.mixer.heads, config.mixer.window}); }

/// Kernels that are w itself begin as AFT-simple too.
Specs conv2d(const ModelConfig& config) {
  const std::vector<int64_t> shape = {config.mixer.heads, config.mixer.window, config.mixer.window};
  if (config.mixer.reparameterised) return with_kernels(config, shape);
  return specs::join({{.name = "weight", .shape = shape, .init = Init::kZeros}}, plain(config));
}

/// E and F of linformer: N(0, 1 / rank), so that a projected key or value is as large as one.
Specs with_projections_of_time(const ModelConfig& config) {
  const std::vector<int64_t> shape = {config.mixer.rank, positions(config)};
  const double spread = 1 / std::sqrt(static_cast<double>(config.mixer.rank));
  return specs::join({{.name = "e", .shape = shape, .spread = spread}, {.name = "f", .shape = shape, .spread = spread}},
                     plain(config));
}

/// A linear layer a head.
Specs head_linear(const std::string& name, int64_t heads, int64_t outputs, int64_t inputs) {
  return {{.name = name + ".weight", .shape = {heads, outputs, inputs}, .spread = specs::kSpread, .decays = true},
          {.name = name + ".bias", .shape = {heads, outputs}, .init = Init::kZeros}};
}

Specs synthesizer(const ModelConfig& config) {
  const int64_t heads = config.mixer.heads;
  const int64_t width = config.channels / heads;
  Specs list = specs::join(specs::linear("value", config.channels, config.channels),
                           specs::branch_end("output", config.channels, config.channels, config));
  if (config.mixer.weights == "random") {
    list.push_back({.name = "r", .shape = {heads, positions(config), positions(config)}, .spread = 1});
    return list;
  }
  list = specs::join(std::move(list), head_linear("hidden", heads, width, width));
  return specs::join(std::move(list), head_linear("scores", heads, positions(config), width));
}

Specs mlp_over_positions(const ModelConfig& config) {
  return specs::join(specs::linear("up", config.mixer.hidden, positions(config)),
                     specs::branch_end("down", positions(config), config.mixer.hidden, config));
}

// Numbers kept for the backward, beside what every layer has: most are scores and weights of the pairs.
double nothing(const ModelConfig& /*config*/) { return 0; }
double kept_by_features(const ModelConfig& config) { return 4 * static_cast<double>(config.channels); }
double kept_by_pairs(const ModelConfig& config, int64_t sources) {
  return 2 * static_cast<double>(config.mixer.heads) * static_cast<double>(sources);
}
double kept_by_window(const ModelConfig& config) { return kept_by_pairs(config, 3 * config.mixer.window); }
double kept_by_rank(const ModelConfig& config) { return kept_by_pairs(config, config.mixer.rank); }
double kept_by_table(const ModelConfig& config) { return kept_by_pairs(config, positions(config)); }
double kept_by_hidden(const ModelConfig& config) {
  return 2 * static_cast<double>(config.channels) * static_cast<double>(config.mixer.hidden) /
         static_cast<double>(positions(config));
}

const std::vector<MixerEntry>& table() {
  static const std::vector<MixerEntry> entries = {
      {"aft_simple", true, true, {kGate}, nullptr, plain, nothing},
      {"aft_local", true, true, {{"window", &M::window, 0}, kFactorChannels, kGate}, nullptr, with_factors, nothing},
      {"aft_conv1d", true, true, {kHeads, {"window", &M::window}, kGate}, check_conv1d, conv1d, nothing},
      {"aft_conv2d",
       false,
       true,
       {kHeads, {"window", &M::window}, kGate, {"global", &M::global}, {"reparameterised", &M::reparameterised}},
       check_conv2d,
       conv2d,
       nothing},
      {"aft_full", true, true, {kFactorChannels, kGate}, nullptr, with_factors, nothing},
      {"attention", true, true, {kHeads}, heads_divide, plain, nothing},
      {"linear_attention", true, true, {kHeads}, heads_divide, plain, kept_by_features},
      {"sliding_window", true, true, {kHeads, {"window", &M::window}}, heads_divide, plain, kept_by_window},
      {"linformer", false, true, {kHeads, {"rank", &M::rank}}, heads_divide, with_projections_of_time, kept_by_rank},
      {"synthesizer",
       true,
       true,
       {kHeads, {.name = "weights", .member = &M::weights, .words = {"dense", "random"}}},
       heads_divide,
       synthesizer,
       kept_by_table},
      {"mlp_mixer", false, true, {{"hidden", &M::hidden}}, nullptr, mlp_over_positions, kept_by_hidden},
  };
  return entries;
}

}  // namespace

std::span<const MixerEntry> mixer_entries() { return table(); }

int64_t query_channels(const ModelConfig& config) {
  return config.mixer.name.starts_with("aft_") && config.mixer.gate == "none" ? 0 : config.channels;
}

int64_t key_channels(const ModelConfig& config) {
  return config.mixer.name.starts_with("aft_conv") ? config.mixer.heads : config.channels;
}

}  // namespace aft

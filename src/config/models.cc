// The table of models.

#include <cmath>

#include "aft/error.h"
#include "config/architecture.h"
#include "config/specs.h"

namespace aft {
namespace {

using C = ModelConfig;
using Specs = std::vector<TensorSpec>;

const Field<C> kVocabulary = {"vocabulary", &C::vocabulary};
const Field<C> kHeight = {"height", &C::height};
const Field<C> kWidth = {"width", &C::width};
const Field<C> kColors = {"colors", &C::colors};

[[noreturn]] void fail(const std::string& field, const std::string& expected, int64_t got) {
  throw Error("model config: " + field + ": expected " + expected + ", got " + std::to_string(got));
}

void check_bytes(const ModelConfig& config) {
  if (config.vocabulary != 256) fail("vocabulary", "256 (one token a byte)", config.vocabulary);
}

void check_image(const ModelConfig& config) {
  constexpr int64_t kLargest = 4096;  // pixels on a side
  for (const auto& [name, value] : {std::pair{"height", config.height}, std::pair{"width", config.width}}) {
    if (value > kLargest) fail(name, "at most " + std::to_string(kLargest) + " pixels", value);
  }
  if (config.colors != 1 && config.colors != 3) fail("colors", "1 or 3", config.colors);
}

void check_pixels(const ModelConfig& config) {
  check_bytes(config);
  check_image(config);
}

void check_patches(const ModelConfig& config) {
  check_image(config);
  for (const auto& [name, value] : {std::pair{"height", config.height}, std::pair{"width", config.width}}) {
    if (value % config.patch == 0) continue;
    fail("patch", "a divisor of " + std::string(name) + " = " + std::to_string(value), config.patch);
  }
}

[[noreturn]] void fail(const std::string& field, const std::string& expected, const std::string& got) {
  throw Error("model config: " + field + ": expected " + expected + ", got " + got);
}

/// How images become what the model reads.
void check_view(const ModelConfig& config) {
  for (const auto& [name, values] : {std::pair{"mean", &config.mean}, std::pair{"deviation", &config.deviation}}) {
    const auto count = static_cast<int64_t>(values->size());
    if (count != 1 && count != config.colors) {
      fail(name, "one number, or one a colour, which are " + std::to_string(config.colors), count);
    }
    for (const double value : *values) {
      const bool good = std::isfinite(value) && std::abs(value) <= 1 && (values == &config.mean || value > 0);
      if (!good) fail(name, "numbers of images whose values are in [0, 1]", std::to_string(value));
    }
  }
  if (config.crop < 0.01) fail("crop", "a number from 0.01 to 1", std::to_string(config.crop));
}

void check_classifier(const ModelConfig& config) {
  check_patches(config);
  check_view(config);
  if (config.classes == 1) fail("classes", "0 (features) or at least 2", config.classes);
  const auto names = static_cast<int64_t>(config.class_names.size());
  if (names != 0 && names != config.classes) {
    fail("class_names", "none, or one for each of " + std::to_string(config.classes) + " classes", names);
  }
  if (!(config.norm_eps > 0)) fail("norm_eps", "a number above 0", std::to_string(config.norm_eps));
}

int64_t byte_positions(const ModelConfig& config) { return config.context; }
int64_t pixel_positions(const ModelConfig& config) { return config.height * config.width * config.colors; }
int64_t patch_positions(const ModelConfig& config) {
  const auto [rows, columns] = patch_grid(config);
  return rows * columns + (config.class_token ? 1 : 0);
}

Specs embedding(const char* name, int64_t rows, const ModelConfig& config, RowsOf rows_of) {
  return {{.name = std::string("embedding.") + name + ".weight",
           .shape = {rows, config.channels},
           .spread = specs::kSpread,
           .rows_of = rows_of}};
}

Specs language_model(const ModelConfig& config) {
  Specs list = specs::join(embedding("token", token_rows(config), config, RowsOf::kAnything),
                           embedding("position", positions(config), config, RowsOf::kPositions));
  list = specs::join(std::move(list), specs::norm("norm", config.channels));
  Specs head = specs::linear("head", config.vocabulary, config.channels);
  head.pop_back();  // it has no bias
  return specs::join(std::move(list), head);
}

Specs classifier(const ModelConfig& config) {
  Specs list = specs::linear("embedding.patch", config.channels, config.patch * config.patch * config.colors);
  if (config.class_token) {
    list.push_back({.name = "embedding.class", .shape = {config.channels}, .spread = specs::kSpread});
  }
  if (config.position_embedding) {
    list = specs::join(std::move(list), embedding("position", positions(config), config, RowsOf::kPlaces));
  }
  list = specs::join(std::move(list), specs::norm("norm", config.channels));
  if (config.classes == 0) return list;
  return specs::join(std::move(list), specs::linear("head", config.classes, config.channels));
}

const std::vector<ModelEntry>& table() {
  static const std::vector<ModelEntry> entries = {
      {"byte_lm", true, {kVocabulary, {"context", &C::context}}, check_bytes, byte_positions, language_model},
      {"pixel_lm", true, {kVocabulary, kHeight, kWidth, kColors}, check_pixels, pixel_positions, language_model},
      {"classifier",
       false,
       {kHeight,
        kWidth,
        kColors,
        {"patch", &C::patch},
        {"classes", &C::classes, 0},
        {"class_token", &C::class_token},
        {"position_embedding", &C::position_embedding},
        {.name = "layer_scale", .member = &C::layer_scale, .includes_1 = true},
        {"norm_eps", &C::norm_eps},
        {"stochastic_depth", &C::stochastic_depth},
        {"mean", &C::mean},
        {"deviation", &C::deviation},
        {.name = "resampling", .member = &C::resampling, .words = {"nearest", "bilinear", "bicubic"}},
        {.name = "crop", .member = &C::crop, .includes_1 = true},
        {"class_names", &C::class_names}},
       check_classifier,
       patch_positions,
       classifier},
  };
  return entries;
}

}  // namespace

std::span<const ModelEntry> model_entries() { return table(); }

std::span<const Field<ModelConfig>> common_fields() {
  static const std::vector<Field<C>> fields = {
      {"layers", &C::layers}, {"channels", &C::channels}, {"mlp_channels", &C::mlp_channels}, {"dropout", &C::dropout}};
  return fields;
}

std::array<int64_t, 2> patch_grid(const ModelConfig& config) {
  return {config.height / config.patch, config.width / config.patch};
}

int64_t token_rows(const ModelConfig& config) { return config.vocabulary + (config.model == "pixel_lm" ? 1 : 0); }

}  // namespace aft

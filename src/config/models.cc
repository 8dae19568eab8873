// The table of models.

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

int64_t byte_positions(const ModelConfig& config) { return config.context; }
int64_t pixel_positions(const ModelConfig& config) { return config.height * config.width * config.colors; }
int64_t patch_positions(const ModelConfig& config) {
  return config.height / config.patch * (config.width / config.patch);
}

Specs embedding(const char* name, int64_t rows, const ModelConfig& config, bool rows_are_positions) {
  return {{.name = std::string("embedding.") + name + ".weight",
           .shape = {rows, config.channels},
           .spread = specs::kSpread,
           .rows_are_positions = rows_are_positions}};
}

Specs language_model(const ModelConfig& config) {
  Specs list = specs::join(embedding("token", token_rows(config), config, false),
                           embedding("position", positions(config), config, true));
  list = specs::join(std::move(list), specs::norm("norm", config.channels));
  Specs head = specs::linear("head", config.vocabulary, config.channels);
  head.pop_back();  // it has no bias
  return specs::join(std::move(list), head);
}

Specs classifier(const ModelConfig& config) {
  Specs list =
      specs::join(specs::linear("embedding.patch", config.channels, config.patch * config.patch * config.colors),
                  embedding("position", positions(config), config, true));
  list = specs::join(std::move(list), specs::norm("norm", config.channels));
  return specs::join(std::move(list), specs::linear("head", config.classes, config.channels));
}

const std::vector<ModelEntry>& table() {
  static const std::vector<ModelEntry> entries = {
      {"byte_lm", true, {kVocabulary, {"context", &C::context}}, check_bytes, byte_positions, language_model},
      {"pixel_lm", true, {kVocabulary, kHeight, kWidth, kColors}, check_pixels, pixel_positions, language_model},
      {"classifier",
       false,
       {kHeight, kWidth, kColors, {"patch", &C::patch}, {"classes", &C::classes, 2}},
       check_patches,
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

int64_t token_rows(const ModelConfig& config) { return config.vocabulary + (config.model == "pixel_lm" ? 1 : 0); }

}  // namespace aft

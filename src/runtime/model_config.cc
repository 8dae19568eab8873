#include "aft/runtime/model_config.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "aft/error.h"

namespace aft {
namespace {

using Json = nlohmann::ordered_json;

// Far above any model, far below where a product of two of them overflows int64.
constexpr int64_t kLargest = int64_t{1} << 30;

struct IntegerField {
  const char* name;
  int64_t ModelConfig::*member;
  int64_t smallest;
};

constexpr std::array<IntegerField, 8> kIntegers = {{
    {"vocabulary", &ModelConfig::vocabulary, 1},
    {"layers", &ModelConfig::layers, 1},
    {"channels", &ModelConfig::channels, 1},
    {"mlp_channels", &ModelConfig::mlp_channels, 1},
    {"context", &ModelConfig::context, 1},
    {"heads", &ModelConfig::heads, 1},
    {"window", &ModelConfig::window, 0},
    {"factor_channels", &ModelConfig::factor_channels, 1},
}};

constexpr std::array<std::string_view, 5> kMixers = {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"};

[[noreturn]] void fail(const std::string& field, const std::string& expected, const std::string& got) {
  throw Error("model config: " + field + ": expected " + expected + ", got " + got);
}

}  // namespace

int64_t key_channels(const ModelConfig& config) {
  return config.mixer == "aft_conv1d" ? config.heads : config.channels;
}

void validate(const ModelConfig& config) {
  if (config.model != "byte_lm") fail("model", "\"byte_lm\"", '"' + config.model + '"');
  if (std::find(kMixers.begin(), kMixers.end(), config.mixer) == kMixers.end()) {
    fail("mixer", "one of \"aft_simple\", \"aft_local\", \"aft_conv1d\", \"aft_full\", \"attention\"", '"' + config.mixer + '"');
  }
  for (const IntegerField& field : kIntegers) {
    const int64_t value = config.*field.member;
    if (value < field.smallest || value > kLargest) {
      fail(field.name, "an integer from " + std::to_string(field.smallest) + " to " + std::to_string(kLargest),
           std::to_string(value));
    }
  }
  if (config.vocabulary != 256) fail("vocabulary", "256 (one token a byte)", std::to_string(config.vocabulary));
  const bool has_heads = config.mixer == "attention" || config.mixer == "aft_conv1d";
  if (has_heads && config.channels % config.heads != 0) {
    fail("heads", "a divisor of channels = " + std::to_string(config.channels), std::to_string(config.heads));
  }
  if (config.mixer == "aft_conv1d" && config.window < 1) {
    fail("window", "at least 1 with aft_conv1d", std::to_string(config.window));
  }
  if (!(config.dropout >= 0.0 && config.dropout < 1.0)) {
    fail("dropout", "a number in [0, 1)", std::to_string(config.dropout));
  }
}

std::string to_json(const ModelConfig& config) {
  Json json;
  json["model"] = config.model;
  json["mixer"] = config.mixer;
  for (const IntegerField& field : kIntegers) json[field.name] = config.*field.member;
  json["dropout"] = config.dropout;
  try {
    return json.dump();
  } catch (const Json::exception& e) {  // text that is not UTF-8
    throw Error(std::string("model config: cannot be written as JSON: ") + e.what());
  }
}

ModelConfig model_config_from_json(std::string_view text) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const Json::exception& e) {
    throw Error(std::string("model config: expected a JSON object, got text that does not parse: ") + e.what());
  }
  if (!json.is_object()) throw Error(std::string("model config: expected a JSON object, got a ") + json.type_name());

  ModelConfig config;
  for (const auto& [key, value] : json.items()) {
    if (key == "model" || key == "mixer") {
      if (!value.is_string()) fail(key, "a string", value.type_name());
      (key == "model" ? config.model : config.mixer) = value.get<std::string>();
    } else if (key == "dropout") {
      if (!value.is_number()) fail(key, "a number", value.type_name());
      config.dropout = value.get<double>();
    } else {
      const IntegerField* found = nullptr;
      for (const IntegerField& field : kIntegers) {
        if (key == field.name) found = &field;
      }
      if (found == nullptr) {
        throw Error("model config: unknown key \"" + key + "\"; the file may come from a newer version of aft");
      }
      if (!value.is_number_integer()) fail(key, "an integer", value.type_name());
      if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kLargest)) {
        fail(key, "at most " + std::to_string(kLargest), value.dump());
      }
      config.*found->member = value.get<int64_t>();
    }
  }
  validate(config);
  return config;
}

}  // namespace aft

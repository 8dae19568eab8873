#include "aft/config/model_config.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "aft/error.h"
#include "config/architecture.h"

namespace aft {
namespace {

using Json = nlohmann::ordered_json;

// Far above any model, far below where a product of two of them overflows int64.
constexpr int64_t kLargest = int64_t{1} << 30;

[[noreturn]] void fail(const std::string& field, const std::string& expected, const std::string& got) {
  throw Error("model config: " + field + ": expected " + expected + ", got " + got);
}

std::string one_of(const std::vector<const char*>& words) {
  std::string list;
  for (const char* word : words) list += (list.empty() ? "\"" : " or \"") + std::string(word) + '"';
  return list;
}

/// Throws unless the field holds what it may; `prefix` stands before its name in messages.
template <typename Owner>
void check(const Field<Owner>& field, const Owner& owner, const std::string& prefix) {
  const std::string name = prefix + field.name;
  if (const auto* integer = std::get_if<int64_t Owner::*>(&field.member)) {
    const int64_t value = owner.**integer;
    if (value >= field.smallest && value <= kLargest) return;
    fail(name, "an integer from " + std::to_string(field.smallest) + " to " + std::to_string(kLargest),
         std::to_string(value));
  } else if (const auto* number = std::get_if<double Owner::*>(&field.member)) {
    const double value = owner.**number;
    const bool below = field.includes_1 ? value <= 1 : value < 1;
    if (!(value >= 0 && below)) {
      fail(name, std::string("a number in [0, 1") + (field.includes_1 ? "]" : ")"), std::to_string(value));
    }
  } else if (const auto* text = std::get_if<std::string Owner::*>(&field.member)) {
    const std::string& word = owner.**text;
    const auto same = [&](const char* known) { return word == known; };
    if (std::none_of(field.words.begin(), field.words.end(), same)) fail(name, one_of(field.words), '"' + word + '"');
  }
}

template <typename Owner>
void write(const Field<Owner>& field, const Owner& owner, Json& json) {
  std::visit([&](auto member) { json[field.name] = owner.*member; }, field.member);
}

void read_value(const std::string& name, const Json& value, int64_t& to) {
  if (!value.is_number_integer()) fail(name, "an integer", value.type_name());
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kLargest)) {
    fail(name, "at most " + std::to_string(kLargest), value.dump());
  }
  to = value.get<int64_t>();
}

void read_value(const std::string& name, const Json& value, double& to) {
  if (!value.is_number()) fail(name, "a number", value.type_name());
  to = value.get<double>();
}

void read_value(const std::string& name, const Json& value, bool& to) {
  if (!value.is_boolean()) fail(name, "true or false", value.type_name());
  to = value.get<bool>();
}

void read_value(const std::string& name, const Json& value, std::string& to) {
  if (!value.is_string()) fail(name, "a string", value.type_name());
  to = value.get<std::string>();
}

template <typename T>
void read_value(const std::string& name, const Json& value, std::vector<T>& to) {
  if (!value.is_array()) fail(name, "an array", value.type_name());
  to.clear();
  for (const Json& element : value) read_value(name, element, to.emplace_back());
}

template <typename Owner>
void read(const Field<Owner>& field, const std::string& prefix, const Json& value, Owner& owner) {
  std::visit([&](auto member) { read_value(prefix + field.name, value, owner.*member); }, field.member);
}

/// Gives the value to the field of its name, in one of the lists. False: none has it.
template <typename Owner>
bool read_named(std::span<const Field<Owner>> fields, const std::string& prefix, const std::string& key,
                const Json& value, Owner& owner) {
  for (const Field<Owner>& field : fields) {
    if (key != field.name) continue;
    read(field, prefix, value, owner);
    return true;
  }
  return false;
}

std::string text_of(const Json& json, const char* key, const std::string& otherwise) {
  const auto found = json.find(key);
  if (found == json.end()) return otherwise;
  if (!found->is_string()) fail(key, "a string", found->type_name());
  return found->get<std::string>();
}

[[noreturn]] void unknown_key(const std::string& key) {
  throw Error("model config: unknown key \"" + key + "\"; the file may come from a newer version of aft");
}

void read_mixer(const Json& json, MixerConfig& mixer) {
  mixer.name = text_of(json, "name", mixer.name);
  const MixerEntry& entry = mixer_entry(mixer.name);
  for (const auto& [key, value] : json.items()) {
    if (key == "name") continue;
    if (!read_named<MixerConfig>(entry.options, "mixer.", key, value, mixer)) unknown_key("mixer." + key);
  }
}

/// Version 1 of model files: options of all mixers stand beside the rest.
constexpr const char* kOptionsOfVersion1[] = {"heads", "window", "factor_channels"};

/// False: no such option in version 1.
bool read_option_of_version_1(const std::string& key, const Json& value, MixerConfig& mixer) {
  const auto same = [&](const char* known) { return key == known; };
  if (std::none_of(std::begin(kOptionsOfVersion1), std::end(kOptionsOfVersion1), same)) return false;
  if (!value.is_number_integer()) fail(key, "an integer", value.type_name());
  read_named<MixerConfig>(mixer_entry(mixer.name).options, "mixer.", key, value, mixer);  // others mean nothing
  return true;
}

}  // namespace

void validate(const ModelConfig& config) {
  const ModelEntry& model = model_entry(config.model);
  const MixerEntry& mixer = mixer_entry(config.mixer.name);
  for (const auto& field : common_fields()) check(field, config, "");
  for (const auto& field : model.options) check(field, config, "");
  for (const auto& field : mixer.options) check(field, config.mixer, "mixer.");
  model.check(config);
  const std::vector<std::string> names = mixers_of(model);
  if (std::find(names.begin(), names.end(), config.mixer.name) == names.end()) {
    std::string fitting;
    for (const std::string& name : names) fitting += (fitting.empty() ? "" : ", ") + name;
    fail("mixer.name",
         std::string(model.causal ? "a causal mixer, as " : "a mixer that sees all positions, as ") + model.name +
             (model.causal ? " predicts the next token" : " does") + ": one of " + fitting,
         config.mixer.name);
  }
  if (mixer.check != nullptr) mixer.check(config);
}

ModelConfig with_side(ModelConfig config, int64_t side) {
  if (side == 0) return config;
  if (config.model != "classifier")
    throw Error("size: expected a classifier, which alone has one, got a " + config.model);
  config.height = config.width = side;
  validate(config);
  return config;
}

std::string to_json(const ModelConfig& config) {
  Json json;
  json["model"] = config.model;
  for (const auto& field : common_fields()) write(field, config, json);
  for (const auto& field : model_entry(config.model).options) write(field, config, json);
  Json mixer;
  mixer["name"] = config.mixer.name;
  for (const auto& field : mixer_entry(config.mixer.name).options) write(field, config.mixer, mixer);
  json["mixer"] = mixer;
  return json.dump();
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
  config.model = text_of(json, "model", config.model);
  const ModelEntry& model = model_entry(config.model);
  const auto mixer = json.find("mixer");
  const bool version_1 = mixer == json.end() || mixer->is_string();
  if (version_1) {
    config.mixer.name = text_of(json, "mixer", config.mixer.name);
    mixer_entry(config.mixer.name);  // throws for an unknown one
  } else if (mixer->is_object()) {
    read_mixer(*mixer, config.mixer);
  } else {
    fail("mixer", "an object with a name and options", mixer->type_name());
  }
  for (const auto& [key, value] : json.items()) {
    if (key == "model" || key == "mixer") continue;
    if (read_named<ModelConfig>(common_fields(), "", key, value, config)) continue;
    if (read_named<ModelConfig>(model.options, "", key, value, config)) continue;
    if (version_1 && read_option_of_version_1(key, value, config.mixer)) continue;
    unknown_key(key);
  }
  validate(config);
  return config;
}

}  // namespace aft

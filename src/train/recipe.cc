#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <list>
#include <map>
#include <set>
#include <sstream>

#include "aft/error.h"
#include "runtime/nearest.h"
#include "train/recipe_fields.h"
#include "train/recipe_text.h"
#include "train/train.h"

namespace aft {
namespace {

std::vector<std::string> known_keys(const Recipe& recipe) {
  std::vector<std::string> keys;
  visit_fields(recipe, [&](const char* key, const auto&) { keys.emplace_back(key); });
  return keys;
}

/// "aft_local, aft_conv1d" for "window"; empty: no mixer has the option.
std::string mixers_with(const std::string& option) {
  std::string names;
  for (const MixerEntry& entry : mixer_entries()) {
    for (const auto& field : entry.options) {
      if (option == field.name) names += (names.empty() ? "" : ", ") + std::string(entry.name);
    }
  }
  return names;
}

[[noreturn]] void unknown_key(const std::string& key, const std::string& source, const Recipe& recipe) {
  const auto keys = known_keys(recipe);
  const std::string name = key.substr(key.rfind('.') + 1);
  if (key == "model.mixer") throw Error(source + ": unknown key model.mixer; it is mixer.name now");
  if (const std::string mixers = mixers_with(name); !mixers.empty() && key.find('.') != std::string::npos) {
    if (key.starts_with("model.")) throw Error(source + ": unknown key " + key + "; it is mixer." + name + " now");
    if (key.starts_with("mixer.")) {
      throw Error(source + ": " + key + ": " + recipe.model.mixer.name + " has no such option; it is one of " + mixers);
    }
  }
  // A key without its section, such as "lr", is nearest to the full key that ends with it.
  for (const auto& known : keys) {
    if (known.substr(known.find('.') + 1) == name) {
      throw Error(source + ": unknown key " + key + "; did you mean " + known + "?");
    }
  }
  throw Error(source + ": unknown key " + key + "; did you mean " + nearest(key, keys) + "?");
}

std::string toml_value(double value);

/// The value if it is one, and its type. Not by toml++'s own printing, which is undefined for arrays of small numbers.
std::string describe(const toml::node& node) {
  std::ostringstream text;
  if (const auto* word = node.as_string()) text << toml_string(word->get()) << ' ';
  if (const auto* integer = node.as_integer()) text << integer->get() << ' ';
  if (const auto* real = node.as_floating_point()) text << toml_value(real->get()) << ' ';
  if (const auto* truth = node.as_boolean()) text << (truth->get() ? "true " : "false ");
  text << "(" << node.type() << ")";
  return text.str();
}

[[noreturn]] void wrong_type(const std::string& source, const char* key, const char* expected, const toml::node& node) {
  throw Error(source + ": " + key + ": expected " + expected + ", got " + describe(node));
}

/// A value from a recipe or an override.
struct Given {
  const toml::node* node;
  std::string source;
  std::string bare = {};  // an override that is no TOML value, only good as text; `node` is that text
};

/// Assigns values to members, number types strict except that an integer will do for a float.
struct Reader {
  const std::string& source;

  void read(const char* key, const toml::node& node, std::string& out) const {
    const auto* value = node.as_string();
    if (!value) wrong_type(source, key, "text in quotes", node);
    out = value->get();
  }
  void read(const char* key, const toml::node& node, bool& out) const {
    const auto* value = node.as_boolean();
    if (!value) wrong_type(source, key, "true or false", node);
    out = value->get();
  }
  void read(const char* key, const toml::node& node, int64_t& out) const {
    const auto* value = node.as_integer();
    if (!value) wrong_type(source, key, "an integer", node);
    out = value->get();
  }
  void read(const char* key, const toml::node& node, double& out) const {
    if (const auto* integer = node.as_integer()) {
      out = static_cast<double>(integer->get());
    } else if (const auto* real = node.as_floating_point()) {
      out = real->get();
    } else {
      wrong_type(source, key, "a number", node);
    }
  }
  template <typename T>
  void read(const char* key, const toml::node& node, std::vector<T>& out) const {
    constexpr bool is_text = std::is_same_v<T, std::string>;
    const auto* array = node.as_array();
    if (!array) wrong_type(source, key, is_text ? "an array of texts" : "an array of numbers", node);
    out.clear();
    for (const auto& element : *array) read(key, element, out.emplace_back());
  }
};

using Values = std::map<std::string, Given>;

void flatten(const toml::table& table, const std::string& prefix, const std::string& source, Values& out) {
  for (const auto& [key, node] : table) {
    const std::string path = prefix + std::string(key.str());
    if (const auto* child = node.as_table()) {
      flatten(*child, path + ".", source, out);
    } else {
      out.insert_or_assign(path, Given{&node, source});
    }
  }
}

void assign(Values values, Recipe& recipe) {
  const auto take = [&](const char* key, auto& member) {
    const auto it = values.find(key);
    if (it == values.end()) return;
    const Given& given = it->second;
    if constexpr (!std::is_same_v<std::decay_t<decltype(member)>, std::string>) {
      if (given.node->is_string() && !given.bare.empty()) {
        throw Error(given.source + ": expected a TOML value, got " + given.bare);
      }
    }
    Reader{given.source}.read(key, *given.node, member);
    values.erase(it);
  };
  visit_fields(recipe, take);
  if (!values.empty()) unknown_key(values.begin()->first, values.begin()->second.source, recipe);
}

toml::table parse(const std::string& text, const std::string& source) {
  check_recipe_text(text, source);
  try {
    return toml::parse(text, source);
  } catch (const toml::parse_error& error) {
    std::ostringstream where;
    where << source << ":" << error.source().begin.line << ": not valid TOML: " << error.description();
    throw Error(where.str());
  }
}

std::string trimmed(std::string text) {
  text.erase(0, text.find_first_not_of(' '));
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

/// Another mixer than the recipe's begins with its own defaults: what the recipe says of options it does not have was
/// meant for the other.
void drop_options_of_other_mixer(Values& values) {
  const auto* name = values.at("mixer.name").node->as_string();
  if (!name) return;
  const MixerEntry& entry = mixer_entry(name->get());
  std::erase_if(values, [&](const auto& item) {
    const std::string& key = item.first;
    if (!key.starts_with("mixer.") || key == "mixer.name") return false;
    const std::string option = key.substr(6);
    return !mixers_with(option).empty() && std::none_of(entry.options.begin(), entry.options.end(),
                                                        [&](const auto& field) { return option == field.name; });
  });
}

/// Overrides one value of the recipe, or adds it; `tables` keeps what is parsed.
void apply_override(const std::string& override_, Values& values, std::list<toml::table>& tables) {
  const size_t equals = override_.find('=');
  const std::string source = "--set " + override_;
  if (equals == std::string::npos || equals == 0) throw Error(source + ": expected key=value, such as train.lr=1e-3");
  const std::string key = trimmed(override_.substr(0, equals));
  const std::string value = trimmed(override_.substr(equals + 1));
  std::string bare;
  try {
    if (value.find('\n') != std::string::npos) throw Error("more than one line");
    tables.push_back(parse("value = " + value, source));
  } catch (const Error&) {
    // A bare word: quotes rarely survive a shell. Read as if quoted, so that what is not text is refused.
    bare = value.empty() ? "nothing" : value;
    tables.push_back(parse("value = " + toml_string(value), source));
  }
  const toml::node* node = tables.back().get("value");
  values.insert_or_assign(key, Given{node, source, bare});
}

/// Whether an override chooses the mixer.
bool names_mixer(const std::string& override_) {
  return trimmed(override_.substr(0, override_.find('='))) == "mixer.name";
}

// What toml++ writes itself does not always read back equal: text over several lines, for one.
std::string toml_value(const std::string& value) { return toml_string(value); }
std::string toml_value(bool value) { return value ? "true" : "false"; }
std::string toml_value(int64_t value) { return std::to_string(value); }
std::string toml_value(double value) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;  // the shortest that reads back equal
  std::string text(buffer, end);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}
template <typename T>
std::string toml_value(const std::vector<T>& values) {
  std::string text = "[";
  for (const T& value : values) {
    if (text.size() > 1) text += ", ";
    text += toml_value(value);
  }
  text += ']';
  return text;
}

}  // namespace

Recipe parse_recipe(const std::string& toml, const std::string& source, const std::vector<std::string>& overrides) {
  std::list<toml::table> tables;
  tables.push_back(parse(toml, source));
  Values values;
  flatten(tables.back(), "", source, values);
  for (const auto& text : overrides) {
    if (!names_mixer(text)) continue;
    apply_override(text, values, tables);
    drop_options_of_other_mixer(values);
  }
  for (const auto& text : overrides) {
    if (!names_mixer(text)) apply_override(text, values, tables);
  }
  Recipe recipe;
  assign(std::move(values), recipe);
  return recipe;
}

DataConfig load_data_config(const std::filesystem::path& recipe) {
  const std::string source = recipe.string();
  const toml::table table = parse(read_recipe_text(recipe), source);
  Values values;
  flatten(table, "", source, values);
  std::erase_if(values, [](const auto& item) { return !item.first.starts_with("data."); });
  Recipe read;
  if (values.contains("data.format")) read.model.model = "pixel_lm";  // any that learns from images
  assign(std::move(values), read);
  return read.data;
}

Recipe load_recipe(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  Recipe recipe = parse_recipe(read_recipe_text(path), path.string(), overrides);
  if (recipe.run.folder.empty()) recipe.run.folder = (std::filesystem::path("runs") / path.stem()).string();
  return recipe;
}

std::vector<std::pair<std::string, std::string>> recipe_values(const Recipe& recipe) {
  std::vector<std::pair<std::string, std::string>> values;
  visit_fields(recipe, [&](const char* key, const auto& member) { values.emplace_back(key, toml_value(member)); });
  return values;
}

std::string to_toml(const Recipe& recipe) {
  std::string text;
  std::string section;
  for (const auto& [key, value] : recipe_values(recipe)) {
    const size_t dot = key.find('.');
    if (key.substr(0, dot) != section) {
      section = key.substr(0, dot);
      text.append(text.empty() ? "[" : "\n[").append(section).append("]\n");
    }
    text.append(key.substr(dot + 1)).append(" = ").append(value).append("\n");
  }
  return text;
}

Recipe with_absolute_paths(Recipe recipe) {
  for (std::string* path : {&recipe.data.path, &recipe.data.train, &recipe.data.valid, &recipe.data.test,
                            &recipe.train.init, &recipe.run.folder}) {
    if (!path->empty()) *path = std::filesystem::absolute(*path).lexically_normal().string();
  }
  return recipe;
}

}  // namespace aft

#include <toml++/toml.h>

#include <charconv>
#include <cmath>
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

std::vector<std::string> known_keys() {
  std::vector<std::string> keys;
  const Recipe recipe;
  visit_fields(recipe, [&](const char* key, const auto&) { keys.emplace_back(key); });
  return keys;
}

[[noreturn]] void unknown_key(const std::string& key, const std::string& source) {
  const auto keys = known_keys();
  // A key without its section, such as "lr", is nearest to the full key that ends with it.
  const std::string name = key.substr(key.rfind('.') + 1);
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

/// Assigns TOML nodes to members, number types strict except that an integer will do for a float.
struct Reader {
  const std::string& source;

  void read(const char* key, const toml::node& node, std::string& out) const {
    const auto* value = node.as_string();
    if (!value) wrong_type(source, key, "text in quotes", node);
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

using Nodes = std::map<std::string, const toml::node*>;

void flatten(const toml::table& table, const std::string& prefix, Nodes& out) {
  for (const auto& [key, node] : table) {
    const std::string path = prefix + std::string(key.str());
    if (const auto* child = node.as_table()) {
      flatten(*child, path + ".", out);
    } else {
      out[path] = &node;
    }
  }
}

void assign(const toml::table& table, const std::string& source, Recipe& recipe) {
  Nodes nodes;
  flatten(table, "", nodes);
  const Reader reader{source};
  visit_fields(recipe, [&](const char* key, auto& member) {
    if (const auto it = nodes.find(key); it != nodes.end()) {
      reader.read(key, *it->second, member);
      nodes.erase(it);
    }
  });
  if (!nodes.empty()) unknown_key(nodes.begin()->first, source);
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

void apply_override(const std::string& override_, Recipe& recipe) {
  const size_t equals = override_.find('=');
  const std::string source = "--set " + override_;
  if (equals == std::string::npos || equals == 0) throw Error(source + ": expected key=value, such as train.lr=1e-3");
  const auto trim = [](std::string text) {
    text.erase(0, text.find_first_not_of(' '));
    text.erase(text.find_last_not_of(' ') + 1);
    return text;
  };
  const std::string key = trim(override_.substr(0, equals));
  const std::string value = trim(override_.substr(equals + 1));
  toml::table parsed;
  bool good = value.find('\n') == std::string::npos;
  if (good) {
    try {
      parsed = parse("value = " + value, source);
    } catch (const Error&) {
      good = false;
    }
  }
  bool found = false;
  const Reader reader{source};
  visit_fields(recipe, [&](const char* known, auto& member) {
    if (key != known) return;
    found = true;
    if (good) {
      reader.read(known, *parsed.get("value"), member);
    } else if constexpr (std::is_same_v<std::decay_t<decltype(member)>, std::string>) {
      // A bare word: quotes rarely survive a shell. Read as if quoted, so that what is not text is refused.
      reader.read(known, *parse("value = " + toml_string(value), source).get("value"), member);
    } else {
      throw Error(source + ": expected a TOML value, got " + (value.empty() ? "nothing" : value));
    }
  });
  if (!found) unknown_key(key, "--set");
}

// What toml++ writes itself does not always read back equal: text over several lines, for one.
std::string toml_value(const std::string& value) { return toml_string(value); }
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
  Recipe recipe;
  assign(parse(toml, source), source, recipe);
  for (const auto& text : overrides) apply_override(text, recipe);
  return recipe;
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

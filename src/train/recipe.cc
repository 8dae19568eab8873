#include <toml++/toml.h>

#include <charconv>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "aft/error.h"
#include "aft/train.h"
#include "runtime/nearest.h"
#include "train/recipe_fields.h"

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

std::string describe(const toml::node& node) {
  std::ostringstream text;
  node.visit([&](const auto& value) { text << value; });
  text << " (" << node.type() << ")";
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
  void read(const char* key, const toml::node& node, std::vector<double>& out) const {
    const auto* array = node.as_array();
    if (!array) wrong_type(source, key, "an array of numbers", node);
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

/// The first line with a character beyond ASCII outside comments and one-line strings; 0 if there is none. There
/// toml++ asks whether the character is white space, which is undefined for some (its issues 190 and 295).
int64_t line_beyond_ascii(std::string_view text) {
  if (text.substr(0, 3) == "\xef\xbb\xbf") text.remove_prefix(3);  // a byte order mark
  const bool one_line_strings = text.find("\"\"\"") == text.npos && text.find("'''") == text.npos;
  int64_t line = 1;
  char inside = 0;  // the quote of a string, # in a comment
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\n') {
      ++line;
      inside = 0;
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      if (inside == 0 || !one_line_strings) return line;
    } else if (inside == 0) {
      if (c == '"' || c == '\'' || c == '#') inside = c;
    } else if (inside == '"' && c == '\\') {
      if (i + 1 < text.size() && text[i + 1] != '\n') ++i;
    } else if (inside == c && c != '#') {
      inside = 0;
    }
  }
  return 0;
}

toml::table parse(const std::string& text, const std::string& source) {
  if (const int64_t line = line_beyond_ascii(text); line > 0) {
    throw Error(source + ":" + std::to_string(line) +
                ": expected ASCII outside comments and one-line strings, got another character; put text in quotes");
  }
  try {
    return toml::parse(text, source);
  } catch (const toml::parse_error& error) {
    std::ostringstream where;
    where << source << ":" << error.source().begin.line << ": not valid TOML: " << error.description();
    throw Error(where.str());
  }
}

/// A one-line string: what toml++ writes over several lines does not always read back equal.
std::string toml_value(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.append({'\\', c});
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      char code[8];
      std::snprintf(code, sizeof code, "\\u%04X", static_cast<unsigned>(c));
      out += code;
    } else {
      out += c;
    }
  }
  return out + '"';
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
  bool good = value.find('\n') == std::string::npos && line_beyond_ascii(value) == 0;
  if (good) {
    try {
      parsed = toml::parse("value = " + value);
    } catch (const toml::parse_error&) {
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
      reader.read(known, *parse("value = " + toml_value(value), source).get("value"), member);
    } else {
      throw Error(source + ": expected a TOML value, got " + (value.empty() ? "nothing" : value));
    }
  });
  if (!found) unknown_key(key, "--set");
}

std::string toml_value(int64_t value) { return std::to_string(value); }
std::string toml_value(double value) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;  // the shortest that reads back equal
  std::string text(buffer, end);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}
std::string toml_value(const std::vector<double>& values) {
  std::string text = "[";
  for (const double value : values) {
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
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) throw Error("recipe " + path.string() + ": is a folder, not a file");
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (file) text << file.rdbuf();
  if (!file) throw Error("recipe " + path.string() + ": cannot be read; give the path of a TOML file");
  Recipe recipe = parse_recipe(text.str(), path.string(), overrides);
  if (recipe.run.folder.empty()) recipe.run.folder = (std::filesystem::path("runs") / path.stem()).string();
  return recipe;
}

std::string to_toml(const Recipe& recipe) {
  std::string text;
  std::string section;
  visit_fields(recipe, [&](const std::string& key, const auto& member) {
    const size_t dot = key.find('.');
    if (key.substr(0, dot) != section) {
      section = key.substr(0, dot);
      text.append(text.empty() ? "[" : "\n[").append(section).append("]\n");
    }
    text.append(key.substr(dot + 1)).append(" = ").append(toml_value(member)).append("\n");
  });
  return text;
}

}  // namespace aft

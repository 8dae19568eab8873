#include "train/recipe_text.h"

#include <cstdint>
#include <cstdio>
#include <fstream>

#include "aft/error.h"

namespace aft {
namespace {

constexpr size_t kMostBytes = size_t{1} << 16;  // a recipe takes one or two thousand
constexpr int64_t kDeepest = 16;                // brackets in brackets, names in a dotted key; recipes take two
constexpr char32_t kByteOrderMark = 0xfeff;
constexpr std::string_view kByteOrderMarkBytes = "\xef\xbb\xbf";

std::string hexadecimal(uint32_t number, int digits) {
  char text[16];
  std::snprintf(text, sizeof text, "%0*X", digits, static_cast<unsigned>(number));
  return text;
}

/// The character at the front and its length in bytes; length 0 if the bytes there are not UTF-8.
struct Character {
  char32_t code = 0;
  size_t length = 0;
};
Character first_character(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  if (byte(0) < 0x80) return {byte(0), 1};
  const size_t length = byte(0) >= 0xf0 ? 4 : byte(0) >= 0xe0 ? 3 : 2;
  if (byte(0) < 0xc2 || byte(0) > 0xf4 || text.size() < length) return {};
  char32_t code = byte(0) & (0x7fU >> length);
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0U) != 0x80) return {};
    code = (code << 6) | (byte(i) & 0x3fU);
  }
  const char32_t smallest = length == 4 ? 0x10000 : length == 3 ? 0x800 : 0x80;
  if (code < smallest || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return {};
  return {code, length};
}

/// Control characters (but tab), byte-order marks and code points that Unicode keeps free of characters.
bool is_no_character(char32_t c) {
  return (c < 0x20 && c != '\t') || (c >= 0x7f && c <= 0x9f) || c == kByteOrderMark || (c >= 0xfdd0 && c <= 0xfdef) ||
         (c & 0xfffe) == 0xfffe;
}

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

/// Walks over the text as toml++ does, as far as strings, comments and numbers go.
class Check {
 public:
  Check(std::string_view text, const std::string& source) : text_(text), source_(source) {}

  void run() {
    if (text_.size() > kMostBytes) {
      throw Error(source_ + ": expected a recipe of at most " + std::to_string(kMostBytes) +
                  " bytes, got more; give the path of a recipe");
    }
    if (text_.starts_with(kByteOrderMarkBytes)) at_ = kByteOrderMarkBytes.size();
    while (at_ < text_.size()) step();
  }

 private:
  enum class Inside { kNothing, kNumber, kComment, kString, kLongString };

  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(source_ + ":" + std::to_string(line_) + ": " + what);
  }

  void step() {
    const Character character = first_character(text_.substr(at_));
    if (character.length == 0) {
      refuse("expected UTF-8, got the byte 0x" + hexadecimal(static_cast<unsigned char>(text_[at_]), 2) +
             "; save the text as UTF-8");
    }
    const bool line_end = text_[at_] == '\n' || text_.substr(at_, 2) == "\r\n";
    if (!line_end && is_no_character(character.code)) {
      refuse("expected text, got U+" + hexadecimal(character.code, 4) +
             ", a control character, a byte-order mark or no character at all; remove it, or write it as \\u in "
             "double quotes");
    }
    if (character.code >= 0x80) {
      // toml++ asks whether it is white space, which is undefined for some (its issues 190 and 295).
      if (inside_ != Inside::kComment && inside_ != Inside::kString) {
        refuse("expected ASCII outside comments and one-line strings, got another character; put text in quotes");
      }
    } else {
      ascii(text_[at_]);
    }
    if (text_[at_] == '\n') end_line();
    at_ += character.length;
  }

  void end_line() {
    ++line_;
    if (inside_ != Inside::kLongString) inside_ = Inside::kNothing;
    dots_ = 0;
    fresh_ = true;
  }

  void ascii(char c) {
    if (inside_ == Inside::kComment) return;
    if (inside_ == Inside::kString || inside_ == Inside::kLongString) {
      in_string(c);
    } else if (is_blank(c) || c == ']' || c == '}' || c == ',' || c == '#') {
      // What ends a number, or whatever else stands there.
      inside_ = c == '#' ? Inside::kComment : Inside::kNothing;
      fresh_ = true;
      if (c == ',') dots_ = 0;
      if (c == ']' || c == '}') --depth_;
    } else if (c == '"' || c == '\'') {
      // toml++ reads a number up to one of those above, past quotes: what follows would be text to us, code to it.
      if (inside_ == Inside::kNumber) refuse("a quote inside a number; put a space, a comma or a line end before text");
      open_string(c);
    } else if (inside_ == Inside::kNothing) {
      code(c);
    }
    if (c == '.' && (inside_ == Inside::kNothing || inside_ == Inside::kNumber) && ++dots_ > kDeepest) too_deep();
  }

  void code(char c) {
    if (fresh_ && ((c >= '0' && c <= '9') || c == '+' || c == '-')) inside_ = Inside::kNumber;
    fresh_ = c == '=' || c == '[' || c == '{';
    if (fresh_) dots_ = 0;
    if ((c == '[' || c == '{') && ++depth_ > kDeepest) too_deep();
  }

  [[noreturn]] void too_deep() const {
    refuse("expected at most " + std::to_string(kDeepest) + " tables or arrays in one another, got more");
  }

  void open_string(char c) {
    quote_ = c;
    const bool three = text_.substr(at_, 3) == std::string(3, c);
    inside_ = three ? Inside::kLongString : Inside::kString;
    if (three) at_ += 2;
  }

  void in_string(char c) {
    if (c == '\\' && quote_ == '"') {
      // The escaped character: a quote or a backslash ends nothing.
      if (at_ + 1 < text_.size() && (text_[at_ + 1] == '"' || text_[at_ + 1] == '\\')) ++at_;
    } else if (c == quote_) {
      if (inside_ == Inside::kLongString) {
        // Three to five quotes end it, the last three of them; fewer are text.
        size_t quotes = 1;
        while (quotes < 5 && text_.substr(at_ + quotes).starts_with(c)) ++quotes;
        at_ += quotes - 1;
        if (quotes < 3) return;
      }
      inside_ = Inside::kNothing;
      fresh_ = false;
    }
  }

  std::string_view text_;
  const std::string& source_;
  size_t at_ = 0;
  int64_t line_ = 1;
  Inside inside_ = Inside::kNothing;
  char quote_ = 0;     // of the string inside which we are
  bool fresh_ = true;  // a digit or a sign here begins a number
  int64_t depth_ = 0;  // of brackets
  int64_t dots_ = 0;   // of the key that may stand here
};

}  // namespace

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = first_character(text).length;
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

void check_recipe_text(std::string_view text, const std::string& source) { Check(text, source).run(); }

std::string read_recipe_text(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) throw Error("recipe " + path.string() + ": is a folder, not a file");
  std::ifstream file(path, std::ios::binary);
  std::string text(kMostBytes + 1, '\0');
  if (file) file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file && !file.eof()) throw Error("recipe " + path.string() + ": cannot be read; give the path of a TOML file");
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

std::string toml_string(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const Character character = first_character(text);
    const size_t length = character.length == 0 ? 1 : character.length;
    if (text[0] == '"' || text[0] == '\\') {
      out.append({'\\', text[0]});
    } else if (text[0] == '\t' || (character.length > 0 && is_no_character(character.code))) {
      out += character.code > 0xffff ? "\\U" + hexadecimal(character.code, 8) : "\\u" + hexadecimal(character.code, 4);
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length);
  }
  return out + '"';
}

}  // namespace aft

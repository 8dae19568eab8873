#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace aft {

/// Whether the text is UTF-8 (RFC 3629): no stray or missing bytes, no overlong forms, no surrogates, none above
/// 10FFFF.
bool is_utf8(std::string_view text);

/// Throws aft::Error, which names `source` and the line, for text that the TOML parser must not see: toml++ 3.3 is
/// undefined for some of it, and recurses as deep as tables nest. What passes may still not be TOML.
void check_recipe_text(std::string_view text, const std::string& source);

/// The bytes of a file, read no further than check_recipe_text would take. Throws aft::Error if it cannot be read.
std::string read_recipe_text(const std::filesystem::path& path);

/// `text`, if it is UTF-8, as a one-line string that check_recipe_text takes and the parser reads back the same.
std::string toml_string(std::string_view text);

}  // namespace aft

#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace aft {

/// Edits (insert, delete, replace, swap of neighbours) between two words.
size_t edit_distance(std::string_view a, std::string_view b);

/// The known word with the fewest edits to `word`; `known` is not empty.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

}  // namespace aft

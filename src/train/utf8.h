#pragma once

#include <string_view>

namespace aft {

/// Whether the text is UTF-8 (RFC 3629): no stray or missing bytes, no overlong forms, no surrogates, none above
/// 10FFFF.
bool is_utf8(std::string_view text);

}  // namespace aft

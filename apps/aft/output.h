#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

#include "common/output.h"  // IWYU pragma: export

namespace aft::app {

/// One line of JSON; text that is not UTF-8 is shown with replacement characters.
void write_json(const nlohmann::ordered_json& json);

/// 1234567 -> "1,234,567".
std::string grouped(int64_t number);

/// printf's "%.*f".
std::string fixed(double number, int digits);

}  // namespace aft::app

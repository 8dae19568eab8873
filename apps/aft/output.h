#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace aft::app {

/// Thrown by write_out() when whoever reads our output has gone: the program ends, quietly.
struct ClosedPipe {};

/// Writes to standard output at once. Throws ClosedPipe, or std::system_error for what else goes wrong.
void write_out(std::string_view bytes);

/// One line of JSON; text that is not UTF-8 is shown with replacement characters.
void write_json(const nlohmann::ordered_json& json);

/// 1234567 -> "1,234,567".
std::string grouped(int64_t number);

/// printf's "%.*f".
std::string fixed(double number, int digits);

}  // namespace aft::app

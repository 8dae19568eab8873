#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <type_traits>
#include <utility>

#include "aft/error.h"

namespace aft {

/// The value of `key`, whose type is that of `out`: integers are whole numbers from 0 that fit. nlohmann's own get_to()
/// takes a truth for a number and casts one that does not fit. Throws aft::Error, or nlohmann's if there is no `key`.
template <typename T>
void read_value(const nlohmann::json& json, const char* key, T& out) {
  const nlohmann::json& value = json.at(key);
  bool good = false;
  if constexpr (std::is_same_v<T, bool>) {
    good = value.is_boolean();
  } else if constexpr (std::is_integral_v<T>) {
    good = value.is_number_unsigned() && std::in_range<T>(value.get<uint64_t>());
  } else if constexpr (std::is_floating_point_v<T>) {
    good = value.is_number();
  } else {
    good = value.is_string();
  }
  if (!good) {
    constexpr const char* kExpected = std::is_same_v<T, bool>       ? "true or false"
                                      : std::is_integral_v<T>       ? "a whole number that fits 64 bits"
                                      : std::is_floating_point_v<T> ? "a number"
                                                                    : "text";
    // Not the value of an array or an object: dump() recurses as deep as it nests.
    throw Error(std::string(key) + ": expected " + kExpected + ", got " +
                (value.is_number() ? value.dump() : value.type_name()));
  }
  value.get_to(out);
}

}  // namespace aft

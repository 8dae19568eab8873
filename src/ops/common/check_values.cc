#include <cstdlib>
#include <string_view>

#include "aft/ops/device.h"

namespace aft::ops {

bool check_values_by_default() {
  static const bool asked = [] {
    const char* value = std::getenv("AFT_CHECK_VALUES");
    return value != nullptr && *value != '\0' && std::string_view(value) != "0";
  }();
  return asked;
}

}  // namespace aft::ops

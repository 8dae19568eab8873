#include "train/device_name.h"

#include <charconv>
#include <string_view>

#include "aft/error.h"

namespace aft {

std::optional<int8_t> cuda_index(const std::string& key, const std::string& name) {
  if (name == "cpu") return std::nullopt;
  if (name == "cuda") return 0;
  constexpr std::string_view kPrefix = "cuda:";
  if (name.starts_with(kPrefix)) {
    const char* const begin = name.data() + kPrefix.size();
    const char* const end = name.data() + name.size();
    int8_t index = 0;
    const auto [stop, error] = std::from_chars(begin, end, index);
    const bool plain = end - begin == 1 || (end > begin && *begin != '0');  // one name for a device
    if (error == std::errc() && stop == end && index >= 0 && plain) return index;
  }
  throw Error(key + ": expected cpu, cuda or cuda:N with N from 0 to 127, got " + (name.empty() ? "nothing" : name) +
              "; no name leaves the choice to the program");
}

}  // namespace aft

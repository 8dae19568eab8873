// Any text as a recipe, and as an override: a recipe that is written and read back the same, or aft::Error.

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <vector>

#include "aft/error.h"
#include "train/train.h"

namespace {

void parse(const std::string& toml, const std::vector<std::string>& overrides) {
  std::optional<aft::Recipe> recipe;
  try {
    recipe = aft::parse_recipe(toml, "fuzz.toml", overrides);
  } catch (const aft::Error&) {
    return;
  }
  const std::string resolved = aft::to_toml(*recipe);
  if (aft::to_toml(aft::parse_recipe(resolved, "resolved.toml")) != resolved) std::abort();
  try {
    aft::validate(*recipe, true);
  } catch (const aft::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  parse(text, {});
  parse("", {text});
  return 0;
}

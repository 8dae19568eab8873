// Any text as a line of metrics.jsonl: no metric, or one that is written and read back the same.

#include <cstdint>
#include <string>

#include "memory_file.h"
#include "train/metrics.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto metric = aft::metric_from_json(std::string(reinterpret_cast<const char*>(data), size));
  if (!metric) return 0;
  const std::string line = aft::to_json_line(*metric);
  const auto again = aft::metric_from_json(line);
  require(again && aft::to_json_line(*again) == line);
  return 0;
}

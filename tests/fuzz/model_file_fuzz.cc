// Any bytes as a model file: it opens and is readable to its last byte, or aft::Error is thrown.

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "aft/error.h"
#include "aft/runtime/model_file.h"
#include "memory_file.h"

namespace {

void open_model(std::string_view bytes) {
  const MemoryFile written(bytes);
  try {
    const aft::SafetensorsFile file(written.path());
    uint64_t sum = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      std::vector<std::byte> values(tensor.bytes);
      file.read(tensor, values.data());
      for (const std::byte value : values) sum += std::to_integer<uint64_t>(value);
    }
    require(sum <= 255 * bytes.size());
    const aft::runtime::ModelFile model(written.path());
    require(model.parameters() <= static_cast<int64_t>(bytes.size()));
    float value = 0;
    model.read("head.weight", 0, 1, &value);
  } catch (const aft::Error&) {
  }
}

void read_config(std::string_view text) {
  try {
    const aft::ModelConfig config = aft::model_config_from_json(text);
    const std::string json = aft::to_json(config);
    require(aft::to_json(aft::model_config_from_json(json)) == json);
  } catch (const aft::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  open_model(bytes);
  // The same as a header, up to a zero byte, and data: a mutation rarely keeps the length in front right.
  const uint64_t header = std::min(bytes.find('\0'), size);
  std::string file(sizeof header, '\0');
  std::memcpy(file.data(), &header, sizeof header);
  file += bytes.substr(0, header);
  if (header < size) file += bytes.substr(header + 1);
  open_model(file);
  read_config(bytes);
  return 0;
}

// Any bytes as an IDX file, by a plain name and as .gz: read to the last byte, the same packed as plain, or refused.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../data/gzip.h"
#include "aft/error.h"
#include "data/idx.h"
#include "memory_file.h"

namespace {

std::optional<aft::IdxArray> read(std::string_view bytes, const char* name, size_t dimensions) {
  const MemoryFile file(bytes);
  try {
    return aft::read_idx(file.descriptor(), name, dimensions);
  } catch (const aft::Error&) {
    return std::nullopt;
  }
}

std::string written(const aft::IdxArray& array) {
  std::string bytes = std::string("\0\0\x08", 3) + static_cast<char>(array.extents.size());
  for (const int64_t extent : array.extents) {
    for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(extent >> shift & 255);
  }
  return bytes + std::string(array.values.begin(), array.values.end());
}

/// Images of the shape that the file says, of whatever height and width.
void use(aft::IdxArray array) {
  if (array.values.empty()) return;
  const aft::ImageShape shape{array.extents[1], array.extents[2], 1};
  const std::vector<uint8_t> labels(static_cast<size_t>(array.extents[0]));
  const aft::Images images(shape, 1, {std::move(array.values), labels}, {}, 0, {true, 10});
  std::vector<uint8_t> image(static_cast<size_t>(shape.bytes()));
  for (const uint64_t draw : {0, 2}) images.read(aft::Split::kTrain, array.extents[0] - 1, draw, image);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  for (const size_t dimensions : {1, 3}) {
    const auto packed = read(bytes, "data.gz", dimensions);
    require(!packed || read(written(*packed), "data", dimensions));
    const auto plain = read(bytes, "data", dimensions);
    if (!bytes.starts_with("\xfd")) {  // else it may be .xz
      require(!plain || written(*plain) == bytes);
      const auto unpacked = read(aft::gzip(std::string(bytes)), "data.gz", dimensions);
      require(unpacked.has_value() == plain.has_value());
      require(!unpacked || written(*unpacked) == bytes);
    }
    if (plain && dimensions == 3) use(*plain);
  }
  return 0;
}

// Any bytes as a JPEG file: a picture of the size that it says, the same each time, or aft::Error.

#include <cstdint>
#include <optional>
#include <span>

#include "aft/error.h"
#include "image/jpeg.h"
#include "image/read_picture.h"
#include "memory_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const uint8_t> bytes(data, size);
  std::optional<aft::Picture> picture;
  try {
    picture = aft::decode_jpeg(bytes, "fuzz.jpg");
  } catch (const aft::Error&) {
    return 0;
  }
  require(picture->shape.channels == 1 || picture->shape.channels == 3);
  require(std::ssize(picture->values) == picture->shape.bytes() && picture->shape.bytes() > 0);
  require(aft::decode_picture(bytes, "fuzz.jpg").values == picture->values);
  return 0;
}

// Any bytes as a PNG file, as they are and with every chunk's checksum put right: a picture that is written and read
// the same, or aft::Error.

#include <zlib.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "aft/error.h"
#include "image/png.h"
#include "image/read_picture.h"
#include "memory_file.h"

namespace {

using Bytes = std::vector<uint8_t>;

void decode(const Bytes& bytes) {
  std::optional<aft::Picture> picture;
  try {
    picture = aft::decode_png(bytes, "fuzz.png");
  } catch (const aft::Error&) {
    return;
  }
  require(std::ssize(picture->values) == picture->shape.bytes() && picture->shape.bytes() > 0);
  require(aft::decode_picture(bytes, "fuzz.png").values == picture->values);
  if (picture->values.size() > 1 << 16) return;  // writing takes long
  const aft::Picture again = aft::decode_png(aft::encode_png(*picture), "again.png");
  require(again.shape == picture->shape && again.values == picture->values);
  for (const int64_t channels : {1, 3}) {
    require(std::ssize(aft::with_channels(*picture, channels).values) ==
            picture->shape.height * picture->shape.width * channels);
  }
}

void mend_checksums(Bytes& bytes) {
  constexpr size_t kSignature = 8;
  constexpr size_t kAround = 12;  // length, type and checksum
  for (size_t at = kSignature; bytes.size() - at >= kAround;) {
    uint64_t length = 0;
    for (size_t i = 0; i < 4; ++i) length = length << 8 | bytes[at + i];
    if (length > bytes.size() - at - kAround) return;
    const uint64_t sum = crc32(0, bytes.data() + at + 4, static_cast<uInt>(length + 4));
    for (size_t i = 0; i < 4; ++i) bytes[at + 8 + length + i] = static_cast<uint8_t>(sum >> (24 - 8 * i));
    at += kAround + length;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, data + size);
  decode(bytes);
  if (size < 8) return 0;
  mend_checksums(bytes);
  decode(bytes);
  return 0;
}

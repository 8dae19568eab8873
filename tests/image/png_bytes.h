#pragma once

#include <zlib.h>

#include <cstdint>
#include <stdexcept>
#include <string>

// PNG files by the standard's text, without libpng.

namespace aft::test {

inline std::string big_endian(uint32_t number) {
  std::string bytes;
  for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(number >> shift);
  return bytes;
}

inline std::string chunk(const std::string& type, const std::string& data) {
  const std::string covered = type + data;
  const auto* bytes = reinterpret_cast<const Bytef*>(covered.data());
  return big_endian(static_cast<uint32_t>(data.size())) + covered +
         big_endian(static_cast<uint32_t>(crc32(0, bytes, static_cast<uInt>(covered.size()))));
}

struct PngHeader {
  uint32_t width = 1;
  uint32_t height = 1;
  int depth = 8;
  int color = 0;  // 0 grey, 2 three colours, 3 palette, 4 grey and alpha, 6 three colours and alpha
  bool interlaced = false;
};

/// `rows`: each with its filter type in front; `others`: chunks before the pixels.
inline std::string png(const PngHeader& header, const std::string& rows, const std::string& others = "") {
  std::string first = big_endian(header.width) + big_endian(header.height);
  for (const int value : {header.depth, header.color, 0, 0, header.interlaced ? 1 : 0})
    first += static_cast<char>(value);
  uLongf size = compressBound(static_cast<uLong>(rows.size()));
  std::string packed(size, '\0');
  if (compress(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(rows.data()),
               static_cast<uLong>(rows.size())) != Z_OK) {
    throw std::runtime_error("zlib");
  }
  packed.resize(size);
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", first) + others + chunk("IDAT", packed) + chunk("IEND", "");
}

}  // namespace aft::test

#include "image/read_picture.h"

#include <algorithm>
#include <cctype>
#include <vector>

#include "aft/error.h"
#include "image/jpeg.h"
#include "image/png.h"
#include "io/read_file.h"

namespace aft {
namespace {

constexpr size_t kMostBytes = size_t{1} << 28;  // the largest picture as a PNG of 16 bits a value that does not shrink
                                                // is half of that
constexpr size_t kShown = 8;

/// "begins with \"GIF89a\\x01\\x00\"", or that there is nothing.
std::string beginning(std::span<const uint8_t> bytes) {
  if (bytes.empty()) return "an empty file";
  std::string text;
  for (const uint8_t byte : bytes.first(std::min(bytes.size(), kShown))) {
    constexpr const char* kDigits = "0123456789abcdef";
    if (std::isprint(byte) != 0 && byte < 0x80 && byte != '"' && byte != '\\') {
      text += static_cast<char>(byte);
    } else {
      text.append("\\x").append(1, kDigits[byte >> 4]).append(1, kDigits[byte & 15]);
    }
  }
  return "one that begins with \"" + text + "\"";
}

}  // namespace

bool is_named_as_picture(const std::filesystem::path& path) {
  std::string ending = path.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  return ending == ".jpg" || ending == ".jpeg" || ending == ".png";
}

Picture decode_picture(std::span<const uint8_t> bytes, const std::string& name) {
  if (begins_like_png(bytes)) return decode_png(bytes, name);
  if (begins_like_jpeg(bytes)) return decode_jpeg(bytes, name);
  throw Error(name + ": expected a JPEG or PNG file, got " + beginning(bytes) + "; convert it to one of them");
}

Picture read_picture(const std::filesystem::path& path) {
  return decode_picture(read_file(path, kMostBytes), path.string());
}

}  // namespace aft

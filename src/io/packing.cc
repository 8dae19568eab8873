#include "io/packing.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <string>
#include <string_view>

#include "aft/error.h"

namespace aft {
namespace {

/// A way to compress: how its files end and begin. Some have nothing to begin with that no text has.
struct Format {
  std::string_view ending;
  std::string_view magic;
};
constexpr auto kFormats = std::to_array<Format>({
    {".xz",
     {"\xfd"
      "7zXZ\0",
      6}},
    {".gz", "\x1f\x8b\x08"},
    {".tgz", ""},
    {".zip", "PK\3\4"},
    {".zst", "\x28\xb5\x2f\xfd"},
    {".bz2", "BZh"},
    {".lz4", "\x04\x22\x4d\x18"},
    {".7z", "7z\xbc\xaf\x27\x1c"},
    {".rar", "Rar!\x1a\7"},
    {".lz", "LZIP\1"},
    {".lzma", ""},
    {".z", "\x1f\x9d"},
    {".br", ""},
});

bool begins_like(const Format& format, std::string_view head) {
  if (format.magic.empty() || !head.starts_with(format.magic)) return false;
  // A text may well begin with "BZh"; a bzip2 file goes on with a digit and the digits of pi.
  return format.ending != ".bz2" || (head.size() >= 8 && head.substr(4, 4) == "1AY&");
}

}  // namespace

Packing packing_of(const std::filesystem::path& name, std::span<const uint8_t> head) {
  const std::string_view begin(reinterpret_cast<const char*>(head.data()), head.size());
  std::string ending = name.extension().string();
  std::transform(ending.begin(), ending.end(), ending.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const Format& format : kFormats) {
    const bool named = ending == format.ending;
    const bool begun = begins_like(format, begin);
    if (format.ending == ".xz") {
      if (named || begun) return Packing::kXz;
    } else if (begun) {
      throw Error(name.string() + ": its content is compressed (as in " + std::string(format.ending) +
                  " files); decompress it, or pack it with xz");
    } else if (named) {
      throw Error(name.string() +
                  ": its name says that it is compressed, and of that only .xz is read; decompress it, " +
                  "or rename it if it is not");
    }
  }
  return Packing::kPlain;
}

}  // namespace aft

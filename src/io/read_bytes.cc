#include "io/read_bytes.h"

#include <lzma.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <string_view>

#include "aft/error.h"

namespace aft {
namespace {

constexpr size_t kBlock = 1 << 16;
constexpr uint64_t kDecoderMemory = uint64_t{1} << 30;  // xz -9 asks for 65 MiB

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

std::string describe(lzma_ret status) {
  switch (status) {
    case LZMA_FORMAT_ERROR:
      return "not an .xz file although its name says so";
    case LZMA_BUF_ERROR:
      return "the .xz stream is truncated";
    case LZMA_MEMLIMIT_ERROR:
      return "decoding it takes more than 1 GiB of memory";
    default:
      return "the .xz stream is corrupt";
  }
}

[[noreturn]] void fail(const std::string& name, lzma_ret status) {
  if (status == LZMA_MEM_ERROR) throw SystemError(name + ": cannot be read: not enough memory to decode it");
  throw Error(name + ": cannot be read: " + describe(status));
}

struct Decoder {
  lzma_stream stream = LZMA_STREAM_INIT;
  ~Decoder() { lzma_end(&stream); }
};

/// `input`: what was read already.
void append_xz(int file, const std::string& name, std::vector<uint8_t> input, std::vector<uint8_t>& out) {
  Decoder decoder;
  lzma_stream& stream = decoder.stream;
  lzma_ret status = lzma_stream_decoder(&stream, kDecoderMemory, LZMA_CONCATENATED);
  if (status != LZMA_OK) fail(name, status);
  stream.next_in = input.data();
  stream.avail_in = input.size();
  std::vector<uint8_t> block(kBlock);
  bool ended = false;
  do {
    if (stream.avail_in == 0 && !ended) {
      stream.avail_in = read_some(file, name, block);
      stream.next_in = block.data();
      ended = stream.avail_in == 0;
    }
    const size_t size = out.size();
    out.resize(size + kBlock);
    stream.next_out = out.data() + size;
    stream.avail_out = kBlock;
    status = lzma_code(&stream, ended ? LZMA_FINISH : LZMA_RUN);
    out.resize(size + kBlock - stream.avail_out);
  } while (status == LZMA_OK);
  if (status != LZMA_STREAM_END) fail(name, status);
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

size_t read_some(int file, const std::string& name, std::span<uint8_t> block) {
  while (true) {
    const ssize_t got = ::read(file, block.data(), block.size());
    if (got >= 0) return static_cast<size_t>(got);
    if (errno != EINTR) throw_errno(name + ": cannot be read", errno);
  }
}

void append_bytes(int file, const std::filesystem::path& name, std::vector<uint8_t>& out) {
  const std::string text = name.string();
  std::vector<uint8_t> head(kPackingBytes);
  size_t held = 0;
  while (held < head.size()) {
    const size_t got = read_some(file, text, std::span(head).subspan(held));
    if (got == 0) break;
    held += got;
  }
  head.resize(held);
  if (packing_of(name, head) == Packing::kXz) return append_xz(file, text, std::move(head), out);
  out.insert(out.end(), head.begin(), head.end());
  while (true) {
    const size_t size = out.size();
    out.resize(size + kBlock);
    const size_t got = read_some(file, text, std::span(out).subspan(size));
    out.resize(size + got);
    if (got == 0) return;
  }
}

}  // namespace aft

#include "io/read_bytes.h"

#include <lzma.h>

#include <span>
#include <string>
#include <utility>

#include "aft/error.h"
#include "io/packing.h"
#include "io/read_file.h"

namespace aft {
namespace {

constexpr size_t kBlock = 1 << 16;
constexpr uint64_t kDecoderMemory = uint64_t{1} << 30;  // xz -9 asks for 65 MiB

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

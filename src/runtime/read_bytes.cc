#include "runtime/read_bytes.h"

#include <lzma.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace aft {
namespace {

constexpr size_t kBlock = 1 << 16;
constexpr uint64_t kDecoderMemory = uint64_t{1} << 30;  // xz -9 asks for 65 MiB

ssize_t read_some(int file, uint8_t* data, size_t size) {
  ssize_t got = 0;
  do {
    got = read(file, data, size);
  } while (got < 0 && errno == EINTR);
  return got;
}

std::string describe(lzma_ret status) {
  switch (status) {
    case LZMA_FORMAT_ERROR:
      return "not an .xz file although its name says so";
    case LZMA_BUF_ERROR:
      return "the .xz stream is truncated";
    case LZMA_MEMLIMIT_ERROR:
      return "decoding it takes more than 1 GiB of memory";
    case LZMA_MEM_ERROR:
      return "not enough memory to decode it";
    default:
      return "the .xz stream is corrupt";
  }
}

struct Decoder {
  lzma_stream stream = LZMA_STREAM_INIT;
  ~Decoder() { lzma_end(&stream); }
};

}  // namespace

std::string append_plain(int file, std::vector<uint8_t>& out) {
  for (;;) {
    const size_t size = out.size();
    out.resize(size + kBlock);
    const ssize_t got = read_some(file, out.data() + size, kBlock);
    out.resize(size + static_cast<size_t>(got > 0 ? got : 0));
    if (got < 0) return std::strerror(errno);
    if (got == 0) return {};
  }
}

std::string append_xz(int file, std::vector<uint8_t>& out) {
  Decoder decoder;
  lzma_stream& stream = decoder.stream;
  lzma_ret status = lzma_stream_decoder(&stream, kDecoderMemory, LZMA_CONCATENATED);
  if (status != LZMA_OK) return describe(status);
  std::vector<uint8_t> input(kBlock);
  bool ended = false;
  do {
    if (stream.avail_in == 0 && !ended) {
      const ssize_t got = read_some(file, input.data(), input.size());
      if (got < 0) return std::strerror(errno);
      ended = got == 0;
      stream.next_in = input.data();
      stream.avail_in = static_cast<size_t>(got);
    }
    const size_t size = out.size();
    out.resize(size + kBlock);
    stream.next_out = out.data() + size;
    stream.avail_out = kBlock;
    status = lzma_code(&stream, ended ? LZMA_FINISH : LZMA_RUN);
    out.resize(size + kBlock - stream.avail_out);
  } while (status == LZMA_OK);
  return status == LZMA_STREAM_END ? std::string{} : describe(status);
}

}  // namespace aft

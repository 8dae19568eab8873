#include "data/data_file.h"

#include <zlib.h>

#include <system_error>

#include "aft/error.h"
#include "io/read_bytes.h"
#include "io/read_file.h"

namespace aft {
namespace {

namespace fs = std::filesystem;

constexpr size_t kBlock = 1 << 16;
constexpr int kGzipOnly = 15 + 16;  // the largest window, and no other header than gzip's

[[noreturn]] void fail(const std::string& name, int status, const z_stream& stream) {
  if (status == Z_MEM_ERROR) throw SystemError(name + ": cannot be read: not enough memory to decode it");
  const std::string reason = stream.msg ? " (" + std::string(stream.msg) + ")" : "";
  throw Error(name + ": cannot be read: the .gz stream is " + (status == Z_OK ? "truncated" : "corrupt" + reason));
}

struct Inflater {
  z_stream stream{};
  ~Inflater() { inflateEnd(&stream); }
};

std::vector<uint8_t> read_gzip(int file, const std::string& name) {
  Inflater inflater;
  z_stream& stream = inflater.stream;
  int status = inflateInit2(&stream, kGzipOnly);
  if (status != Z_OK) fail(name, status, stream);
  std::vector<uint8_t> out;
  std::vector<uint8_t> block(kBlock);
  while (true) {
    if (stream.avail_in == 0) {
      stream.avail_in = static_cast<uInt>(read_some(file, name, block));
      stream.next_in = block.data();
      if (stream.avail_in == 0) break;
    }
    if (status == Z_STREAM_END) inflateReset(&stream);  // another member
    const size_t size = out.size();
    out.resize(size + kBlock);
    stream.next_out = out.data() + size;
    stream.avail_out = kBlock;
    status = inflate(&stream, Z_NO_FLUSH);
    out.resize(size + kBlock - stream.avail_out);
    if (status != Z_OK && status != Z_STREAM_END) fail(name, status, stream);
  }
  // Nothing is left inside either: the checksum at the end of a member is taken in after all that it covers came out.
  if (status != Z_STREAM_END) fail(name, status, stream);
  return out;
}

}  // namespace

std::optional<fs::path> find_data_file(const fs::path& folder, const std::string& name) {
  for (const char* packing : {"", ".gz", ".xz"}) {
    const fs::path path = folder / (name + packing);
    std::error_code error;
    if (fs::symlink_status(path, error).type() != fs::file_type::not_found) return path;
  }
  return std::nullopt;
}

fs::path require_data_file(const fs::path& folder, const std::string& name, const std::string& format) {
  if (const auto path = find_data_file(folder, name)) return *path;
  std::error_code error;
  const bool is_folder = fs::is_directory(folder, error);
  throw Error("data.path: expected a folder with " + name + " (plain, .gz or .xz), as of " + format + ", got " +
              folder.string() + ", which " + (is_folder ? "has none" : "is no folder"));
}

std::vector<uint8_t> read_data_file(int file, const fs::path& name) {
  if (name.extension() == ".gz") return read_gzip(file, name.string());
  std::vector<uint8_t> out;
  append_bytes(file, name, out);
  return out;
}

}  // namespace aft

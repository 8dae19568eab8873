#include <lzma.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "aft/error.h"
#include "data/data.h"
#include "io/file_descriptor.h"
#include "io/packing.h"
#include "io/read_bytes.h"
#include "io/read_file.h"

namespace aft {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& what) {
  throw Error("data: cannot read " + path.string() + ": " + what);
}

bool is_plain(const fs::path& path, int file) {
  uint8_t head[kPackingBytes];
  const ssize_t got = read_at(file, 0, sizeof head, head);
  if (got < 0) throw_errno("data: " + path.string() + ": cannot be read", errno);
  return packing_of(path, {head, static_cast<size_t>(got)}) == Packing::kPlain;
}

void append_file(const fs::path& path, std::vector<uint8_t>& out) {
  const FileDescriptor file = open_to_read(path);
  append_bytes(file.get(), path, out);
}

/// A run's own files change while it trains: they are no data, also where a data folder holds the folder of runs.
bool holds_run(const fs::path& folder) {
  std::error_code error;
  return fs::exists(folder / "recipe.toml", error) && fs::exists(folder / "metrics.jsonl", error);
}

std::vector<fs::path> files_in(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const bool skipped = it->path().filename().string().starts_with('.');
    if (it->is_directory()) {
      if (skipped || holds_run(it->path())) it.disable_recursion_pending();
    } else if (!skipped && it->is_regular_file()) {
      files.push_back(it->path());
    }
  }
  if (error) fail(folder, error.message());
  std::sort(files.begin(), files.end(),
            [](const fs::path& a, const fs::path& b) { return a.generic_string() < b.generic_string(); });
  return files;
}

}  // namespace

/// Bytes in memory, or an open file.
struct Bytes::Source {
  std::vector<uint8_t> memory;
  std::optional<FileDescriptor> file;
  fs::path path;
};

Bytes::Bytes(std::vector<uint8_t> bytes) : size_(static_cast<int64_t>(bytes.size())) {
  auto source = std::make_shared<Source>();
  source->memory = std::move(bytes);
  source_ = std::move(source);
}

Bytes Bytes::load(const fs::path& path) {
  std::error_code error;
  const auto status = fs::status(path, error);
  if (!fs::exists(status)) fail(path, "no such file or folder");
  if (fs::is_regular_file(status)) {
    auto source = std::make_shared<Source>();
    source->path = path;
    source->file = open_to_read(path);
    if (is_plain(path, source->file->get())) {
      struct stat info {};
      if (fstat(source->file->get(), &info) != 0) fail(path, std::strerror(errno));
      Bytes bytes;
      bytes.size_ = info.st_size;
      bytes.source_ = std::move(source);
      return bytes;
    }
  }
  std::vector<uint8_t> buffer;
  if (fs::is_directory(status)) {
    for (const auto& file : files_in(path)) append_file(file, buffer);
  } else {
    append_file(path, buffer);
  }
  return Bytes(std::move(buffer));
}

void Bytes::read(int64_t begin, std::span<uint8_t> out) const {
  if (out.empty()) return;
  if (!source_->file) {
    std::copy_n(source_->memory.begin() + begin_ + begin, out.size(), out.begin());
    return;
  }
  const ssize_t got = read_at(source_->file->get(), static_cast<uint64_t>(begin_ + begin), out.size(), out.data());
  if (got < 0) fail(source_->path, std::strerror(errno));
  if (static_cast<size_t>(got) < out.size()) {
    fail(source_->path, "it has become shorter since it was opened; restore it");
  }
}

std::vector<uint8_t> Bytes::read(int64_t begin, int64_t count) const {
  std::vector<uint8_t> out(static_cast<size_t>(count));
  read(begin, out);
  return out;
}

Bytes Bytes::slice(int64_t begin, int64_t count) const {
  Bytes part = *this;
  part.begin_ += begin;
  part.size_ = count;
  return part;
}

uint64_t checksum(const Bytes& bytes) {
  constexpr int64_t kBlock = 1 << 20;
  std::vector<uint8_t> block;
  uint64_t sum = 0;
  for (int64_t begin = 0; begin < bytes.size(); begin += kBlock) {
    block.resize(static_cast<size_t>(std::min(kBlock, bytes.size() - begin)));
    bytes.read(begin, block);
    sum = lzma_crc64(block.data(), block.size(), sum);
  }
  return sum;
}

}  // namespace aft

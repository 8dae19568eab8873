// The safetensors layout: 8 bytes little-endian header length N, N bytes of JSON
// {"name": {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {string: string}}, then the data.

#include "aft/io/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "aft/error.h"
#include "io/file_descriptor.h"
#include "io/read_file.h"
#include "io/write_file.h"

namespace aft {

static_assert(std::endian::native == std::endian::little, "tensors are little-endian and used as they are");

namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;  // the limit of the reference implementation
constexpr int kMaxDepth = 3;                  // object of objects of arrays
constexpr char kMetadata[] = "__metadata__";

/// Bytes of one element, 0 for a name we do not know.
uint64_t dtype_bytes(const std::string& dtype) {
  static const std::map<std::string, uint64_t> sizes = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
  const auto found = sizes.find(dtype);
  return found == sizes.end() ? 0 : found->second;
}

/// Bytes of a dense tensor; false on overflow.
bool tensor_bytes(const std::vector<int64_t>& shape, uint64_t element, uint64_t* bytes) {
  *bytes = element;
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(*bytes, static_cast<uint64_t>(extent), bytes)) return false;
  }
  return true;
}

/// Parses the header, refusing what the plain parser lets pass: a key given twice and deep nesting.
Json parse_header(const char* begin, const char* end, const std::string& where) {
  std::vector<std::set<std::string>> keys(kMaxDepth + 1);
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (depth > kMaxDepth) throw Error(where + ": the header nests deeper than a safetensors header can");
    if (event == Json::parse_event_t::object_start && depth < kMaxDepth) keys[depth + 1].clear();
    if (event == Json::parse_event_t::key && !keys[depth].insert(parsed.get<std::string>()).second) {
      throw Error(where + ": the header gives \"" + parsed.get<std::string>() + "\" twice");
    }
    return true;
  };
  try {
    return Json::parse(begin, end, watch);
  } catch (const Json::exception& e) {
    throw Error(where + ": the header is not JSON (" + e.what() + "); the file is corrupted or not a safetensors file");
  }
}

struct Range {
  uint64_t begin, end;
  std::string name;
};

/// One tensor's entry. Its offsets are relative to byte `data` of the file, which `size` bytes follow.
TensorEntry read_entry(const std::string& name, const Json& entry, uint64_t data, uint64_t size,
                       const std::string& where, std::vector<Range>* ranges) {
  const std::string what = where + ": tensor \"" + name + "\": ";
  if (!entry.is_object()) throw Error(what + "expected an object, got a " + entry.type_name());
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") throw Error(what + "unknown key \"" + key + "\"");
  }
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!entry.contains(key)) throw Error(what + "the key \"" + key + "\" is missing");
  }
  const Json& dtype = entry["dtype"];
  const Json& shape = entry["shape"];
  const Json& offsets = entry["data_offsets"];

  TensorEntry tensor;
  if (!dtype.is_string()) throw Error(what + "dtype: expected a string, got a " + dtype.type_name());
  tensor.dtype = dtype.get<std::string>();
  const uint64_t element = dtype_bytes(tensor.dtype);
  if (element == 0) throw Error(what + "unknown dtype \"" + tensor.dtype + '"');

  if (!shape.is_array()) throw Error(what + "shape: expected an array, got a " + shape.type_name());
  for (const Json& extent : shape) {
    if (!extent.is_number_unsigned() ||
        extent.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      throw Error(what + "shape: expected whole numbers, got " + extent.dump());
    }
    tensor.shape.push_back(extent.get<int64_t>());
  }
  uint64_t bytes = 0;
  if (!tensor_bytes(tensor.shape, element, &bytes)) throw Error(what + "shape " + shape.dump() + " overflows");

  if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
      !offsets[1].is_number_unsigned()) {
    throw Error(what + "data_offsets: expected two whole numbers, got " + offsets.dump());
  }
  const auto begin = offsets[0].get<uint64_t>();
  const auto end = offsets[1].get<uint64_t>();
  if (begin > end || end > size) {
    throw Error(what + "data_offsets " + offsets.dump() + " do not lie inside the " + std::to_string(size) +
                " bytes of data; the file is truncated or corrupted");
  }
  if (end - begin != bytes) {
    throw Error(what + tensor.dtype + " of shape " + shape.dump() + " takes " + std::to_string(bytes) +
                " bytes, but data_offsets give " + std::to_string(end - begin));
  }
  tensor.offset = data + begin;
  tensor.bytes = bytes;
  if (tensor.offset % element != 0) {
    throw Error(what +
                "starts at a byte that is not a multiple of its element size; write the file again with a "
                "current safetensors, which aligns it");
  }
  ranges->push_back({begin, end, name});
  return tensor;
}

/// Reads `bytes` bytes from `offset` on, which the file had when it was opened.
void read_existing(const FileDescriptor& file, uint64_t offset, size_t bytes, void* to, const std::string& where) {
  const ssize_t got = read_at(file.get(), offset, bytes, to);
  if (got < 0) throw_errno(where + ": cannot be read", errno);
  if (static_cast<size_t>(got) < bytes) {
    throw Error(where + ": became shorter while it was read; is another process writing it?");
  }
}

}  // namespace

struct SafetensorsFile::Contents {
  std::string where;
  FileDescriptor file;
  std::map<std::string, TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) {
  const std::string where = path.string();
  FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (file.get() < 0) throw_errno(where + ": cannot be opened", errno);
  struct stat status = {};
  if (::fstat(file.get(), &status) != 0) throw_errno(where + ": cannot be examined", errno);
  if (!S_ISREG(status.st_mode)) throw Error(where + ": expected a safetensors file, got something that is not a file");
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size < 8) throw Error(where + ": expected a safetensors file, got only " + std::to_string(size) + " bytes");

  uint64_t header = 0;
  read_existing(file, 0, sizeof header, &header, where);
  char first = '{';
  if (size > 8) read_existing(file, 8, 1, &first, where);
  if (header > kMaxHeader || header < 2 || first != '{') {
    throw Error(where + ": not a safetensors file (it does not begin with a header)");
  }
  if (header > size - 8) {
    throw Error(where + ": the header takes " + std::to_string(header) + " bytes, but only " +
                std::to_string(size - 8) + " follow; the file is truncated");
  }
  std::string text(header, '\0');
  read_existing(file, 8, header, text.data(), where);
  const Json json = parse_header(text.data(), text.data() + header, where);
  contents_ = std::make_unique<Contents>(Contents{where, std::move(file), {}, {}});
  if (!json.is_object()) throw Error(where + ": the header is not a JSON object");

  const uint64_t data_size = size - 8 - header;
  std::vector<Range> ranges;
  for (const auto& [name, entry] : json.items()) {
    if (name != kMetadata) {
      contents_->tensors.emplace(name, read_entry(name, entry, 8 + header, data_size, where, &ranges));
      continue;
    }
    if (!entry.is_object()) throw Error(where + ": __metadata__: expected an object, got a " + entry.type_name());
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) throw Error(where + ": __metadata__: \"" + key + "\" is not a string");
      contents_->metadata.emplace(key, value.get<std::string>());
    }
  }

  std::sort(ranges.begin(), ranges.end(),
            [](const Range& a, const Range& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  uint64_t covered = 0;
  for (const Range& range : ranges) {
    if (range.begin != covered) {
      throw Error(where + ": tensor \"" + range.name + "\" begins at byte " + std::to_string(range.begin) +
                  " of the data, expected " + std::to_string(covered) +
                  (range.begin < covered ? ": it overlaps another" : ": there is a hole before it"));
    }
    covered = range.end;
  }
  if (covered != data_size) {
    throw Error(where + ": the tensors take " + std::to_string(covered) + " bytes, but " + std::to_string(data_size) +
                " follow the header");
  }
}

SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::map<std::string, TensorEntry>& SafetensorsFile::tensors() const { return contents_->tensors; }
const std::map<std::string, std::string>& SafetensorsFile::metadata() const { return contents_->metadata; }

void SafetensorsFile::read(const TensorEntry& tensor, size_t begin, size_t bytes, void* to) const {
  read_existing(contents_->file, tensor.offset + begin, bytes, to, contents_->where);
}

void write_safetensors(const std::filesystem::path& path, const std::map<std::string, TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata) {
  // Widest elements first, so that every tensor is aligned to its element size.
  std::vector<const std::pair<const std::string, TensorView>*> order;
  for (const auto& tensor : tensors) {
    const std::string what = path.string() + ": tensor \"" + tensor.first + "\": ";
    const TensorView& view = tensor.second;
    const uint64_t element = dtype_bytes(view.dtype);
    uint64_t bytes = 0;
    if (tensor.first == kMetadata) throw Error(what + "this name is kept for the metadata");
    if (element == 0) throw Error(what + "unknown dtype \"" + view.dtype + '"');
    if (!tensor_bytes(view.shape, element, &bytes)) throw Error(what + "its shape overflows");
    if (bytes != view.bytes) {
      throw Error(what + "expected " + std::to_string(bytes) + " bytes for its shape, got " +
                  std::to_string(view.bytes));
    }
    order.push_back(&tensor);
  }
  std::stable_sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return dtype_bytes(a->second.dtype) > dtype_bytes(b->second.dtype);
  });

  Json json = Json::object();
  if (!metadata.empty()) json[kMetadata] = metadata;
  uint64_t offset = 0;
  for (const auto* tensor : order) {
    const TensorView& view = tensor->second;
    json[tensor->first] = {
        {"dtype", view.dtype}, {"shape", view.shape}, {"data_offsets", {offset, offset + view.bytes}}};
    offset += view.bytes;
  }
  std::string header;
  try {
    header = json.dump();
  } catch (const Json::exception& e) {  // a name or a value that is not UTF-8
    throw Error(path.string() + ": the header cannot be written: " + e.what());
  }
  header.resize((header.size() + 7) / 8 * 8, ' ');
  if (header.size() > kMaxHeader) throw Error(path.string() + ": the header is too long");
  const uint64_t length = header.size();

  std::vector<FilePart> parts = {{&length, sizeof length}, {header.data(), header.size()}};
  for (const auto* tensor : order) parts.push_back({tensor->second.data, tensor->second.bytes});
  write_parts_atomically(path, parts);
}

}  // namespace aft

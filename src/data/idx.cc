#include "data/idx.h"

#include <algorithm>
#include <limits>
#include <span>
#include <sstream>
#include <string>
#include <utility>

#include "aft/error.h"
#include "data/data_file.h"
#include "io/read_file.h"

namespace aft {
namespace {

namespace fs = std::filesystem;

constexpr uint8_t kUnsignedBytes = 0x08;
constexpr int64_t kUsualPart = 6;  // of train is held out
constexpr const char* kFormat = "a data set in IDX";

[[noreturn]] void fail(const fs::path& name, const std::string& what) {
  throw Error("data: " + name.string() + ": " + what);
}

uint32_t big_endian(std::span<const uint8_t, 4> bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | bytes[3];
}

/// Of the extents, or the most that can be if that overflows.
uint64_t product(const std::vector<int64_t>& extents) {
  constexpr auto kMost = std::numeric_limits<uint64_t>::max();
  uint64_t all = 1;
  if (std::find(extents.begin(), extents.end(), 0) != extents.end()) return 0;
  for (const int64_t extent : extents) {
    const auto factor = static_cast<uint64_t>(extent);
    if (all > kMost / factor) return kMost;
    all *= factor;
  }
  return all;
}

std::string joined(const std::vector<int64_t>& extents) {
  std::ostringstream text;
  for (size_t i = 0; i < extents.size(); ++i) text << (i ? " x " : "") << extents[i];
  return text.str();
}

struct Part {
  LabelledImages images;
  ImageShape shape;
  fs::path from;
};

Part load_part(const fs::path& folder, const std::string& prefix) {
  const fs::path images_file = require_data_file(folder, prefix + "-images-idx3-ubyte", kFormat);
  const fs::path labels_file = require_data_file(folder, prefix + "-labels-idx1-ubyte", kFormat);
  IdxArray images = read_idx(open_to_read(images_file).get(), images_file, 3);
  IdxArray labels = read_idx(open_to_read(labels_file).get(), labels_file, 1);
  if (images.extents[0] != labels.extents[0]) {
    fail(labels_file, "expected a label for each of the " + std::to_string(images.extents[0]) + " images of " +
                          images_file.string() + ", got " + std::to_string(labels.extents[0]) +
                          "; take both from one set");
  }
  if (images.values.empty()) {
    fail(images_file, "expected at least one image, got " + joined(images.extents) + " values");
  }
  return {{std::move(images.values), std::move(labels.values)}, {images.extents[1], images.extents[2], 1}, images_file};
}

}  // namespace

IdxArray read_idx(int file, const fs::path& name, size_t dimensions) {
  std::vector<uint8_t> bytes = read_data_file(file, name);
  const size_t header = 4 + 4 * dimensions;
  if (bytes.size() < 4 || bytes[0] != 0 || bytes[1] != 0) {
    fail(name, "expected an IDX file, which begins with two zero bytes, a type and the number of dimensions, got " +
                   std::string(bytes.size() < 4 ? "fewer than four bytes" : "other bytes"));
  }
  if (bytes[2] != kUnsignedBytes) {
    std::ostringstream type;
    type << std::hex << int{bytes[2]};
    fail(name, "expected unsigned bytes, type 0x8 of IDX, got type 0x" + type.str());
  }
  if (bytes[3] != dimensions) {
    fail(name, "expected an IDX file of " + std::to_string(dimensions) +
                   (dimensions == 1 ? " dimension" : " dimensions") + ", got " + std::to_string(bytes[3]));
  }
  if (bytes.size() < header) {
    fail(name, "expected a header of " + std::to_string(header) + " bytes, got " + std::to_string(bytes.size()) +
                   "; it is truncated");
  }
  IdxArray array;
  for (size_t at = 4; at < header; at += 4) {
    array.extents.push_back(big_endian(std::span(bytes).subspan(at).first<4>()));
  }
  if (const size_t held = bytes.size() - header; product(array.extents) != held) {
    fail(name, "its header promises " + joined(array.extents) + " values of a byte, and " + std::to_string(held) +
                   " follow; it is " + (held < product(array.extents) ? "truncated" : "longer than it should be") +
                   ", get it again");
  }
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(header));
  array.values = std::move(bytes);
  return array;
}

std::unique_ptr<Images> load_idx(const fs::path& folder, int64_t holdout, Augmentation augmentation) {
  Part train = load_part(folder, "train");
  Part test;
  if (find_data_file(folder, "t10k-images-idx3-ubyte") || find_data_file(folder, "t10k-labels-idx1-ubyte")) {
    test = load_part(folder, "t10k");
    if (test.shape != train.shape) {
      fail(test.from, "expected images of " + joined({train.shape.height, train.shape.width}) + ", as in " +
                          train.from.string() + ", got " + joined({test.shape.height, test.shape.width}));
    }
  }
  int64_t classes = 0;
  for (const Part* part : {&train, &test}) {
    for (const uint8_t label : part->images.labels) classes = std::max<int64_t>(classes, label + 1);
  }
  if (holdout == -1) holdout = static_cast<int64_t>(train.images.labels.size()) / kUsualPart;
  return std::make_unique<Images>(train.shape, classes, std::move(train.images), std::move(test.images), holdout,
                                  augmentation);
}

}  // namespace aft

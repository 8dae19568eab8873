#include "data/cifar10.h"

#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "aft/error.h"
#include "data/data_file.h"
#include "io/read_file.h"

namespace aft {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kClasses = 10;
constexpr int64_t kBatches = 5;
constexpr int64_t kUsualHoldout = 5000;
constexpr ImageShape kShape{32, 32, 3};
constexpr size_t kPlane = 32 * 32;
constexpr size_t kRecord = 1 + 3 * kPlane;
constexpr const char* kFormat = "the binary version of CIFAR-10";

std::vector<std::string> class_names() {
  return {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"};
}

void append_file(const fs::path& path, LabelledImages& out) { append_cifar10(open_to_read(path).get(), path, out); }

std::string batch_name(int64_t number) { return "data_batch_" + std::to_string(number) + ".bin"; }

}  // namespace

void append_cifar10(int file, const fs::path& name, LabelledImages& out) {
  const std::vector<uint8_t> bytes = read_data_file(file, name);
  if (bytes.empty() || bytes.size() % kRecord != 0) {
    throw Error("data: " + name.string() + ": expected one or more records of " + std::to_string(kRecord) +
                " bytes, got " + std::to_string(bytes.size()) + " bytes; it is truncated, or not of " + kFormat);
  }
  const size_t count = bytes.size() / kRecord;
  const size_t before = out.labels.size();
  out.pixels.resize((before + count) * 3 * kPlane);
  out.labels.resize(before + count);
  for (size_t i = 0; i < count; ++i) {
    const auto record = std::span(bytes).subspan(i * kRecord, kRecord);
    if (record[0] >= kClasses) {
      throw Error("data: " + name.string() + ": expected labels of 0 to 9, got " + std::to_string(record[0]) +
                  " in record " + std::to_string(i) + ", counted from 0; it is corrupt, or not of " + kFormat);
    }
    out.labels[before + i] = record[0];
    uint8_t* const image = out.pixels.data() + (before + i) * 3 * kPlane;
    for (size_t channel = 0; channel < 3; ++channel) {
      const uint8_t* const plane = record.data() + 1 + channel * kPlane;
      for (size_t pixel = 0; pixel < kPlane; ++pixel) image[3 * pixel + channel] = plane[pixel];
    }
  }
}

std::unique_ptr<Images> load_cifar10(const fs::path& folder, int64_t holdout, Augmentation augmentation) {
  // Up to the last that is there, all must be: one lost from the middle would go unnoticed.
  int64_t batches = kBatches;
  while (batches > 1 && !find_data_file(folder, batch_name(batches))) --batches;
  LabelledImages train;
  for (int64_t number = 1; number <= batches; ++number) {
    append_file(require_data_file(folder, batch_name(number), kFormat), train);
  }
  LabelledImages test;
  if (const auto path = find_data_file(folder, "test_batch.bin")) append_file(*path, test);
  return std::make_unique<Images>(kShape, class_names(), std::move(train), std::move(test),
                                  holdout == -1 ? kUsualHoldout : holdout, augmentation);
}

}  // namespace aft

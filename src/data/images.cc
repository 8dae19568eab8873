#include "data/images.h"

#include <lzma.h>

#include <algorithm>
#include <string>
#include <utility>

#include "aft/error.h"
#include "data/cifar10.h"
#include "data/data_file.h"
#include "data/idx.h"
#include "data/image_folder.h"

namespace aft {
namespace {

void require_images(const std::string& name, const ImageShape& shape, int64_t classes, const LabelledImages& images) {
  if (images.pixels.size() != images.labels.size() * static_cast<size_t>(shape.bytes())) {
    throw Error("data: expected " + std::to_string(images.labels.size()) + " images of " +
                std::to_string(shape.bytes()) + " bytes in " + name + ", one a label, got " +
                std::to_string(images.pixels.size()) + " bytes");
  }
  for (const uint8_t label : images.labels) {
    if (label >= classes) {
      throw Error("data: expected labels below " + std::to_string(classes) + " in " + name + ", got " +
                  std::to_string(label));
    }
  }
}

}  // namespace

Images::Images(ImageShape shape, int64_t classes, LabelledImages train, LabelledImages test, int64_t holdout,
               Augmentation augmentation)
    : ImageSet(shape),
      train_(std::move(train)),
      test_(std::move(test)),
      holdout_(holdout),
      augmentation_(augmentation) {
  set_classes(classes);
  if (shape.height < 1 || shape.width < 1 || shape.channels < 1) {
    throw Error("data: expected images of at least one pixel, got " + std::to_string(shape.height) + " x " +
                std::to_string(shape.width) + " x " + std::to_string(shape.channels));
  }
  require_augmentation(augmentation);
  require_images("train", shape, classes, train_);
  require_images("test", shape, classes, test_);
  const auto count = static_cast<int64_t>(train_.labels.size());
  if (count == 0) throw Error("data: expected at least one training image, got none");
  if (holdout < 0 || holdout >= count) {
    throw Error("data.holdout: expected at least 0 and fewer than the " + std::to_string(count) +
                " training images there are, got " + std::to_string(holdout) + "; hold fewer out for validation");
  }
}

Images::Images(ImageShape shape, std::vector<std::string> class_names, LabelledImages train, LabelledImages test,
               int64_t holdout, Augmentation augmentation)
    : Images(shape, std::ssize(class_names), std::move(train), std::move(test), holdout, augmentation) {
  set_classes(std::move(class_names));
}

int64_t Images::size(Split split) const {
  if (split == Split::kValid) return holdout_;
  return static_cast<int64_t>(part(split).labels.size()) - (split == Split::kTrain ? holdout_ : 0);
}

int64_t Images::bytes(Split split, int64_t index) const {
  require_index(split, index);
  return shape().bytes();
}

Label Images::read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const {
  require_room(split, index, out.size());
  const int64_t image = first(split) + index;
  const auto pixels = part(split).pixels.begin() + image * shape().bytes();
  if (draw) {
    const Picture picture = augmented({shape(), {pixels, pixels + shape().bytes()}}, {shape()}, augmentation_, *draw);
    std::copy(picture.values.begin(), picture.values.end(), out.begin());
  } else {
    std::copy_n(pixels, out.size(), out.begin());
  }
  return {.first = part(split).labels[static_cast<size_t>(image)]};
}

uint64_t Images::checksum(Split split) const {
  const auto begin = static_cast<size_t>(first(split));
  const auto count = static_cast<size_t>(size(split));
  const auto image = static_cast<size_t>(shape().bytes());
  const uint64_t pixels = lzma_crc64(part(split).pixels.data() + begin * image, count * image, 0);
  return lzma_crc64(part(split).labels.data() + begin, count, pixels);
}

std::unique_ptr<ImageSet> load_images(const DataConfig& config, const ImageView& view) {
  validate(config);
  const Augmentation augmentation = augmentation_of(config);
  if (config.format == "cifar10") return load_cifar10(config.path, config.holdout, augmentation);
  if (config.format == "idx") return load_idx(config.path, config.holdout, augmentation);
  if (config.format == "folder") {
    const Broken broken = config.broken == "skip" ? Broken::kSkip : Broken::kStop;
    return std::make_unique<ImageFolder>(config.path, view, config.holdout, augmentation, broken);
  }
  throw Error("data.format: expected images (\"cifar10\", \"idx\" or \"folder\"), got \"" + config.format + "\"");
}

bool is_data_set(const std::filesystem::path& folder) {
  return find_data_file(folder, "data_batch_1.bin") || find_data_file(folder, "train-images-idx3-ubyte");
}

std::unique_ptr<ImageSet> load_any_images(const std::filesystem::path& folder, const ImageView& view) {
  DataConfig config;
  config.path = folder.string();
  config.holdout = 0;
  if (find_data_file(folder, "data_batch_1.bin")) {
    config.format = "cifar10";
  } else if (find_data_file(folder, "train-images-idx3-ubyte")) {
    config.format = "idx";
  } else if (has_folders(folder)) {
    config.format = "folder";
  } else {
    throw Error("data: " + folder.string() +
                ": expected the folder of a data set, with data_batch_1.bin (CIFAR-10) or " +
                "train-images-idx3-ubyte (IDX), plain, .gz or .xz, or a folder of images for each class, got one " +
                "with none of them");
  }
  return load_images(config, view);
}

}  // namespace aft

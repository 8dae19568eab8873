#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/augmentation.h"
#include "data/data.h"
#include "data/data_set.h"
#include "image/picture.h"

namespace aft {

/// Images and their labels, one after the other.
struct LabelledImages {
  std::vector<uint8_t> pixels;  // [count, height, width, channels]: the channels of a pixel beside each other
  std::vector<uint8_t> labels;  // [count]
};

/// Images of one shape, in classes. An example is uint8 [height, width, channels] and has a label.
class ImageSet : public DataSet {
 public:
  [[nodiscard]] const ImageShape& shape() const { return shape_; }
  /// Labels are 0, 1, ... classes() - 1.
  [[nodiscard]] int64_t classes() const { return classes_; }
  [[nodiscard]] std::span<const std::string> class_names() const override { return class_names_; }

 protected:
  explicit ImageSet(const ImageShape& shape) : shape_(shape) {}
  void set_classes(int64_t number, std::vector<std::string> names = {}) {
    classes_ = number;
    class_names_ = std::move(names);
  }
  void set_classes(std::vector<std::string> names) {
    classes_ = std::ssize(names);
    class_names_ = std::move(names);
  }

 private:
  ImageShape shape_;
  int64_t classes_ = 0;
  std::vector<std::string> class_names_;
};

/// Images that are all in memory. Valid is held out at the end of train.
class Images : public ImageSet {
 public:
  /// The last `holdout` images of `train` are valid and no longer of train; `test` may be empty. Throws aft::Error if
  /// there is no image, the numbers of pixels and labels do not fit, a label is not below `classes`, or `holdout` is
  /// negative or leaves no image in train.
  Images(ImageShape shape, int64_t classes, LabelledImages train, LabelledImages test, int64_t holdout,
         Augmentation augmentation);

  /// The same with a class for each name.
  Images(ImageShape shape, std::vector<std::string> class_names, LabelledImages train, LabelledImages test,
         int64_t holdout, Augmentation augmentation);

  [[nodiscard]] int64_t size(Split split) const override;
  [[nodiscard]] int64_t bytes(Split split, int64_t index) const override;
  Label read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const override;
  /// Of all pixels as they are kept, then all labels, one byte each.
  [[nodiscard]] uint64_t checksum(Split split) const override;

 private:
  [[nodiscard]] const LabelledImages& part(Split split) const { return split == Split::kTest ? test_ : train_; }
  [[nodiscard]] int64_t first(Split split) const { return split == Split::kValid ? size(Split::kTrain) : 0; }

  LabelledImages train_;  // with valid at the end
  LabelledImages test_;
  int64_t holdout_;
  Augmentation augmentation_;
};

/// The images that a configuration of format "cifar10", "idx" or "folder" names. Those of a folder are given as `view`
/// has them, the others in the shape that they have. Throws aft::Error, naming the key or the file, if the
/// configuration is wrong, or a file is missing, cannot be read or is not what it should be.
std::unique_ptr<ImageSet> load_images(const DataConfig& config, const ImageView& view);

/// Whether the folder holds a data set in one of the forms of CIFAR-10 and MNIST.
bool is_data_set(const std::filesystem::path& folder);

/// The images of a folder, of whichever format its files or folders are named as, nothing held out. Throws aft::Error
/// if it has none of them, or as load_images().
std::unique_ptr<ImageSet> load_any_images(const std::filesystem::path& folder, const ImageView& view);

}  // namespace aft

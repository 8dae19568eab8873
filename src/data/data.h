#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

// Byte data for the trainer: any file or folder, plain or .xz, split into train, valid and test, cut into windows.

namespace aft {

/// Where the data come from: for bytes, either `path` with `split`, or one file or folder for each split; for images,
/// the folder `path`.
struct DataConfig {
  std::string format = "bytes";                   // bytes, cifar10, idx, folder: data/<format>.h, image_folder.h
  std::string path;                               // bytes: a file, or a folder read in sorted order, .xz decoded
  std::vector<double> split = {0.9, 0.05, 0.05};  // fractions of `path` for train, valid, test, in this order; sum 1
  std::string train;                              // instead of path: the training bytes
  std::string valid;                              // may stay empty: no validation
  std::string test;                               // may stay empty
  int64_t holdout = -1;                           // images at the end of train that are valid; -1: as the format has it
  bool flip = false;                              // of training images: Augmentation (data/augmentation.h)
  int64_t jitter = 0;                             // the same; 0 to 255
  std::vector<double> crop_scale;                 // the same: CropScale (image/augment/random_crop.h); empty: none
  int64_t rand_augment = 0;                       // the same: operations of RandAugment (image/augment/rand_augment.h)
  double magnitude = 9;                           // of those
  double magnitude_deviation = 0.5;               // the same
  double erase = 0;                               // the same: probability of erase() (image/augment/erase.h)
  double mixup = 0;                               // of training images that are classified: Mixing (data/mixing.h)
  double cutmix = 0;                              // the same
  double mix_probability = 1;                     // the same
  std::string broken = "stop";                    // folder: what a file does that cannot be read; or skip
};

/// Throws aft::Error naming the key, what was expected and what came. Does not touch the files.
void validate(const DataConfig& config);

/// Read-only bytes, shared by everything that copies it. A single plain file stays on disk and is read where it is
/// needed; .xz and folders are decoded or read once into memory.
class Bytes {
 public:
  Bytes() = default;
  /// Bytes in memory.
  explicit Bytes(std::vector<uint8_t> bytes);

  /// `path`: a file, or a folder whose regular files are joined in order of their relative path (names that begin with
  /// a dot are skipped, and folders in which a run is kept). Throws aft::Error for a missing, unreadable or corrupt
  /// file.
  static Bytes load(const std::filesystem::path& path);

  [[nodiscard]] int64_t size() const { return size_; }

  /// Reads the out.size() bytes from `begin` on, which lie inside. Throws aft::Error, naming the file, if it can no
  /// longer be read or has become shorter.
  void read(int64_t begin, std::span<uint8_t> out) const;
  [[nodiscard]] std::vector<uint8_t> read(int64_t begin, int64_t count) const;

  /// The `count` bytes from `begin` on, which lie inside.
  [[nodiscard]] Bytes slice(int64_t begin, int64_t count) const;

 private:
  struct Source;
  std::shared_ptr<const Source> source_;
  int64_t begin_ = 0;
  int64_t size_ = 0;
};

/// The three parts of a data set; valid and test may be empty.
struct DataSplits {
  Bytes train;
  Bytes valid;
  Bytes test;
};

/// Of format "bytes". Throws aft::Error if the configuration is wrong, a file cannot be read, or a split that was asked
/// for is empty.
DataSplits load_splits(const DataConfig& config);

/// CRC-64/XZ: tells one split from another.
uint64_t checksum(const Bytes& bytes);

}  // namespace aft

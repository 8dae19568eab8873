#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

#include "data/images.h"

// IDX, the format of MNIST and of the sets made in its likeness: two zero bytes, a type, the number of dimensions, the
// extent of each as 32 bits, high byte first, then the values, the last dimension fastest. Only type 0x08, unsigned
// bytes, is read.

namespace aft {

/// Loads train-images-idx3-ubyte and train-labels-idx1-ubyte, and for test t10k-images-idx3-ubyte and
/// t10k-labels-idx1-ubyte, both or neither, from `folder`. Each file may also be packed, as .gz or .xz. Images have one
/// channel; there are as many classes as the largest label of all files, plus one. The last `holdout` training images
/// are valid; -1: the last sixth of them, rounded down (10,000 of the 60,000 of MNIST). Throws aft::Error, naming the
/// file, if it is missing, cannot be read, is truncated or something else, does not fit its fellow, or too few images
/// are left for train.
std::unique_ptr<Images> load_idx(const std::filesystem::path& folder, int64_t holdout, Augmentation augmentation);

struct IdxArray {
  std::vector<int64_t> extents;
  std::vector<uint8_t> values;
};

/// One file with `dimensions` dimensions, of which `file` is an open descriptor and `name` the name for errors.
IdxArray read_idx(int file, const std::filesystem::path& name, size_t dimensions);

}  // namespace aft

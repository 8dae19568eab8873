#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>

#include "data/images.h"

// The binary version of CIFAR-10: records of 3,073 bytes, a label of 0 to 9 and then 32 rows of 32 red values, as many
// green and as many blue.

namespace aft {

/// Loads data_batch_1.bin ... data_batch_5.bin, in this order the training images, and test_batch.bin from `folder`.
/// Subsets will do: a file may hold any number of whole records, at least one; batches may be missing from the end, but
/// the first; without test_batch.bin there is no test split. Each file may also be packed, as .gz or .xz. The last
/// `holdout` training images are valid; -1: the last 5,000, as is usual. Throws aft::Error, naming the file, if it is
/// missing, cannot be read, is truncated or something else, or too few images are left for train.
std::unique_ptr<Images> load_cifar10(const std::filesystem::path& folder, int64_t holdout, Augmentation augmentation);

/// Appends the images of one such file, of which `file` is an open descriptor and `name` the name for errors.
void append_cifar10(int file, const std::filesystem::path& name, LabelledImages& out);

}  // namespace aft

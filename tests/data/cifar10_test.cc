#include "data/cifar10.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "examples.h"
#include "gzip.h"
#include "message.h"
#include "scratch.h"
#include "xz.h"

namespace aft {
namespace {

/// Value of a channel (0 red) at a place, so that no two neighbours, rows, channels or images are alike.
uint8_t value(int image, int row, int column, int channel) {
  return static_cast<uint8_t>(image * 31 + row * 7 + column * 3 + channel * 101);
}

/// `count` records, numbered on from `first`; the label is the last digit of the number.
std::string records(int first, int count) {
  std::string out;
  for (int image = first; image < first + count; ++image) {
    out += static_cast<char>(image % 10);
    for (int channel = 0; channel < 3; ++channel) {
      for (int row = 0; row < 32; ++row) {
        for (int column = 0; column < 32; ++column) out += static_cast<char>(value(image, row, column, channel));
      }
    }
  }
  return out;
}

/// That record as an example.
Example expected(int image) {
  Example example;
  for (int row = 0; row < 32; ++row) {
    for (int column = 0; column < 32; ++column) {
      for (int channel = 0; channel < 3; ++channel) example.first.push_back(value(image, row, column, channel));
    }
  }
  example.second.first = image % 10;
  return example;
}

void expect_images(const ImageSet& images, Split split, int first, int count) {
  ASSERT_EQ(images.size(split), count);
  for (int i = 0; i < count; ++i) EXPECT_EQ(example(images, split, i), expected(first + i)) << i;
}

std::string refusal(const std::filesystem::path& folder, int64_t holdout = 0) {
  return message([&] { load_cifar10(folder, holdout, {}); });
}

TEST(Cifar10, FiveBatchesAndTest) {
  const Scratch scratch;
  // As many as none has by accident, and not all of one length.
  const int counts[] = {3, 1, 4, 2, 5};
  int first = 0;
  for (int batch = 0; batch < 5; ++batch) {
    scratch.write("data_batch_" + std::to_string(batch + 1) + ".bin", records(first, counts[batch]));
    first += counts[batch];
  }
  scratch.write("test_batch.bin", records(100, 7));
  scratch.write("batches.meta.txt", "airplane\n");
  const auto images = load_cifar10(scratch.path(), 6, {});
  EXPECT_EQ(images->shape(), (ImageShape{32, 32, 3}));
  EXPECT_EQ(images->classes(), 10);
  expect_images(*images, Split::kTrain, 0, 9);
  expect_images(*images, Split::kValid, 9, 6);
  expect_images(*images, Split::kTest, 100, 7);
}

TEST(Cifar10, OneBatchWillDoPlainOrPacked) {
  for (const char* packing : {"", ".gz", ".xz"}) {
    const Scratch scratch;
    std::string bytes = records(5, 2);
    if (packing == std::string(".gz")) bytes = gzip(bytes);
    if (packing == std::string(".xz")) bytes = xz(bytes);
    scratch.write(std::string("data_batch_1.bin") + packing, bytes);
    const auto images = load_cifar10(scratch.path(), 0, {});
    expect_images(*images, Split::kTrain, 5, 2);
    EXPECT_EQ(images->size(Split::kValid), 0);
    EXPECT_EQ(images->size(Split::kTest), 0);
  }
}

TEST(Cifar10, UsuallyTheLastFiveThousandAreValid) {
  const Scratch scratch;
  scratch.write("data_batch_1.bin", records(0, 1));
  std::string many(size_t{5001} * 3073, '\0');
  many[many.size() - 1] = 7;
  scratch.write("data_batch_2.bin", many);
  DataConfig config;
  config.format = "cifar10";
  config.path = scratch.path().string();
  const auto images = load_images(config, {});
  EXPECT_EQ(images->class_names().size(), 10U);
  EXPECT_EQ(images->class_names()[3], "cat");
  EXPECT_EQ(images->size(Split::kTrain), 2);
  EXPECT_EQ(images->size(Split::kValid), 5000);
  EXPECT_EQ(example(*images, Split::kTrain, 0), expected(0));
  EXPECT_EQ(example(*images, Split::kValid, 4999).first[3071], 7);
  scratch.write("data_batch_2.bin", records(0, 2));
  EXPECT_EQ(
      refusal(scratch.path(), -1),
      "data.holdout: expected at least 0 and fewer than the 3 training images there are, got 5000; hold fewer out "
      "for validation");
}

TEST(Cifar10, LoadImagesHandsOnHoldoutAndAugmentation) {
  const Scratch scratch;
  scratch.write("data_batch_1.bin", records(0, 3));
  DataConfig config;
  config.format = "cifar10";
  config.path = scratch.path().string();
  config.holdout = 1;
  config.flip = true;
  config.jitter = 10;
  const auto images = load_images(config, {});
  expect_images(*images, Split::kTrain, 0, 2);
  expect_images(*images, Split::kValid, 2, 1);
  // Draw 0 flips and adds 5 (images_test.cc).
  const auto [bytes, label] = example(*images, Split::kTrain, 1, 0);
  EXPECT_EQ(label, Label{1});
  for (int column = 0; column < 32; ++column) {
    const int sum = value(1, 2, 31 - column, 1) + 5;
    EXPECT_EQ(bytes[static_cast<size_t>((2 * 32 + column) * 3 + 1)], sum > 255 ? 255 : sum);
  }
}

TEST(Cifar10, MissingFilesAreNamed) {
  const Scratch scratch;
  const auto missing = [&](const std::string& name) {
    return "data.path: expected a folder with " + name +
           " (plain, .gz or .xz), as of the binary version of CIFAR-10, got " + scratch.path().string();
  };
  EXPECT_EQ(refusal(scratch.path()), missing("data_batch_1.bin") + ", which has none");
  EXPECT_EQ(refusal(scratch.path() / "none"), missing("data_batch_1.bin") + "/none, which is no folder");
  scratch.write("data_batch_2.bin", records(0, 1));
  EXPECT_EQ(refusal(scratch.path()), missing("data_batch_1.bin") + ", which has none");
  scratch.write("data_batch_1.bin", records(0, 1));
  EXPECT_EQ(refusal(scratch.path()), "");
  scratch.write("data_batch_5.bin", records(0, 1));
  EXPECT_EQ(refusal(scratch.path()), missing("data_batch_3.bin") + ", which has none");
  scratch.write("data_batch_3.bin", records(0, 1));
  EXPECT_EQ(refusal(scratch.path()), missing("data_batch_4.bin") + ", which has none");
  scratch.write("data_batch_4.bin", records(0, 1));
  EXPECT_EQ(refusal(scratch.path()), "");
  std::filesystem::create_symlink("nowhere", scratch.path() / "test_batch.bin");
  EXPECT_EQ(refusal(scratch.path()),
            (scratch.path() / "test_batch.bin").string() + ": cannot be read: No such file or directory");
}

TEST(Cifar10, TruncatedAndForeignFilesAreNamed) {
  const std::string whole = records(0, 3);
  for (const char* name : {"data_batch_1.bin", "data_batch_3.bin", "test_batch.bin"}) {
    const Scratch scratch;
    for (const char* good : {"data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "test_batch.bin"}) {
      scratch.write(good, whole);
    }
    EXPECT_EQ(refusal(scratch.path()), "");
    const std::string file = (scratch.path() / name).string();
    for (const size_t size : {size_t{0}, size_t{1}, size_t{3072}, size_t{3074}, whole.size() - 1}) {
      scratch.write(name, whole.substr(0, size));
      EXPECT_EQ(refusal(scratch.path()), "data: " + file + ": expected one or more records of 3073 bytes, got " +
                                             std::to_string(size) +
                                             " bytes; it is truncated, or not of the binary version of CIFAR-10");
    }
    std::string foreign = whole;
    foreign[size_t{2} * 3073] = 10;
    scratch.write(name, foreign);
    EXPECT_EQ(refusal(scratch.path()), "data: " + file +
                                           ": expected labels of 0 to 9, got 10 in record 2, counted from 0; it is "
                                           "corrupt, or not of the binary version of CIFAR-10");
  }
}

}  // namespace
}  // namespace aft

#include "data/idx.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "data/data_file.h"
#include "examples.h"
#include "gzip.h"
#include "io/read_file.h"
#include "message.h"
#include "scratch.h"
#include "xz.h"

namespace aft {
namespace {

std::string big_endian(uint32_t number) {
  std::string bytes;
  for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>(number >> shift & 255);
  return bytes;
}

std::string idx(const std::vector<uint32_t>& extents, const std::string& values) {
  std::string bytes = std::string("\0\0\x08", 3) + static_cast<char>(extents.size());
  for (const uint32_t extent : extents) bytes += big_endian(extent);
  return bytes + values;
}

/// 0, 1, 2, ... from `first` on.
std::string numbers(int first, int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) bytes += static_cast<char>(first + i);
  return bytes;
}

const std::string kTrainImages = "train-images-idx3-ubyte";
const std::string kTrainLabels = "train-labels-idx1-ubyte";
const std::string kTestImages = "t10k-images-idx3-ubyte";
const std::string kTestLabels = "t10k-labels-idx1-ubyte";

/// Seven training images and two test images of 2 x 3.
void write_set(const Scratch& scratch) {
  scratch.write(kTrainImages, idx({7, 2, 3}, numbers(0, 42)));
  scratch.write(kTrainLabels, idx({7}, numbers(0, 7)));
  scratch.write(kTestImages, idx({2, 2, 3}, numbers(200, 12)));
  scratch.write(kTestLabels, idx({2}, {8, 3}));
}

std::string refusal(const Scratch& scratch, int64_t holdout = 0) {
  return message([&] { load_idx(scratch.path(), holdout, {}); });
}

Example seen(int first, int64_t label) {
  Example example;
  for (int i = 0; i < 6; ++i) example.first.push_back(static_cast<uint8_t>(first + i));
  example.second.first = label;
  return example;
}

void expect_set(const ImageSet& images) {
  EXPECT_TRUE(images.class_names().empty());
  EXPECT_EQ(images.shape(), (ImageShape{2, 3, 1}));
  EXPECT_EQ(images.classes(), 9);  // the largest label is of a test image
  ASSERT_EQ(images.size(Split::kTrain), 6);
  ASSERT_EQ(images.size(Split::kValid), 1);
  ASSERT_EQ(images.size(Split::kTest), 2);
  for (int i = 0; i < 6; ++i) EXPECT_EQ(example(images, Split::kTrain, i), seen(6 * i, i));
  EXPECT_EQ(example(images, Split::kValid, 0), seen(36, 6));
  EXPECT_EQ(example(images, Split::kTest, 0), seen(200, 8));
  EXPECT_EQ(example(images, Split::kTest, 1), seen(206, 3));
}

TEST(Idx, FourFiles) {
  const Scratch scratch;
  write_set(scratch);
  expect_set(*load_idx(scratch.path(), 1, {}));
}

TEST(Idx, FourFilesPackedAsTheyCome) {
  const Scratch scratch;
  scratch.write(kTrainImages + ".gz", gzip(idx({7, 2, 3}, numbers(0, 42))));
  scratch.write(kTrainLabels + ".xz", xz(idx({7}, numbers(0, 7))));
  scratch.write(kTestImages + ".xz", xz(idx({2, 2, 3}, numbers(200, 12))));
  scratch.write(kTestLabels + ".gz", gzip(idx({2}, {8, 3})));
  DataConfig config;
  config.format = "idx";
  config.path = scratch.path().string();
  expect_set(*load_images(config, {}));  // a sixth of seven is one
}

TEST(Idx, UsuallyTheLastSixthIsValid) {
  for (const auto& [count, valid] : {std::pair(1, 0), {5, 0}, {6, 1}, {11, 1}, {12, 2}, {3000, 500}}) {
    const Scratch scratch;
    const auto images = static_cast<uint32_t>(count);
    scratch.write(kTrainImages, idx({images, 1, 1}, numbers(0, count)));
    scratch.write(kTrainLabels, idx({images}, std::string(images, '\1')));
    const auto set = load_idx(scratch.path(), -1, {});
    EXPECT_EQ(set->size(Split::kValid), valid);
    EXPECT_EQ(set->size(Split::kTrain), count - valid);
    EXPECT_EQ(set->size(Split::kTest), 0);
    EXPECT_EQ(set->classes(), 2);
  }
}

TEST(Idx, TooManyHeldOut) {
  const Scratch scratch;
  write_set(scratch);
  EXPECT_EQ(refusal(scratch, 6), "");
  EXPECT_EQ(refusal(scratch, 7),
            "data.holdout: expected at least 0 and fewer than the 7 training images there are, got 7; hold fewer out "
            "for validation");
}

TEST(Idx, MissingFilesAreNamed) {
  for (const std::string& name : {kTrainImages, kTrainLabels, kTestImages, kTestLabels}) {
    const Scratch scratch;
    write_set(scratch);
    std::filesystem::remove(scratch.path() / name);
    EXPECT_EQ(refusal(scratch), "data.path: expected a folder with " + name +
                                    " (plain, .gz or .xz), as of a data set in IDX, got " + scratch.path().string() +
                                    ", which has none");
  }
}

TEST(Idx, FilesThatDoNotFitEachOtherAreNamed) {
  const Scratch scratch;
  const auto file = [&](const std::string& name) { return (scratch.path() / name).string(); };
  write_set(scratch);
  scratch.write(kTrainLabels, idx({8}, numbers(0, 8)));
  EXPECT_EQ(refusal(scratch), "data: " + file(kTrainLabels) + ": expected a label for each of the 7 images of " +
                                  file(kTrainImages) + ", got 8; take both from one set");
  write_set(scratch);
  scratch.write(kTestImages, idx({2, 3, 2}, numbers(0, 12)));
  EXPECT_EQ(refusal(scratch),
            "data: " + file(kTestImages) + ": expected images of 2 x 3, as in " + file(kTrainImages) + ", got 3 x 2");
  for (const auto& extents : {std::vector<uint32_t>{7, 0, 3}, {7, 2, 0}, {7, 0, 0xffffffff}}) {
    write_set(scratch);
    scratch.write(kTrainImages, idx(extents, ""));
    EXPECT_EQ(refusal(scratch), "data: " + file(kTrainImages) + ": expected at least one image, got 7 x " +
                                    std::to_string(extents[1]) + " x " + std::to_string(extents[2]) + " values");
  }
  scratch.write(kTrainImages, idx({0, 2, 3}, ""));
  scratch.write(kTrainLabels, idx({0}, ""));
  EXPECT_EQ(refusal(scratch), "data: " + file(kTrainImages) + ": expected at least one image, got 0 x 2 x 3 values");
}

std::string read_refusal(const Scratch& scratch, const std::string& name, const std::string& bytes,
                         size_t dimensions = 3) {
  const auto path = scratch.write(name, bytes);
  const std::string text = message([&] { read_idx(open_to_read(path).get(), path, dimensions); });
  const std::string begin = "data: " + path.string() + ": ";
  EXPECT_TRUE(text.empty() || text.starts_with(begin)) << text;
  return text.substr(std::min(begin.size(), text.size()));
}

TEST(ReadIdx, AnyNumberOfDimensions) {
  const Scratch scratch;
  for (const auto& extents : {std::vector<uint32_t>{5}, {2, 3}, {2, 3, 1}, {1, 1, 2, 2}, {0, 7}, {3, 0}}) {
    uint32_t count = 1;
    for (const uint32_t extent : extents) count *= extent;
    const std::string values = numbers(17, static_cast<int>(count));
    const auto path = scratch.write("a", idx(extents, values));
    const IdxArray array = read_idx(open_to_read(path).get(), path, extents.size());
    EXPECT_EQ(array.extents, std::vector<int64_t>(extents.begin(), extents.end()));
    EXPECT_EQ(array.values, std::vector<uint8_t>(values.begin(), values.end()));
  }
}

TEST(ReadIdx, ForeignFilesAreRefused) {
  const Scratch scratch;
  const std::string good = idx({2, 1, 1}, "ab");
  EXPECT_EQ(read_refusal(scratch, "a", good), "");
  const std::string no_idx =
      "expected an IDX file, which begins with two zero bytes, a type and the number of dimensions, got ";
  for (const size_t size : {0, 1, 2, 3}) {
    EXPECT_EQ(read_refusal(scratch, "a", good.substr(0, size)), no_idx + "fewer than four bytes");
  }
  EXPECT_EQ(read_refusal(scratch, "a", "\1" + good.substr(1)), no_idx + "other bytes");
  EXPECT_EQ(read_refusal(scratch, "a", std::string("\0\1", 2) + good.substr(2)), no_idx + "other bytes");
  EXPECT_EQ(read_refusal(scratch, "a", std::string("\0\0\x0d\3", 4) + good.substr(4)),
            "expected unsigned bytes, type 0x8 of IDX, got type 0xd");
  EXPECT_EQ(read_refusal(scratch, "a", good, 1), "expected an IDX file of 1 dimension, got 3");
  EXPECT_EQ(read_refusal(scratch, "a", idx({2}, "ab")), "expected an IDX file of 3 dimensions, got 1");
  EXPECT_EQ(read_refusal(scratch, "a", good.substr(0, 15)), "expected a header of 16 bytes, got 15; it is truncated");
}

TEST(ReadIdx, LyingHeadersAreRefusedWithoutBelievingThem) {
  const Scratch scratch;
  const std::string most = "4294967295 x 4294967295 x 4294967295";
  for (const char* name : {"a", "a.gz", "a.xz"}) {
    const auto pack = [&](const std::string& bytes) {
      return name == std::string("a") ? bytes : name == std::string("a.gz") ? gzip(bytes) : xz(bytes);
    };
    EXPECT_EQ(read_refusal(scratch, name, pack(idx({2, 3, 1}, "abcde"))),
              "its header promises 2 x 3 x 1 values of a byte, and 5 follow; it is truncated, get it again");
    EXPECT_EQ(read_refusal(scratch, name, pack(idx({2, 3, 1}, "abcdefg"))),
              "its header promises 2 x 3 x 1 values of a byte, and 7 follow; it is longer than it should be, get it "
              "again");
    EXPECT_EQ(read_refusal(scratch, name, pack(idx({0xffffffff, 0xffffffff, 0xffffffff}, "ab"))),
              "its header promises " + most + " values of a byte, and 2 follow; it is truncated, get it again");
    // 2^31 x 2^31 x 4 is 0 in 64 bits.
    EXPECT_EQ(read_refusal(scratch, name, pack(idx({0x80000000, 0x80000000, 4}, ""))),
              "its header promises 2147483648 x 2147483648 x 4 values of a byte, and 0 follow; it is truncated, get it "
              "again");
  }
}

TEST(Idx, TheBundledFashionMnist) {
  const auto images = load_idx(AFT_BUNDLED "/fashion", 500, {});
  EXPECT_EQ(images->shape(), (ImageShape{28, 28, 1}));
  EXPECT_EQ(images->classes(), 10);
  EXPECT_EQ(images->size(Split::kTrain), 2500);
  EXPECT_EQ(images->size(Split::kValid), 500);
  // CRC-64/XZ of pixels and labels, worked out in another language.
  EXPECT_EQ(images->checksum(Split::kTrain), 0xaf9a18feeee1ac71ULL);
  EXPECT_EQ(images->checksum(Split::kTest), 0xdb4f28d6f3cfc0ceULL);
}

}  // namespace
}  // namespace aft

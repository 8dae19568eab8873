#include <gtest/gtest.h>

#include "data/data.h"
#include "message.h"
#include "scratch.h"

namespace aft {
namespace {

std::string text(const Bytes& bytes) {
  const auto all = bytes.read(0, bytes.size());
  return {all.begin(), all.end()};
}

std::string load_refusal(const DataConfig& config) {
  return message([&] { load_splits(config); });
}

DataConfig fractions(const std::filesystem::path& path, std::vector<double> split) {
  DataConfig config;
  config.path = path.string();
  config.split = std::move(split);
  return config;
}

TEST(Splits, FractionsCutInOrderAndLoseNoByte) {
  const Scratch scratch;
  const auto file = scratch.write("a", "0123456789");
  auto splits = load_splits(fractions(file, {0.7, 0.2, 0.1}));
  EXPECT_EQ(text(splits.train), "0123456");
  EXPECT_EQ(text(splits.valid), "78");
  EXPECT_EQ(text(splits.test), "9");
  splits = load_splits(fractions(file, {0.9, 0.1, 0.0}));
  EXPECT_EQ(text(splits.train), "012345678");
  EXPECT_EQ(text(splits.valid), "9");
  EXPECT_EQ(splits.test.size(), 0);
  splits = load_splits(fractions(file, {0.9, 0.0, 0.1}));
  EXPECT_EQ(text(splits.train), "012345678");
  EXPECT_EQ(splits.valid.size(), 0);
  EXPECT_EQ(text(splits.test), "9");
  splits = load_splits(fractions(file, {1, 0, 0}));
  EXPECT_EQ(text(splits.train), "0123456789");
}

TEST(Splits, Files) {
  const Scratch scratch;
  DataConfig config;
  config.train = scratch.write("a", "train").string();
  config.test = scratch.write("b", "test").string();
  const auto splits = load_splits(config);
  EXPECT_EQ(text(splits.train), "train");
  EXPECT_EQ(splits.valid.size(), 0);
  EXPECT_EQ(text(splits.test), "test");
}

TEST(Splits, WrongConfigurationsNameTheKey) {
  const Scratch scratch;
  const auto file = scratch.write("a", "0123456789");
  EXPECT_NE(load_refusal(DataConfig{}).find("data.path"), std::string::npos);
  EXPECT_NE(load_refusal(fractions(file, {0.9, 0.2, 0.0})).find("data.split"), std::string::npos);
  EXPECT_NE(load_refusal(fractions(file, {0.9, 0.1})).find("data.split"), std::string::npos);
  EXPECT_NE(load_refusal(fractions(file, {1.1, -0.1, 0.0})).find("data.split"), std::string::npos);
  EXPECT_NE(load_refusal(fractions(file, {0.0, 1.0, 0.0})).find("data.split"), std::string::npos);
  EXPECT_NE(load_refusal(fractions(file, {0.98, 0.01, 0.01})).find("holds none"), std::string::npos);
  auto both = fractions(file, {1, 0, 0});
  both.valid = file.string();
  EXPECT_NE(load_refusal(both).find("both"), std::string::npos);
  EXPECT_NE(load_refusal(fractions(scratch.write("empty", ""), {1, 0, 0})).find("holds none"), std::string::npos);
}

DataConfig images(const std::string& format) {
  DataConfig config;
  config.format = format;
  config.path = "folder";
  return config;
}

std::string refusal(const DataConfig& config) {
  return message([&] { validate(config); });
}

TEST(DataConfig, EachFormatTakesItsOwnKeys) {
  for (const char* format : {"cifar10", "idx"}) {
    DataConfig config = images(format);
    EXPECT_EQ(refusal(config), "");
    for (const int64_t holdout : {-1, 0, 1}) {
      config.holdout = holdout;
      config.flip = holdout == 1;
      config.jitter = holdout == 1 ? 255 : 0;
      EXPECT_EQ(refusal(config), "");
    }
  }
  EXPECT_EQ(refusal(fractions("file", {1, 0, 0})), "");
}

TEST(DataConfig, KeysOfOtherFormatsAreRefusedByName) {
  EXPECT_EQ(refusal(images("cifar")),
            "data.format: expected \"bytes\", \"cifar10\", \"idx\" or \"folder\", got \"cifar\"");
  EXPECT_EQ(refusal(images("")), "data.format: expected \"bytes\", \"cifar10\", \"idx\" or \"folder\", got \"\"");

  const std::string no_images = ": expected nothing with data.format = \"bytes\", which has no images, got ";
  DataConfig config = images("bytes");
  config.holdout = 0;
  EXPECT_EQ(refusal(config), "data.holdout" + no_images + "0; remove it");
  config = images("bytes");
  config.flip = true;
  EXPECT_EQ(refusal(config), "data.flip" + no_images + "true; remove it");
  config = images("bytes");
  config.jitter = 10;
  EXPECT_EQ(refusal(config), "data.jitter" + no_images + "10; remove it");
  config = images("bytes");
  config.mixup = 0.8;
  EXPECT_EQ(refusal(config), "data.mixup" + no_images + "0.8; remove it");
  config = images("bytes");
  config.cutmix = 1;
  EXPECT_EQ(refusal(config), "data.cutmix" + no_images + "1; remove it");
  config = images("bytes");
  config.mix_probability = 0.5;
  EXPECT_EQ(refusal(config), "data.mix_probability" + no_images + "0.5; remove it");

  for (const char* key : {"train", "valid", "test"}) {
    config = images("idx");
    (key == std::string("train") ? config.train : key == std::string("valid") ? config.valid : config.test) = "x";
    EXPECT_EQ(refusal(config), std::string("data.") + key +
                                   ": expected nothing with data.format = \"idx\", got x; give the folder of all "
                                   "files as data.path");
  }
  config = images("idx");
  config.path = "";
  EXPECT_EQ(refusal(config), "data.path: expected a folder with data.format = \"idx\", got nothing");
  config = images("cifar10");
  config.split = {0.8, 0.1, 0.1};
  EXPECT_EQ(refusal(config),
            "data.split: expected nothing with data.format = \"cifar10\", whose files say what is for training and "
            "what for testing, got [0.8, 0.1, 0.1]; remove it, data.holdout is how many training images are for "
            "validation");
  config = images("cifar10");
  config.holdout = -2;
  EXPECT_EQ(refusal(config), "data.holdout: expected a number of images, or -1 for that of the format, got -2");
  for (const int64_t jitter : {-1, 256}) {
    config = images("cifar10");
    config.jitter = jitter;
    EXPECT_EQ(refusal(config), "data.jitter: expected 0 to 255, got " + std::to_string(jitter));
  }
}

TEST(DataConfig, ImagesAreNoBytes) {
  EXPECT_EQ(load_refusal(images("idx")), "data.format: expected \"bytes\", which can be split anywhere, got \"idx\"");
}

}  // namespace
}  // namespace aft

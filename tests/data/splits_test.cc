#include <gtest/gtest.h>

#include "aft/error.h"
#include "data/data.h"
#include "scratch.h"

namespace aft {
namespace {

std::string text(const Bytes& bytes) {
  const auto all = bytes.read(0, bytes.size());
  return {all.begin(), all.end()};
}

std::string message(const DataConfig& config) {
  try {
    load_splits(config);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
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
  EXPECT_NE(message(DataConfig{}).find("data.path"), std::string::npos);
  EXPECT_NE(message(fractions(file, {0.9, 0.2, 0.0})).find("data.split"), std::string::npos);
  EXPECT_NE(message(fractions(file, {0.9, 0.1})).find("data.split"), std::string::npos);
  EXPECT_NE(message(fractions(file, {1.1, -0.1, 0.0})).find("data.split"), std::string::npos);
  EXPECT_NE(message(fractions(file, {0.0, 1.0, 0.0})).find("data.split"), std::string::npos);
  EXPECT_NE(message(fractions(file, {0.98, 0.01, 0.01})).find("holds none"), std::string::npos);
  auto both = fractions(file, {1, 0, 0});
  both.valid = file.string();
  EXPECT_NE(message(both).find("both"), std::string::npos);
  EXPECT_NE(message(fractions(scratch.write("empty", ""), {1, 0, 0})).find("holds none"), std::string::npos);
}

}  // namespace
}  // namespace aft

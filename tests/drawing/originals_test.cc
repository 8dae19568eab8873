#include "drawing/originals.h"

#include <gtest/gtest.h>

#include "../data/message.h"
#include "../io/temporary_folder.h"
#include "image/png.h"

namespace aft {
namespace {

using Values = std::vector<uint8_t>;

/// `count` images of 1 x 2, the first of `first`, the next of first + 1, ...
LabelledImages images(int first, int count) {
  LabelledImages set;
  for (int i = 0; i < count; ++i) {
    set.pixels.insert(set.pixels.end(), 2, static_cast<uint8_t>(first + i));
    set.labels.push_back(0);
  }
  return set;
}

Values firsts(const std::vector<Picture>& pictures) {
  Values values;
  for (const Picture& picture : pictures) values.push_back(picture.values.at(1));
  return values;
}

TEST(Originals, AreThoseThatTheModelHasSeenLeast) {
  const auto set = [](int test, int64_t holdout) {
    return Images({1, 2, 1}, 1, images(10, 4), images(50, test), holdout, {true, 10});
  };
  EXPECT_EQ(firsts(first_pictures(set(3, 2), 2)), (Values{50, 51}));
  EXPECT_EQ(firsts(first_pictures(set(3, 2), 9)), (Values{50, 51, 52}));
  EXPECT_EQ(firsts(first_pictures(set(0, 2), 9)), (Values{12, 13}));
  EXPECT_EQ(firsts(first_pictures(set(0, 0), 2)), (Values{10, 11}));
}

TEST(Originals, OfAFileOrAFolder) {
  const test::TemporaryFolder folder;
  write_png(folder / "one.png", {{1, 2, 3}, {1, 2, 3, 4, 5, 6}});
  const std::vector<Picture> one = read_originals(folder / "one.png", {1, 2, 3}, 9);
  ASSERT_EQ(one.size(), 1);
  EXPECT_EQ(one[0].values, (Values{1, 2, 3, 4, 5, 6}));
  EXPECT_NE(message([&] { read_originals(folder.path(), {1, 2, 3}, 9); }).find("data_batch_1.bin"), std::string::npos);
  EXPECT_NE(message([&] { read_originals(folder / "none", {1, 2, 3}, 9); }).find("none"), std::string::npos);
  EXPECT_NE(message([&] {
              read_originals(folder / "one.png", {2, 1, 3}, 9);
            }).find("one.png: expected images of 2 x 1 pixels of 3 values, as the model draws, got 1 x 2"),
            std::string::npos);

  // Two images of 2 x 1 in train, none in test.
  test::write_all(folder / "train-images-idx3-ubyte",
                  std::string("\0\0\x8\x3\0\0\0\x2\0\0\0\x2\0\0\0\x1\x1\x2\x3\x4", 20));
  test::write_all(folder / "train-labels-idx1-ubyte", std::string("\0\0\x8\x1\0\0\0\x2\0\0", 10));
  const std::vector<Picture> two = read_originals(folder.path(), {2, 1, 1}, 9);
  ASSERT_EQ(two.size(), 2);
  EXPECT_EQ(two[1].shape, (ImageShape{2, 1, 1}));
  EXPECT_EQ(two[1].values, (Values{3, 4}));

  // CIFAR-10 comes in planes.
  const test::TemporaryFolder cifar;
  const std::string record = '\x7' + std::string(1024, '\x1') + std::string(1024, '\x2') + std::string(1024, '\x3');
  test::write_all(cifar / "data_batch_1.bin", record + record);
  test::write_all(cifar / "test_batch.bin", record);
  const std::vector<Picture> tested = read_originals(cifar.path(), {32, 32, 3}, 9);
  ASSERT_EQ(tested.size(), 1);
  EXPECT_EQ(tested[0].shape, (ImageShape{32, 32, 3}));
  EXPECT_EQ(Values(tested[0].values.begin(), tested[0].values.begin() + 4), (Values{1, 2, 3, 1}));
}

}  // namespace
}  // namespace aft

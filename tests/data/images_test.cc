#include "data/images.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "data/epoch_order.h"
#include "examples.h"
#include "message.h"

namespace aft {
namespace {

using Values = std::vector<uint8_t>;

Images one_image(ImageShape shape, const Values& pixels, Augmentation augmentation) {
  return {shape, 1, {pixels, {0}}, {}, 0, augmentation};
}

Values drawn(const Images& images, uint64_t draw) { return example(images, Split::kTrain, 0, draw).first; }

// The first numbers of splitmix64, worked out in another language. Odd first numbers (flip) for draws 0, 1 and 3, even
// ones for 2, 4 and 5; what the second number gives for a jitter of 10 is 5, -3, 4, -7, -6, 9, for one of 255 is 208,
// -94, -10, -119, -167, 254.

TEST(Images, TheEndOfTrainIsValid) {
  const Images images({1, 2, 1}, 7, {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, {0, 1, 2, 3, 4}}, {{20, 21}, {6}}, 2, {});
  EXPECT_EQ(images.shape(), (ImageShape{1, 2, 1}));
  EXPECT_EQ(images.classes(), 7);
  EXPECT_EQ(images.size(Split::kTrain), 3);
  EXPECT_EQ(images.size(Split::kValid), 2);
  EXPECT_EQ(images.size(Split::kTest), 1);
  EXPECT_EQ(images.bytes(Split::kValid, 1), 2);
  EXPECT_EQ(example(images, Split::kTrain, 0), (Example{{0, 1}, {0}}));
  EXPECT_EQ(example(images, Split::kTrain, 2), (Example{{4, 5}, {2}}));
  EXPECT_EQ(example(images, Split::kValid, 0), (Example{{6, 7}, {3}}));
  EXPECT_EQ(example(images, Split::kValid, 1), (Example{{8, 9}, {4}}));
  EXPECT_EQ(example(images, Split::kTest, 0), (Example{{20, 21}, {6}}));
}

TEST(Images, WithoutHoldoutOrTestThereAreNoSuchSplits) {
  const Images images({1, 1, 1}, 1, {{5}, {0}}, {}, 0, {});
  EXPECT_EQ(images.size(Split::kTrain), 1);
  EXPECT_EQ(images.size(Split::kValid), 0);
  EXPECT_EQ(images.size(Split::kTest), 0);
  EXPECT_EQ(images.checksum(Split::kValid), 0U);
  EXPECT_EQ(images.checksum(Split::kTest), 0U);
}

TEST(Images, FlipSwapsLeftAndRightPixelByPixel) {
  // Two rows of three pixels of two channels.
  const ImageShape shape{2, 3, 2};
  const Values image = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
  const Values flipped = {5, 6, 3, 4, 1, 2, 11, 12, 9, 10, 7, 8};
  const Images images = one_image(shape, image, {true, 0});
  for (const uint64_t draw : {0, 1, 3}) EXPECT_EQ(drawn(images, draw), flipped);
  for (const uint64_t draw : {2, 4, 5}) EXPECT_EQ(drawn(images, draw), image);
  EXPECT_EQ(example(images, Split::kTrain, 0).first, image);
  EXPECT_EQ(drawn(one_image(shape, image, {}), 0), image);
}

TEST(Images, FlipOfOddShapes) {
  EXPECT_EQ(drawn(one_image({3, 1, 1}, {1, 2, 3}, {true, 0}), 0), (Values{1, 2, 3}));
  EXPECT_EQ(drawn(one_image({1, 1, 3}, {1, 2, 3}, {true, 0}), 0), (Values{1, 2, 3}));
  EXPECT_EQ(drawn(one_image({1, 5, 1}, {1, 2, 3, 4, 5}, {true, 0}), 0), (Values{5, 4, 3, 2, 1}));
  EXPECT_EQ(drawn(one_image({2, 2, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, {true, 0}), 0),
            (Values{4, 5, 6, 1, 2, 3, 10, 11, 12, 7, 8, 9}));
}

TEST(Images, JitterAddsOneNumberAndClips) {
  const Values image = {0, 2, 100, 200, 250, 255};
  const Images ten = one_image({1, 2, 3}, image, {false, 10});
  EXPECT_EQ(drawn(ten, 0), (Values{5, 7, 105, 205, 255, 255}));
  EXPECT_EQ(drawn(ten, 1), (Values{0, 0, 97, 197, 247, 252}));
  EXPECT_EQ(drawn(ten, 2), (Values{4, 6, 104, 204, 254, 255}));
  EXPECT_EQ(drawn(ten, 3), (Values{0, 0, 93, 193, 243, 248}));
  EXPECT_EQ(example(ten, Split::kTrain, 0).first, image);
  const Images all = one_image({1, 2, 3}, image, {false, 255});
  EXPECT_EQ(drawn(all, 0), (Values{208, 210, 255, 255, 255, 255}));
  EXPECT_EQ(drawn(all, 1), (Values{0, 0, 6, 106, 156, 161}));
  EXPECT_EQ(drawn(all, 5), (Values{254, 255, 255, 255, 255, 255}));
}

TEST(Images, FlipAndJitterDrawApart) {
  const Values image = {10, 20, 30};
  const Images both = one_image({1, 3, 1}, image, {true, 10});
  EXPECT_EQ(drawn(both, 0), (Values{35, 25, 15}));
  EXPECT_EQ(drawn(both, 2), (Values{14, 24, 34}));
  EXPECT_EQ(drawn(both, 3), (Values{23, 13, 3}));
}

TEST(Images, EveryJitterIsDrawnAndNoOther) {
  const Images images = one_image({1, 1, 1}, {100}, {false, 3});
  const EpochOrder order(1, 5);
  std::set<int> seen;
  for (int64_t i = 0; i < 300; ++i) seen.insert(drawn(images, order.draw(i))[0]);
  EXPECT_EQ(seen, (std::set<int>{97, 98, 99, 100, 101, 102, 103}));
}

TEST(Images, ChecksumIsOfPixelsThenLabels) {
  const LabelledImages train{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 255, 255, 255, 255, 255, 255}, {0, 2, 1}};
  const LabelledImages valid{{255, 255, 255, 255, 255, 255}, {1}};
  const Images images({1, 2, 3}, 3, train, valid, 1, {true, 10});
  // CRC-64/XZ of the bytes 1, 2, ... 12, 0, 2, worked out bit by bit in another language.
  EXPECT_EQ(images.checksum(Split::kTrain), 0x8e33f9050bcbec00ULL);
  EXPECT_EQ(images.checksum(Split::kValid), images.checksum(Split::kTest));
  EXPECT_NE(images.checksum(Split::kTrain), images.checksum(Split::kTest));
  LabelledImages other = train;
  other.labels[1] = 1;
  EXPECT_NE(images.checksum(Split::kTrain), Images({1, 2, 3}, 3, other, valid, 1, {}).checksum(Split::kTrain));
}

TEST(Images, BadArgumentsAreErrors) {
  const ImageShape shape{1, 2, 1};
  const LabelledImages two{{1, 2, 3, 4}, {0, 1}};
  const auto refusal = [&](ImageShape of, int64_t classes, const LabelledImages& train, const LabelledImages& test,
                           int64_t holdout, Augmentation augmentation) {
    return message([&] { Images(of, classes, train, test, holdout, augmentation); });
  };
  EXPECT_EQ(refusal(shape, 2, two, two, 1, {true, 255}), "");
  EXPECT_EQ(refusal(shape, 2, two, two, 1, {.erase = 2}), "data.erase: expected a probability, 0 to 1, got 2.000000");
  EXPECT_EQ(refusal({0, 2, 1}, 2, two, two, 0, {}), "data: expected images of at least one pixel, got 0 x 2 x 1");
  EXPECT_EQ(refusal(shape, 2, {{1, 2, 3}, {0, 1}}, {}, 0, {}),
            "data: expected 2 images of 2 bytes in train, one a label, got 3 bytes");
  EXPECT_EQ(refusal(shape, 2, two, {{1, 2, 3, 4}, {0}}, 0, {}),
            "data: expected 1 images of 2 bytes in test, one a label, got 4 bytes");
  EXPECT_EQ(refusal(shape, 1, two, {}, 0, {}), "data: expected labels below 1 in train, got 1");
  EXPECT_EQ(refusal(shape, 2, two, {{1, 2}, {2}}, 0, {}), "data: expected labels below 2 in test, got 2");
  EXPECT_EQ(refusal(shape, 2, {}, two, 0, {}), "data: expected at least one training image, got none");
  for (const int64_t holdout : {-1, 2, 3}) {
    EXPECT_EQ(refusal(shape, 2, two, {}, holdout, {}),
              "data.holdout: expected at least 0 and fewer than the 2 training images there are, got " +
                  std::to_string(holdout) + "; hold fewer out for validation");
  }
  for (const int64_t jitter : {-1, 256}) {
    EXPECT_EQ(refusal(shape, 2, two, {}, 0, {false, jitter}),
              "data.jitter: expected 0 to 255, got " + std::to_string(jitter));
  }
  const Images images(shape, 2, two, {}, 1, {});
  Values room(3);
  EXPECT_EQ(message([&] { images.read(Split::kTrain, 0, {}, room); }),
            "out: expected the 2 bytes of example 0 of train, got room for 3");
  EXPECT_EQ(message([&] { images.read(Split::kTrain, 1, {}, room); }),
            "index: expected one of the 1 examples of train, counted from 0, got 1");
  EXPECT_EQ(message([&] { static_cast<void>(images.bytes(Split::kTest, 0)); }),
            "index: expected one of the 0 examples of test, counted from 0, got 0");
}

TEST(LoadImages, TextIsNone) {
  DataConfig config;
  config.path = "file";
  EXPECT_EQ(message([&] {
              load_images(config, {1, 1, 1});
            }),
            "data.format: expected images (\"cifar10\", \"idx\" or \"folder\"), got \"bytes\"");
  config.jitter = 300;
  config.format = "idx";
  EXPECT_EQ(message([&] { load_images(config, {1, 1, 1}); }), "data.jitter: expected 0 to 255, got 300");
}

}  // namespace
}  // namespace aft

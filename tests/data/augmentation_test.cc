#include "data/augmentation.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "image/augment/erase.h"
#include "message.h"
#include "numbers/mix.h"

namespace aft {
namespace {

Picture motley(ImageShape shape) {
  Picture picture = plain_picture(shape, 0);
  for (size_t i = 0; i < picture.values.size(); ++i) picture.values[i] = static_cast<uint8_t>(mix(i) % 200);
  return picture;
}

// Flip and jitter themselves are in images_test.cc.

TEST(Augmentation, NothingIsTheDefault) {
  const Picture picture = motley({5, 4, 3});
  for (uint64_t draw = 0; draw < 20; ++draw) {
    EXPECT_EQ(augmented(picture, {picture.shape}, {}, draw).values, picture.values);
    EXPECT_EQ(augmented(picture, {picture.shape}, augmentation_of(DataConfig{}), draw).values, picture.values);
  }
}

TEST(Augmentation, EachHasANumberOfItsOwnAndTheyFollowInOrder) {
  const ImageShape shape{12, 10, 3};
  const Picture picture = motley({20, 30, 3});
  const CropScale scale{0.2, 0.7};
  for (uint64_t draw = 0; draw < 40; ++draw) {
    const auto number = [&](uint64_t n) { return mix(draw + n * kMixStep); };
    Picture expected = random_resized_crop(picture, 12, 10, scale, Resampling::kBicubic, number(2));
    EXPECT_EQ(augmented(picture, {shape}, {.crop = scale}, draw).values, expected.values);
    expected = augmented(expected, {shape}, {true, 10}, draw);
    rand_augment(expected, {2, 9, 0.5}, number(3));
    erase(expected, 0.5, number(4));
    EXPECT_EQ(augmented(picture, {shape}, {true, 10, scale, {2, 9, 0.5}, 0.5}, draw).values, expected.values);
    Picture erased = motley(shape);
    erase(erased, 0.5, number(4));
    EXPECT_EQ(augmented(motley(shape), {shape}, {.erase = 0.5}, draw).values, erased.values);
  }
}

TEST(Augmentation, IsThatOfTheConfiguration) {
  DataConfig config;
  config.flip = true;
  config.jitter = 3;
  config.crop_scale = {0.08, 0.9};
  config.rand_augment = 2;
  config.magnitude = 7;
  config.magnitude_deviation = 0.25;
  config.erase = 0.1;
  const Augmentation augmentation = augmentation_of(config);
  EXPECT_TRUE(augmentation.flip);
  EXPECT_EQ(augmentation.jitter, 3);
  ASSERT_TRUE(augmentation.crop);
  EXPECT_EQ(augmentation.crop->least, 0.08);
  EXPECT_EQ(augmentation.crop->most, 0.9);
  EXPECT_EQ(augmentation.rand_augment.operations, 2);
  EXPECT_EQ(augmentation.rand_augment.magnitude, 7);
  EXPECT_EQ(augmentation.rand_augment.deviation, 0.25);
  EXPECT_EQ(augmentation.erase, 0.1);
  EXPECT_FALSE(augmentation_of(DataConfig{}).crop);
}

TEST(Augmentation, BadValuesAreErrorsThatNameTheKey) {
  const auto refusal = [](const auto& change, const std::string& format) {
    DataConfig config;
    config.format = format;
    config.path = "folder";
    change(config);
    return message([&] { validate(config); });
  };
  const auto images = [&](const auto& change) { return refusal(change, "idx"); };
  EXPECT_EQ(images([](DataConfig& c) { c.crop_scale = {0.08, 1}; }), "");
  EXPECT_EQ(images([](DataConfig& c) { c.crop_scale = {0.08}; }),
            "data.crop_scale: expected two parts of the area, the least and the most, or none, got 1");
  EXPECT_EQ(images([](DataConfig& c) {
              c.crop_scale = {0.9, 0.08};
            }),
            "data.crop_scale: expected two parts of the area, the least and the most, each above 0 and at most 1, got "
            "[0.900000, 0.080000]");
  EXPECT_EQ(images([](DataConfig& c) { c.rand_augment = -1; }),
            "data.rand_augment: expected 0 to 100 operations a picture, got -1");
  EXPECT_EQ(images([](DataConfig& c) { c.magnitude = 10.5; }), "data.magnitude: expected 0 to 10, got 10.500000");
  EXPECT_EQ(images([](DataConfig& c) { c.magnitude_deviation = -1; }),
            "data.magnitude_deviation: expected 0 to 100, got -1.000000");
  EXPECT_EQ(images([](DataConfig& c) { c.erase = -0.1; }), "data.erase: expected a probability, 0 to 1, got -0.100000");
  const auto bytes = [&](const auto& change) { return refusal(change, "bytes"); };
  const auto none = [](const std::string& key, const std::string& got) {
    return "data." + key + R"(: expected nothing with data.format = "bytes", which has no images, got )" + got +
           "; remove it";
  };
  EXPECT_EQ(bytes([](DataConfig& c) { c.crop_scale = {0.5, 1}; }), none("crop_scale", "[0.5, 1]"));
  EXPECT_EQ(bytes([](DataConfig& c) { c.rand_augment = 2; }), none("rand_augment", "2"));
  EXPECT_EQ(bytes([](DataConfig& c) { c.magnitude = 8; }), none("magnitude", "8"));
  EXPECT_EQ(bytes([](DataConfig& c) { c.magnitude_deviation = 0; }), none("magnitude_deviation", "0"));
  EXPECT_EQ(bytes([](DataConfig& c) { c.erase = 0.5; }), none("erase", "0.5"));
}

}  // namespace
}  // namespace aft

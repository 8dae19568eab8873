#include "figures/position_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "../io/temporary_folder.h"
#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "config/architecture.h"

namespace aft {
namespace {

ModelConfig small(const std::string& mixer) {
  ModelConfig config;
  config.model = "classifier";
  config.layers = 2;
  config.channels = 4;
  config.mlp_channels = 4;
  config.height = 4;
  config.width = 6;
  config.colors = 1;
  config.patch = 2;
  config.classes = 2;
  config.mixer.name = mixer;
  config.mixer.heads = 2;
  config.mixer.window = 3;
  config.mixer.factor_channels = 1;
  return config;
}

/// A model file whose tensors hold 0, 1, 2, ... over 8.
void write_model(const ModelConfig& config, const std::filesystem::path& path) {
  std::map<std::string, std::vector<float>> values;
  std::map<std::string, TensorView> views;
  for (const TensorSpec& spec : model_tensors(config)) {
    int64_t count = 1;
    for (const int64_t extent : spec.shape) count *= extent;
    auto& list = values[spec.name];
    for (int64_t i = 0; i < count; ++i) list.push_back(static_cast<float>(i) / 8);
    views[spec.name] = {"F32", spec.shape, reinterpret_cast<const std::byte*>(list.data()),
                        list.size() * sizeof(float)};
  }
  write_safetensors(path, views, model_metadata(config));
}

class PositionBiases : public ::testing::Test {
 protected:
  std::vector<PositionWeights> of(const ModelConfig& config) {
    write_model(config, path);
    return position_weights(path);
  }
  test::TemporaryFolder folder;
  const std::filesystem::path path = folder / "model.safetensors";
};

TEST_F(PositionBiases, AreTheKernelsOfEveryLayerAndHead) {
  ModelConfig config = small("aft_conv2d");
  config.mixer.reparameterised = false;
  const auto list = of(config);
  ASSERT_EQ(list.size(), 4U);
  EXPECT_EQ(list[3].layer, 1);
  EXPECT_EQ(list[3].head, 1);
  EXPECT_EQ(list[3].rows, 3);
  for (size_t i = 0; i < 9; ++i) EXPECT_EQ(list[3].w[i], static_cast<double>(9 + i) / 8);
  // Target 0, top left of 2 x 3: sources right of it, below it, below right of it, and two that the kernel misses.
  const auto pairs = pair_weights(list[0], config);
  const double e[] = {4, 5, -1, 7, 8, -1};
  double sum = 0;
  for (const double w : e) sum += w < 0 ? 1 : std::exp(w / 8);
  for (size_t s = 0; s < 6; ++s) EXPECT_NEAR(pairs[s], (e[s] < 0 ? 1 : std::exp(e[s] / 8)) / sum, 1e-15);
  config.mixer.global = false;
  EXPECT_EQ(pair_weights(list[0], config)[2], 0);
}

// gamma (w - mean) / sqrt(var + 1e-5) + beta, of weights 0 to 8 over 8, gamma 1/8, beta 1/8 of the second head.
TEST_F(PositionBiases, AreReparameterised) {
  const auto list = of(small("aft_conv2d"));
  const double deviation = std::sqrt(60.0 / 9 / 64 + 1e-5);
  for (size_t i = 0; i < 9; ++i) {
    EXPECT_NEAR(list[1].w[i], 0.125 * (static_cast<double>(i) - 4) / 8 / deviation + 0.125, 1e-7);
    EXPECT_EQ(list[0].w[i], 0);  // gamma and beta are 0
  }
}

TEST_F(PositionBiases, AreTheProductsOfFactors) {
  ModelConfig config = small("aft_full");
  config.class_token = true;
  const auto list = of(config);
  ASSERT_EQ(list.size(), 2U);
  EXPECT_EQ(list[1].rows, 7);
  for (size_t t = 0; t < 7; ++t) {
    for (size_t s = 0; s < 7; ++s) EXPECT_EQ(list[1].w[t * 7 + s], static_cast<double>(t * s) / 64);
  }
  // Without the class token's row and column.
  const auto pairs = pair_weights(list[0], config);
  ASSERT_EQ(pairs.size(), 36U);
  double sum = 0;
  for (int s = 1; s <= 6; ++s) sum += std::exp(2 * s / 64.0);
  EXPECT_NEAR(pairs[6 + 2], std::exp(6 / 64.0) / sum, 1e-15);
  const auto local = of(small("aft_local"));
  EXPECT_EQ(local[0].w[5 * 6 + 3], 15.0 / 64);
  EXPECT_EQ(local[0].w[5 * 6 + 2], 0);  // three apart
}

TEST_F(PositionBiases, AreNotOfOtherModels) {
  EXPECT_THROW(of(small("attention")), Error);
  EXPECT_THROW(of(small("aft_simple")), Error);
  ModelConfig config = small("aft_full");
  config.height = config.width = 256;
  EXPECT_THROW(of(config), Error);
}

}  // namespace
}  // namespace aft

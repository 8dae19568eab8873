#include "config/architecture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "aft/error.h"

namespace aft {
namespace {

ModelConfig small(const std::string& model, const std::string& mixer) {
  ModelConfig config;
  config.model = model;
  config.layers = 3;
  config.channels = 12;
  config.mlp_channels = 20;
  config.context = 37;
  config.height = 8;
  config.width = 12;
  config.colors = 1;
  config.mixer.name = mixer;
  config.mixer.heads = 3;
  config.mixer.window = 5;
  config.mixer.factor_channels = 7;
  return config;
}

std::map<std::string, TensorSpec> tensors(const ModelConfig& config) {
  std::map<std::string, TensorSpec> by_name;
  for (const TensorSpec& spec : model_tensors(config)) by_name[spec.name] = spec;
  return by_name;
}

TEST(Architecture, CountsWhatItsTensorsHold) {
  for (const ModelEntry& model : model_entries()) {
    for (const MixerEntry& mixer : mixer_entries()) {
      if (!(model.causal ? mixer.causal : mixer.not_causal)) continue;
      const ModelConfig config = small(model.name, mixer.name);
      SCOPED_TRACE(to_json(config));
      EXPECT_NO_THROW(validate(config));
      int64_t count = 0;
      for (const auto& [name, spec] : tensors(config)) {
        int64_t product = 1;
        for (const int64_t extent : spec.shape) product *= extent;
        count += product;
      }
      EXPECT_EQ(parameter_count(config), count);
      EXPECT_EQ(model_tensors(config).size(), tensors(config).size()) << "a name stands twice";
    }
  }
}

// By hand: the comments of recipes/quickstart.toml and enwik8.toml have the sums.
TEST(Architecture, CountsOfTheRecipes) {
  ModelConfig config;
  config.layers = 2;
  config.channels = 128;
  config.mlp_channels = 512;
  config.context = 128;
  EXPECT_EQ(parameter_count(config), 511488);
  config = {};
  config.layers = 12;
  config.channels = 512;
  config.mlp_channels = 2048;
  config.context = 1024;
  config.mixer.factor_channels = 256;
  EXPECT_EQ(parameter_count(config), 44907520);
}

TEST(Architecture, SaysHowTensorsBegin) {
  const auto list = tensors(small("byte_lm", "aft_local"));
  EXPECT_EQ(list.at("blocks.1.mixer.u").spread, 0.01);
  EXPECT_TRUE(list.at("blocks.1.mixer.u").rows_are_positions);
  EXPECT_FALSE(list.at("blocks.1.mixer.u").decays);
  EXPECT_EQ(list.at("blocks.1.mixer.qkv.weight").spread, 0.02);
  EXPECT_TRUE(list.at("blocks.1.mixer.qkv.weight").decays);
  EXPECT_NEAR(list.at("blocks.1.mlp.down.weight").spread, 0.02 / std::sqrt(6.0), 1e-17);
  EXPECT_NEAR(list.at("blocks.1.mixer.output.weight").spread, 0.02 / std::sqrt(6.0), 1e-17);
  EXPECT_EQ(list.at("blocks.1.mixer_norm.weight").init, Init::kOnes);
  EXPECT_EQ(list.at("norm.bias").init, Init::kZeros);
  EXPECT_TRUE(list.at("head.weight").decays);
  EXPECT_FALSE(list.at("embedding.token.weight").decays);
  EXPECT_TRUE(list.at("embedding.position.weight").rows_are_positions);
  const auto conv = tensors(small("byte_lm", "aft_conv1d"));
  EXPECT_EQ(conv.at("blocks.0.mixer.weight").spread, 1);
  EXPECT_FALSE(conv.at("blocks.0.mixer.weight").decays);
}

TEST(Architecture, PixelsHaveAStartToken) {
  const ModelConfig config = small("pixel_lm", "aft_simple");
  EXPECT_EQ(positions(config), 96);
  EXPECT_EQ(token_rows(config), 257);
  EXPECT_EQ(tensors(config).at("embedding.token.weight").shape, (std::vector<int64_t>{257, 12}));
  EXPECT_EQ(tensors(config).at("head.weight").shape, (std::vector<int64_t>{256, 12}));
  EXPECT_EQ(token_rows(small("byte_lm", "aft_simple")), 256);
}

TEST(Architecture, RefusesWhatItDoesNotKnow) {
  EXPECT_THROW(mixer_entry("aft_wide"), Error);
  EXPECT_THROW(model_entry("video"), Error);
  ModelConfig config;
  config.layers = config.channels = config.mlp_channels = int64_t{1} << 30;
  EXPECT_THROW(parameter_count(config), Error);
}

}  // namespace
}  // namespace aft

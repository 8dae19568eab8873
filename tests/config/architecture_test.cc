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

// The paper's classifiers (Zhai et al. 2021, Table 7) at 224 pixels, patches of 16, 1,000 classes; in brackets what it
// prints, in millions.
TEST(Architecture, CountsOfThePaper) {
  ModelConfig deit;
  deit.model = "classifier";
  deit.layers = 12;
  deit.channels = 192;
  deit.mlp_channels = 768;
  deit.height = deit.width = 224;
  deit.patch = 16;
  deit.classes = 1000;
  deit.class_token = true;
  deit.mixer.name = "attention";
  deit.mixer.heads = 3;
  const auto wider = [](ModelConfig config, int64_t channels) {
    config.channels = channels;
    config.mlp_channels = 4 * channels;
    return config;
  };
  EXPECT_EQ(parameter_count(deit), 5717416);               // DeiT tiny [5.7]
  EXPECT_EQ(parameter_count(wider(deit, 384)), 22050664);  // small [22.1]
  EXPECT_EQ(parameter_count(wider(deit, 768)), 86567656);  // base
  ModelConfig full = deit;
  full.mixer.name = "aft_full";
  full.mixer.factor_channels = 128;
  EXPECT_EQ(parameter_count(full) - parameter_count(deit), 12 * 2 * 197 * 128);
  EXPECT_EQ(parameter_count(full), 6322600);               // AFT-full tiny [6.3]
  EXPECT_EQ(parameter_count(wider(full, 384)), 22655848);  // small [22.6]
  const auto conv = [&](int64_t channels, int64_t kernel, int64_t heads) {
    ModelConfig config = wider(deit, channels);
    config.class_token = config.position_embedding = false;
    config.mixer.name = "aft_conv2d";
    config.mixer.heads = heads;
    config.mixer.window = kernel;
    return parameter_count(config);
  };
  EXPECT_NEAR(static_cast<double>(conv(192, 11, 32)), 5.356e6, 500);    // AFT-conv tiny 11/32 [5.4]
  EXPECT_NEAR(static_cast<double>(conv(192, 11, 192)), 5.963e6, 500);   // 11/192 [5.9]
  EXPECT_NEAR(static_cast<double>(conv(384, 11, 16)), 20.298e6, 500);   // small 11/16 [20.3]
  EXPECT_NEAR(static_cast<double>(conv(384, 11, 384)), 22.541e6, 500);  // 11/384 [22.5]
  EXPECT_NEAR(static_cast<double>(conv(384, 15, 384)), 23.021e6, 500);  // 15/384 [23.0]
}

TEST(Architecture, AProjectionComesInParts) {
  const auto pieces = [](const ModelConfig& config) {
    std::map<std::string, TensorPiece> by_name;
    for (const TensorPiece& piece : model_pieces(config)) by_name[piece.name] = piece;
    return by_name;
  };
  ModelConfig config = small("classifier", "aft_conv2d");
  const auto conv = pieces(config);
  EXPECT_FALSE(conv.contains("blocks.0.mixer.qkv.weight"));
  EXPECT_EQ(conv.at("blocks.1.mixer.key.weight").shape, (std::vector<int64_t>{3, 12}));
  EXPECT_EQ(conv.at("blocks.1.mixer.key.weight").row, 12);
  EXPECT_EQ(conv.at("blocks.1.mixer.value.bias").row, 15);
  EXPECT_EQ(conv.at("blocks.1.mixer.value.bias").tensor, "blocks.1.mixer.qkv.bias");
  EXPECT_EQ(conv.at("norm.weight").tensor, "norm.weight");
  config.mixer.gate = "none";
  EXPECT_FALSE(pieces(config).contains("blocks.0.mixer.query.weight"));
  EXPECT_EQ(pieces(config).at("blocks.0.mixer.key.weight").row, 0);
  EXPECT_EQ(tensors(config).at("blocks.0.mixer.qkv.weight").shape, (std::vector<int64_t>{15, 12}));
}

TEST(Architecture, SaysHowTensorsBegin) {
  const auto list = tensors(small("byte_lm", "aft_local"));
  EXPECT_EQ(list.at("blocks.1.mixer.u").spread, 0.01);
  EXPECT_EQ(list.at("blocks.1.mixer.u").rows_of, RowsOf::kPositions);
  EXPECT_FALSE(list.at("blocks.1.mixer.u").decays);
  EXPECT_EQ(list.at("blocks.1.mixer.qkv.weight").spread, 0.02);
  EXPECT_TRUE(list.at("blocks.1.mixer.qkv.weight").decays);
  EXPECT_NEAR(list.at("blocks.1.mlp.down.weight").spread, 0.02 / std::sqrt(6.0), 1e-17);
  EXPECT_NEAR(list.at("blocks.1.mixer.output.weight").spread, 0.02 / std::sqrt(6.0), 1e-17);
  EXPECT_EQ(list.at("blocks.1.mixer_norm.weight").init, Init::kOnes);
  EXPECT_EQ(list.at("norm.bias").init, Init::kZeros);
  EXPECT_TRUE(list.at("head.weight").decays);
  EXPECT_FALSE(list.at("embedding.token.weight").decays);
  EXPECT_EQ(list.at("embedding.position.weight").rows_of, RowsOf::kPositions);
  const auto conv = tensors(small("byte_lm", "aft_conv1d"));
  EXPECT_EQ(conv.at("blocks.0.mixer.weight").spread, 1);
  EXPECT_FALSE(conv.at("blocks.0.mixer.weight").decays);
  ModelConfig vit = small("classifier", "aft_full");
  vit.class_token = true;
  vit.layer_scale = 1e-5;
  const auto image = tensors(vit);
  EXPECT_EQ(image.at("embedding.position.weight").rows_of, RowsOf::kPlaces);
  EXPECT_EQ(image.at("embedding.position.weight").shape[0], 7);
  EXPECT_EQ(image.at("blocks.2.mixer.u").rows_of, RowsOf::kPlaces);
  EXPECT_EQ(image.at("embedding.class").shape, std::vector<int64_t>{12});
  EXPECT_EQ(image.at("blocks.2.mlp_scale").init, Init::kConstant);
  EXPECT_EQ(image.at("blocks.2.mlp_scale").spread, 1e-5);
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

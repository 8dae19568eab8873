#include "models/classifier.h"

#include <gtest/gtest.h>

#include <cmath>

#include "../io/temporary_folder.h"
#include "aft/error.h"
#include "models/block.h"
#include "plain_classifier.h"

namespace aft {
namespace {

ModelConfig small(const std::string& mixer = "aft_simple") {
  ModelConfig config;
  config.model = "classifier";
  config.layers = 2;
  config.channels = 6;
  config.mlp_channels = 10;
  config.height = 6;
  config.width = 8;
  config.colors = 3;
  config.patch = 2;
  config.classes = 5;
  config.mixer.name = mixer;
  config.mixer.heads = 3;
  config.mixer.window = 3;
  config.mixer.factor_channels = 4;
  return config;
}

void draw(torch::nn::Module& module, uint64_t seed) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(seed);
  for (auto& parameter : module.parameters()) parameter.normal_(0, 0.5);
}

void expect_the_equations(const ModelConfig& config) {
  SCOPED_TRACE(to_json(config));
  Classifier model(config);
  draw(*model, 3);
  model->to(torch::kFloat64);
  const auto images = torch::rand({2, config.height, config.width, config.colors}, torch::kFloat64);
  const auto expected = plain::classify(config, plain::weights_of(*model), images);
  EXPECT_LT((model->forward(images) - expected).abs().max().item<double>(), 1e-12);
}

TEST(Classifier, LogitsAreThoseOfTheEquations) {
  for (const char* mixer : {"aft_simple", "aft_full", "aft_conv2d", "attention"}) {
    ModelConfig config = small(mixer);
    expect_the_equations(config);
    config.class_token = config.mixer.name != "aft_conv2d";
    config.position_embedding = false;
    expect_the_equations(config);
    config.position_embedding = true;
    config.layer_scale = 0.1;
    config.norm_eps = 0.3;
    expect_the_equations(config);
    config.classes = 0;
    expect_the_equations(config);
  }
}

TEST(Classifier, AblationsAreThoseOfTheEquations) {
  for (const char* gate : {"relu", "none"}) {
    for (const char* mixer : {"aft_simple", "aft_full", "aft_conv2d"}) {
      ModelConfig config = small(mixer);
      config.mixer.gate = gate;
      expect_the_equations(config);
    }
  }
  ModelConfig config = small("aft_conv2d");
  config.mixer.global = false;
  expect_the_equations(config);
  config.mixer.reparameterised = false;
  expect_the_equations(config);
  config.mixer.global = true;
  expect_the_equations(config);
}

// Of equal examples some keep a branch and some lose it, and what stays is as much larger as it is rarer.
TEST(Classifier, StochasticDepthKeepsTheMean) {
  ModelConfig config = small();
  config.layers = 3;
  config.stochastic_depth = 0.5;
  const auto x = torch::ones({4000, 2, 3});
  torch::manual_seed(1);
  EXPECT_TRUE(keep_or_drop(x, config, 2, /*training=*/false).equal(x));
  EXPECT_TRUE(keep_or_drop(x, config, 0, /*training=*/true).equal(x));
  for (const auto& [layer, rate] : {std::pair<int64_t, double>{1, 0.25}, {2, 0.5}}) {
    const auto y = keep_or_drop(x, config, layer, /*training=*/true);
    const auto first = y.select(1, 0).select(1, 0);
    EXPECT_TRUE((y == first.view({-1, 1, 1})).all().item<bool>()) << "an example is kept as a whole";
    EXPECT_TRUE(((first == 0) | ((first - 1 / (1 - rate)).abs() < 1e-6)).all().item<bool>());
    const double lost = (first == 0).to(torch::kFloat64).mean().item<double>();
    EXPECT_NEAR(lost, rate, 5 * std::sqrt(rate * (1 - rate) / 4000));
  }
}

/// The model's file, in a folder that lives as long as the object.
struct Saved {
  explicit Saved(const Model& model) : path(folder.path() / "model.safetensors") { save_model(model, path); }
  test::TemporaryFolder folder;
  std::filesystem::path path;
};

// A model without tables of places is the same at any size.
TEST(Classifier, AConvolutionTakesAnySize) {
  ModelConfig config = small("aft_conv2d");
  config.height = config.width = 6;
  config.position_embedding = false;
  Classifier model(config);
  draw(*model, 4);
  const Saved saved(*model);
  const ModelPtr larger = load_model(saved.path, 10);
  EXPECT_EQ(larger->config.height, 10);
  const auto images = torch::rand({2, 10, 10, 3}, torch::kFloat64);
  larger->module().to(torch::kFloat64);
  const auto expected = plain::classify(larger->config, plain::weights_of(*model), images);
  EXPECT_LT((larger->forward(images) - expected).abs().max().item<double>(), 1e-12);
}

// Tables of places are those of torch's bicubic interpolation with antialiasing, the class token's row apart.
TEST(Classifier, PlacesAreInterpolated) {
  for (const int64_t side : {4, 14}) {
    ModelConfig config = small("aft_full");
    config.height = config.width = 10;
    config.class_token = true;
    Classifier model(config);
    draw(*model, 5);
    const Saved saved(*model);
    const ModelPtr other = load_model(saved.path, side);
    const auto before = plain::weights_of(*model);
    const auto after = plain::weights_of(other->module());
    for (const char* name : {"embedding.position.weight", "blocks.1.mixer.u", "blocks.0.mixer.v"}) {
      const auto& table = before.at(name);
      const auto grid = table.narrow(0, 1, 25).t().view({1, table.size(1), 5, 5});
      const auto resized = at::_upsample_bicubic2d_aa(grid, {side / 2, side / 2}, false, std::nullopt, std::nullopt);
      const auto expected = torch::cat({table.narrow(0, 0, 1), resized.flatten(2).squeeze(0).t()});
      EXPECT_LT((after.at(name) - expected).abs().max().item<double>(), 1e-6) << name;
    }
    EXPECT_TRUE(after.at("blocks.1.mixer.qkv.weight").equal(before.at("blocks.1.mixer.qkv.weight")));
  }
  EXPECT_THROW(load_model(Saved(*std::make_shared<ClassifierImpl>(small())).path, 7), Error);  // patches of 2
}

// The paper's Table 8: a vision transformer without positions, class token, queries and keys.
TEST(Classifier, AConvolutionBeginsWithAVisionTransformer) {
  ModelConfig config = small("attention");
  config.class_token = true;
  config.layer_scale = 0.5;
  Classifier vit(config);
  draw(*vit, 6);
  const Saved saved(*vit);
  ModelConfig conv = config;
  conv.class_token = conv.position_embedding = false;
  conv.classes = 7;
  conv.mixer.name = "aft_conv2d";
  Classifier model(conv);
  const auto before = plain::weights_of(*model);
  const std::vector<std::string> skip = {"embedding.position.weight",
                                         "embedding.class",
                                         "*.mixer.query.*",
                                         "*.mixer.key.*",
                                         "*.mixer.weight",
                                         "*.mixer.gamma",
                                         "*.mixer.beta",
                                         "head.*"};
  load_weights(*model, saved.path, skip);
  const auto given = plain::weights_of(*vit);
  const auto after = plain::weights_of(*model);
  const auto& qkv = after.at("blocks.1.mixer.qkv.weight");  // [6 + 3 + 6, 6]
  EXPECT_TRUE(qkv.narrow(0, 0, 9).equal(before.at("blocks.1.mixer.qkv.weight").narrow(0, 0, 9)));
  EXPECT_TRUE(qkv.narrow(0, 9, 6).equal(given.at("blocks.1.mixer.qkv.weight").narrow(0, 12, 6)));
  EXPECT_TRUE(
      after.at("blocks.0.mixer.qkv.bias").narrow(0, 9, 6).equal(given.at("blocks.0.mixer.qkv.bias").narrow(0, 12, 6)));
  for (const char* name : {"embedding.patch.weight", "blocks.0.mlp.up.weight", "blocks.1.mlp_scale", "norm.bias"}) {
    EXPECT_TRUE(after.at(name).equal(given.at(name))) << name;
  }
  EXPECT_TRUE(after.at("head.weight").equal(before.at("head.weight")));
  // What is not skipped is missing, extra or mis-shaped, all in one message.
  try {
    load_weights(*model, saved.path, {"head.*"});
    FAIL();
  } catch (const Error& error) {
    const std::string message = error.what();
    for (const char* part :
         {"blocks.0.mixer.gamma is missing", "blocks.0.mixer.key.bias has shape [6], expected [3]"}) {
      EXPECT_NE(message.find(part), std::string::npos) << message;
    }
  }
}

TEST(Classifier, BadInputAndStatesThrow) {
  Classifier model(small());
  EXPECT_THROW(model->forward(torch::rand({2, 6, 8})), Error);
  EXPECT_THROW(model->forward(torch::rand({2, 6, 8, 1})), Error);
  EXPECT_THROW(model->forward(torch::rand({2, 8, 6, 3})), Error);
  EXPECT_THROW(model->initial_state(2), Error);
  EXPECT_THROW(model->forward_with_state(torch::rand({2, 6, 8, 3}), {}), Error);
  ModelConfig config = small();
  config.patch = 4;
  EXPECT_THROW(make_model(config), Error);
}

}  // namespace
}  // namespace aft

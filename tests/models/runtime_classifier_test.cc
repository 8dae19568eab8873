#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "../io/temporary_folder.h"
#include "aft/error.h"
#include "aft/runtime/classifier.h"
#include "models/model.h"
#include "plain_classifier.h"

// The classifier without LibTorch against the equations in f64.

namespace aft {
namespace {

ModelConfig small(const std::string& mixer) {
  ModelConfig config;
  config.model = "classifier";
  config.layers = 2;
  config.channels = 12;
  config.mlp_channels = 20;
  config.height = 15;
  config.width = 21;
  config.colors = 3;
  config.patch = 3;
  config.classes = 5;
  config.mean = {0.4, 0.5, 0.6};
  config.deviation = {0.25, 0.3, 0.2};
  config.mixer.name = mixer;
  config.mixer.heads = 3;
  config.mixer.window = 5;
  config.mixer.factor_channels = 4;
  return config;
}

std::vector<uint8_t> random_image(const ModelConfig& config) {
  std::mt19937 generator(5);
  std::vector<uint8_t> image(static_cast<size_t>(config.height * config.width * config.colors));
  for (uint8_t& value : image) value = static_cast<uint8_t>(generator());
  return image;
}

/// The image as the model reads it: f64 [1, height, width, colors].
torch::Tensor normalised(const ModelConfig& config, std::vector<uint8_t> image) {
  const auto values = torch::from_blob(image.data(), {1, config.height, config.width, config.colors}, torch::kUInt8);
  const auto row = [](const std::vector<double>& list) { return torch::tensor(list, torch::kFloat64); };
  return (values.to(torch::kFloat64) / 255 - row(config.mean)) / row(config.deviation);
}

void draw(torch::nn::Module& module) {
  const torch::NoGradGuard no_grad;
  torch::manual_seed(8);
  for (auto& parameter : module.parameters()) parameter.normal_(0, 0.3);
}

class RuntimeClassifier : public ::testing::Test {
 protected:
  /// By how much its numbers are off, relative to the largest.
  double error_of(const ModelConfig& config, int64_t side = 0) {
    const ModelPtr model = make_model(config);
    draw(model->module());
    save_model(*model, path);
    runtime::ThreadPool pool(2);
    const auto classifier = runtime::Classifier::load(path, pool, side);
    const ModelPtr same = load_model(path, side);
    const auto image = random_image(same->config);
    const auto expected =
        plain::classify(same->config, plain::weights_of(same->module()), normalised(same->config, image)).squeeze(0);
    std::vector<float> got = classifier.classify(image, pool);
    EXPECT_EQ(static_cast<int64_t>(got.size()), expected.numel());
    const auto values = torch::from_blob(got.data(), {expected.numel()}).to(torch::kFloat64);
    return ((values - expected).abs().max() / expected.abs().max()).item<double>();
  }

  test::TemporaryFolder folder;
  const std::filesystem::path path = folder / "model.safetensors";
};

// Sums of a few hundred numbers in f32, through two layers.
constexpr double kTolerance = 1e-5;

TEST_F(RuntimeClassifier, GivesTheLogitsOfTheEquations) {
  for (const char* mixer : {"aft_simple", "aft_conv2d", "aft_full", "attention"}) {
    ModelConfig config = small(mixer);
    EXPECT_LT(error_of(config), kTolerance) << mixer;
    config.class_token = config.mixer.name != "aft_conv2d";
    config.layer_scale = 0.5;
    config.norm_eps = 0.1;
    config.classes = 0;
    config.mean = {0.5};
    EXPECT_LT(error_of(config), kTolerance) << mixer;
    config.position_embedding = false;
    if (config.mixer.name != "attention") config.mixer.gate = "none";
    EXPECT_LT(error_of(config), kTolerance) << mixer;
  }
}

TEST_F(RuntimeClassifier, GivesThoseOfTheAblations) {
  ModelConfig config = small("aft_conv2d");
  config.mixer.global = false;
  EXPECT_LT(error_of(config), kTolerance);
  config.mixer.reparameterised = false;
  config.mixer.gate = "relu";
  EXPECT_LT(error_of(config), kTolerance);
  config.mixer.global = true;
  EXPECT_LT(error_of(config), kTolerance);
}

TEST_F(RuntimeClassifier, TakesAnotherSize) {
  for (const char* mixer : {"aft_conv2d", "aft_full", "attention"}) {
    for (const int64_t side : {9, 30}) EXPECT_LT(error_of(small(mixer), side), kTolerance) << mixer;
  }
}

// Those of sequences, whose equations the language models' tests have: here against the LibTorch module.
TEST_F(RuntimeClassifier, RunsTheMixersOfSequences) {
  for (const char* mixer : {"aft_local", "aft_conv1d"}) {
    const ModelPtr model = make_model(small(mixer));
    draw(model->module());
    save_model(*model, path);
    runtime::ThreadPool pool(1);
    const auto image = random_image(model->config);
    std::vector<float> got = runtime::Classifier::load(path, pool).classify(image, pool);
    model->module().to(torch::kFloat64);
    const auto expected = model->forward(normalised(model->config, image)).squeeze(0);
    const auto values = torch::from_blob(got.data(), {expected.numel()}).to(torch::kFloat64);
    EXPECT_LT(((values - expected).abs().max() / expected.abs().max()).item<double>(), kTolerance) << mixer;
  }
}

TEST_F(RuntimeClassifier, RefusesWhatItCannotRun) {
  runtime::ThreadPool pool(1);
  save_model(*make_model(ModelConfig()), path);
  EXPECT_THROW(runtime::Classifier::load(path, pool), Error);
  save_model(*make_model(small("linformer")), path);
  EXPECT_THROW(runtime::Classifier::load(path, pool), Error);
  save_model(*make_model(small("aft_full")), path);
  EXPECT_THROW(runtime::Classifier::load(path, pool, 16), Error);  // patches of 3
  const auto classifier = runtime::Classifier::load(path, pool);
  EXPECT_THROW(classifier.classify(std::vector<uint8_t>(944), pool), Error);
}

}  // namespace
}  // namespace aft

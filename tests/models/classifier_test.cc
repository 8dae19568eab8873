#include "models/classifier.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "aft/error.h"
#include "aft/torch.h"

namespace aft {
namespace {

ModelConfig small() {
  ModelConfig config;
  config.model = "classifier";
  config.layers = 1;
  config.channels = 6;
  config.mlp_channels = 10;
  config.height = 4;
  config.width = 6;
  config.colors = 3;
  config.patch = 2;
  config.classes = 5;
  config.mixer.name = "aft_simple";
  return config;
}

torch::Tensor norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) {
  const auto centred = x - x.mean(-1, true);
  return centred / (centred.pow(2).mean(-1, true) + 1e-5).sqrt() * weight + bias;
}

// Patch by patch in plain loops, the values of a patch row by row, its colours beside each other; AFT over all pairs.
TEST(Classifier, LogitsAreThoseOfTheEquations) {
  const ModelConfig config = small();
  Classifier model(config);
  std::map<std::string, torch::Tensor> w;
  {
    const torch::NoGradGuard no_grad;
    torch::manual_seed(3);
    for (auto& parameter : model->parameters()) parameter.normal_(0, 0.5);
    model->to(torch::kFloat64);
    for (const auto& item : model->named_parameters()) w[item.key()] = item.value().detach();
  }
  const auto images = torch::rand({2, 4, 6, 3}, torch::kFloat64);
  const auto linear = [&](const torch::Tensor& x, const std::string& name) {
    return torch::matmul(x, w.at(name + ".weight").t()) + w.at(name + ".bias");
  };
  std::vector<torch::Tensor> positions;
  for (int64_t row = 0; row < 2; ++row) {
    for (int64_t column = 0; column < 3; ++column) {
      std::vector<torch::Tensor> values;
      for (int64_t y = 0; y < 2; ++y) {
        for (int64_t x = 0; x < 2; ++x) {
          for (int64_t c = 0; c < 3; ++c) {
            values.push_back(images.select(3, c).select(2, column * 2 + x).select(1, row * 2 + y));
          }
        }
      }
      positions.push_back(linear(torch::stack(values, 1), "embedding.patch"));
    }
  }
  auto x = torch::stack(positions, 1) + w.at("embedding.position.weight");
  const auto h = norm(x, w.at("blocks.0.mixer_norm.weight"), w.at("blocks.0.mixer_norm.bias"));
  const auto parts = linear(h, "blocks.0.mixer.qkv").chunk(3, -1);
  const auto weights = parts[1].exp();
  const auto mean = (weights * parts[2]).sum(1, true) / weights.sum(1, true);
  x = x + linear(torch::sigmoid(parts[0]) * mean, "blocks.0.mixer.output");
  const auto up = linear(norm(x, w.at("blocks.0.mlp_norm.weight"), w.at("blocks.0.mlp_norm.bias")), "blocks.0.mlp.up");
  x = x + linear(up * 0.5 * (1 + torch::erf(up / std::sqrt(2.0))), "blocks.0.mlp.down");
  const auto expected = linear(norm(x, w.at("norm.weight"), w.at("norm.bias")).mean(1), "head");
  EXPECT_LT((model->forward(images) - expected).abs().max().item<double>(), 1e-12);
}

TEST(Classifier, BadInputAndStatesThrow) {
  Classifier model(small());
  EXPECT_THROW(model->forward(torch::rand({2, 4, 6})), Error);
  EXPECT_THROW(model->forward(torch::rand({2, 4, 6, 1})), Error);
  EXPECT_THROW(model->forward(torch::rand({2, 6, 4, 3})), Error);
  EXPECT_THROW(model->initial_state(2), Error);
  EXPECT_THROW(model->forward_with_state(torch::rand({2, 4, 6, 3}), {}), Error);
  ModelConfig config = small();
  config.patch = 3;
  EXPECT_THROW(make_model(config), Error);
}

}  // namespace
}  // namespace aft

#include "train/optimizer.h"

#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "models/language_model.h"

namespace aft {
namespace {

ModelConfig small() {
  ModelConfig config;
  config.mixer.name = "aft_simple";
  config.layers = 1;
  config.channels = 8;
  config.mlp_channels = 12;
  config.context = 5;
  return config;
}

TrainConfig averaged(double ema) {
  TrainConfig config;
  config.warmup = 1;
  config.lr = 1e-2;
  config.ema = ema;
  return config;
}

torch::Tensor number(double value) { return torch::full({}, value, torch::kFloat64); }

/// A step from a gradient that is drawn; `unread` as on a GPU.
void update(Optimizer& optimizer, const TrainConfig& config, int64_t step, torch::Generator& generator, bool unread) {
  torch::Tensor gradient = optimizer.gradient();
  gradient.normal_(0, 1, generator);
  if (unread) {
    optimizer.update_unread(config, step, number(1), optimizer.gradient_norm());
  } else {
    optimizer.update(config, step, optimizer.gradient_norm().item<double>());
  }
}

double largest(const torch::Tensor& a) { return a.abs().max().item<double>(); }

/// Against a loop in f64 over the weights of every step.
void check_average(double ema, bool unread) {
  const TrainConfig config = averaged(ema);
  LanguageModel model(small());
  Optimizer optimizer(model.ptr(), true);
  ASSERT_TRUE(torch::equal(optimizer.average(), optimizer.weight()));
  auto generator = at::detail::createCPUGenerator(3);
  const auto beginning = optimizer.weight().to(torch::kFloat64, false, /*copy=*/true);
  auto average = beginning.clone();
  double most = 0;
  for (int64_t step = 1; step <= 40; ++step) {
    update(optimizer, config, step, generator, unread);
    const auto weight = optimizer.weight().to(torch::kFloat64);
    const double decay = std::min(ema, (1.0 + static_cast<double>(step)) / (10.0 + static_cast<double>(step)));
    average = average * decay + weight * (1 - decay);
    most = std::max({most, largest(weight), largest(average)});
    // A step rounds a share, a difference, a product and a sum, of numbers up to twice the largest, by half an epsilon.
    const double tolerance = static_cast<double>(step) * 4 * most * std::numeric_limits<float>::epsilon();
    ASSERT_LT(largest(optimizer.average().to(torch::kFloat64) - average), tolerance) << ema << " " << step;
  }
  EXPECT_GT(largest(average - beginning), 1e-3);
  EXPECT_GT(largest(average - optimizer.weight()), 1e-3);
}

TEST(Average, IsThatOfTheWeightsOfEveryStep) {
  for (const double ema : {0.5, 0.9, 0.99996}) {
    check_average(ema, false);
    check_average(ema, true);
  }
}

TEST(Average, AnotherModelShowsIt) {
  const TrainConfig config = averaged(0.9);
  LanguageModel model(small());
  LanguageModel other(small());
  Optimizer optimizer(model.ptr(), true);
  optimizer.show_average(*other);
  auto generator = at::detail::createCPUGenerator(3);
  for (int64_t step = 1; step <= 2; ++step) {
    update(optimizer, config, step, generator, step == 2);
    const auto parameters = other->named_parameters();
    EXPECT_EQ(parameters.size(), optimizer.entries().size());
    for (const FlatEntry& entry : optimizer.entries()) {
      EXPECT_TRUE(torch::equal(parameters[entry.name], Optimizer::slice(optimizer.average(), entry))) << entry.name;
    }
    EXPECT_FALSE(torch::equal(parameters["head.weight"], model->named_parameters()["head.weight"]));
  }
}

TEST(Average, AStepThatIsNotFiniteDoesNotEnter) {
  for (const auto& [loss, norm] : {std::pair{NAN, 1.0}, {1.0, INFINITY}}) {
    const TrainConfig config = averaged(0.9);
    LanguageModel model(small());
    Optimizer optimizer(model.ptr(), true);
    auto generator = at::detail::createCPUGenerator(3);
    update(optimizer, config, 1, generator, true);
    const auto before = optimizer.average().clone();
    EXPECT_FALSE(torch::equal(before, optimizer.weight()));
    optimizer.update_unread(config, 2, number(loss), number(norm));
    optimizer.update_unread(config, 3, number(1), number(1));
    EXPECT_TRUE(torch::equal(optimizer.average(), before));
  }
}

TEST(Average, IsNotKeptUnlessAskedFor) {
  LanguageModel model(small());
  EXPECT_FALSE(Optimizer(model.ptr()).average().defined());
}

}  // namespace
}  // namespace aft

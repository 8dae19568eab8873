// The training loss of mixed and smoothed examples, against plain loops in f64.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "models/classifier.h"
#include "train/training_step.h"

namespace aft {
namespace {

/// -ln p of a class, with s of the target spread over all classes.
double plain_loss(const std::vector<double>& logits, int64_t target, double s) {
  double sum = 0;
  for (const double logit : logits) sum += std::exp(logit);
  double loss = 0;
  for (size_t c = 0; c < logits.size(); ++c) {
    const double wanted = (static_cast<int64_t>(c) == target ? 1 - s : 0) + s / static_cast<double>(logits.size());
    loss -= wanted * (logits[c] - std::log(sum));
  }
  return loss;
}

const std::vector<std::vector<double>> kLogits = {{0.5, -1, 2}, {3, 3, -2}, {-4, 0.25, 1}, {0, 0, 0}};
const std::vector<int64_t> kFirst = {2, 0, 1, 2};
const std::vector<int64_t> kSecond = {0, 0, 2, 1};
const std::vector<float> kShares = {0.75F, 1, 0.125F, 0};

torch::Tensor logits() {
  auto all = torch::empty({4, 3}, torch::kFloat64);
  for (int64_t n = 0; n < 4; ++n) {
    for (int64_t c = 0; c < 3; ++c) all[n][c] = kLogits[static_cast<size_t>(n)][static_cast<size_t>(c)];
  }
  return all;
}

TEST(MeanLoss, OfPlainMixedAndSmoothedTargets) {
  const auto first = torch::tensor(kFirst, torch::kInt64);
  const Mixed mixed = {torch::tensor(kSecond, torch::kInt64), torch::tensor(kShares, torch::kFloat32)};
  for (const double s : {0.0, 0.1, 0.9}) {
    double plain = 0;
    double both = 0;
    for (size_t n = 0; n < kLogits.size(); ++n) {
      const double share = kShares[n];
      plain += plain_loss(kLogits[n], kFirst[n], s) / 4;
      both += (share * plain_loss(kLogits[n], kFirst[n], s) + (1 - share) * plain_loss(kLogits[n], kSecond[n], s)) / 4;
    }
    // A few dozen roundings of numbers below 8.
    const double tolerance = 8 * 50 * std::numeric_limits<double>::epsilon();
    EXPECT_NEAR(mean_loss(logits(), first, {}, s).item<double>(), plain, tolerance) << s;
    EXPECT_NEAR(mean_loss(logits(), first, mixed, s).item<double>(), both, tolerance) << s;
    EXPECT_GT(std::abs(plain - both), 1e-3);
  }
}

TEST(MeanLoss, WithoutEitherIsTheCrossEntropyBitForBit) {
  const auto some = torch::randn({5, 7}).set_requires_grad(true);
  const auto targets = torch::tensor({0, 6, 3, 3, 2}, torch::kInt64);
  const auto plain = at::cross_entropy_loss(some, targets);
  EXPECT_TRUE(torch::equal(mean_loss(some, targets, {}, 0), plain));
}

/// Six images of two values, every other one mixed.
class Pairs : public DataSet {
 public:
  [[nodiscard]] int64_t size(Split split) const override { return split == Split::kTrain ? 6 : 0; }
  [[nodiscard]] int64_t bytes(Split /*split*/, int64_t /*index*/) const override { return 2; }
  Label read(Split /*split*/, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const override {
    out[0] = static_cast<uint8_t>(40 * index);
    out[1] = static_cast<uint8_t>(*draw % 256);
    if (index % 2 == 0) return {.first = index / 2};
    return {index / 2, 2, 0.25F};
  }
  [[nodiscard]] uint64_t checksum(Split /*split*/) const override { return 0; }
};

Recipe small() {
  Recipe recipe;
  recipe.model.model = "classifier";
  recipe.model.mixer.name = "aft_simple";
  recipe.model.height = 1;
  recipe.model.width = 2;
  recipe.model.colors = 1;
  recipe.model.patch = 1;
  recipe.model.classes = 3;
  recipe.model.layers = 1;
  recipe.model.channels = 8;
  recipe.model.mlp_channels = 8;
  return recipe;
}

TEST(Batch, HoldsSecondLabelsWhereOneIsMixed) {
  const Pairs data;
  const std::vector<Visit> plain = {{0, 1}, {4, 2}};
  EXPECT_FALSE(read_batch(data, Split::kTrain, plain, false).mixed.second.defined());
  EXPECT_FALSE(read_batch(data, Split::kTrain, plain, false).mixed.share.defined());
  const std::vector<Visit> some = {{4, 258}, {1, 2}, {3, 9}};
  const Batch batch = read_batch(data, Split::kTrain, some, false).to(torch::kCPU);
  EXPECT_TRUE(torch::equal(batch.bytes, torch::tensor({{160, 2}, {40, 2}, {120, 9}}, torch::kUInt8)));
  EXPECT_TRUE(torch::equal(batch.labels, torch::tensor({2, 0, 1}, torch::kInt64)));
  EXPECT_TRUE(torch::equal(batch.mixed.second, torch::tensor({2, 2, 2}, torch::kInt64)));
  EXPECT_TRUE(torch::equal(batch.mixed.share, torch::tensor({1.0F, 0.25F, 0.25F})));
}

TEST(TrainingStep, LearnsFromMixedAndSmoothedLabels) {
  Recipe recipe = small();
  recipe.train.batch = 3;
  recipe.train.accumulate = 2;
  recipe.train.label_smoothing = 0.2;
  const Pairs data;
  const EpochOrder order(6, 5);
  Classifier model(recipe.model);
  {
    const torch::NoGradGuard no_grad;
    model->named_parameters()["head.weight"].mul_(20);  // untrained, all classes would be equally likely
  }
  double expected = 0;
  double unmixed = 0;
  int64_t correct = 0;
  for (int64_t i = 0; i < 6; ++i) {
    const std::vector<Visit> visit = {{order.at(i).index, order.draw(i)}};
    std::vector<uint8_t> image(2);
    const Label label = data.read(Split::kTrain, visit[0].index, visit[0].draw, image);
    const torch::NoGradGuard no_grad;
    const Sample sample = task_of(recipe.model).sample(recipe.model, read_batch(data, Split::kTrain, visit, false));
    const auto all = model->forward(sample.input)[0];
    std::vector<double> values;
    for (int64_t c = 0; c < 3; ++c) values.push_back(all[c].item<float>());
    const double first = plain_loss(values, label.first, 0.2) / 6;
    const double second = label.second == -1 ? 0 : plain_loss(values, label.second, 0.2) / 6;
    expected += label.share * first + (1 - label.share) * second;
    unmixed += first;
    correct += std::max_element(values.begin(), values.end()) - values.begin() == label.first;
  }
  Optimizer optimizer(model.ptr());
  Loader loader(data, order, 3, torch::kCPU, 0);
  const StepResult result = compute_gradient(*model, optimizer, loader, recipe, 0, Look::kAtOnce);
  // As many roundings of f32, of logits below 8, as there are numbers in a layer.
  EXPECT_NEAR(result.loss.item<double>(), expected, 8 * 50 * std::numeric_limits<float>::epsilon());
  EXPECT_GT(std::abs(expected - unmixed), 0.01);
  EXPECT_EQ(result.correct.item<double>(), static_cast<double>(correct));
  EXPECT_EQ(result.targets, 6);
}

}  // namespace
}  // namespace aft

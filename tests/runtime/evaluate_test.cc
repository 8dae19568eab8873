#include "aft/runtime/evaluate.h"

#include <gtest/gtest.h>

#include <cmath>

#include "../io/random_bytes.h"
#include "../io/temporary_folder.h"
#include "aft/error.h"
#include "naive_model.h"
#include "random_model.h"

namespace aft::runtime {
namespace {

/// The definition, from the truth: windows of `context`, -log2 p of every byte after the first.
double naive_bits_per_byte(const ModelConfig& config, const test::Tensors& tensors, std::span<const uint8_t> text) {
  double bits = 0;
  int64_t predicted = 0;
  for (size_t begin = 0; begin < text.size(); begin += static_cast<size_t>(config.context)) {
    const auto window = text.subspan(begin, std::min(static_cast<size_t>(config.context), text.size() - begin));
    const std::vector<double> logits = test::naive_logits(config, tensors, window);
    for (size_t t = 0; t + 1 < window.size(); ++t) {
      double sum = 0;
      for (size_t i = 0; i < 256; ++i) sum += std::exp(logits[t * 256 + i]);
      bits += std::log2(sum) - logits[t * 256 + window[t + 1]] / std::log(2.0);
      ++predicted;
    }
  }
  return bits / static_cast<double>(predicted);
}

class EvaluateTest : public testing::Test {
 protected:
  Model load(const ModelConfig& config, const test::Tensors& tensors) {
    test::write_model(folder_ / "model.safetensors", config, tensors);
    return Model::load(folder_.path(), *pool_);
  }
  test::TemporaryFolder folder_;
  std::shared_ptr<ThreadPool> pool_ = std::make_shared<ThreadPool>(2);
};

TEST_F(EvaluateTest, AgreesWithTheDefinition) {
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    ModelConfig config = test::small_config(mixer);
    config.layers = 1;
    const test::Tensors tensors = test::random_tensors(config, 3);
    const Model model = load(config, tensors);
    // One partial window; whole ones; a rest of one byte, which predicts nothing; more windows than go side by side.
    for (const int64_t bytes : {2, 47, 48, 49, 96, 97, 500, 1300}) {
      const std::vector<uint8_t> text = test::random_bytes(bytes, 4);
      const Evaluation result = evaluate(model, text, pool_);
      EXPECT_NEAR(result.bits_per_byte, naive_bits_per_byte(config, tensors, text), 1e-5) << mixer << ' ' << bytes;
      EXPECT_EQ(result.bytes, bytes);
      EXPECT_EQ(result.predicted, bytes - (bytes + 47) / 48);
    }
  }
}

TEST_F(EvaluateTest, ContextLongerThanOnePass) {
  ModelConfig config = test::small_config("aft_local");
  config.layers = 1;
  config.channels = 4;
  config.context = 700;
  const test::Tensors tensors = test::random_tensors(config, 3);
  const std::vector<uint8_t> text = test::random_bytes(1500, 4);
  EXPECT_NEAR(evaluate(load(config, tensors), text, pool_).bits_per_byte, naive_bits_per_byte(config, tensors, text),
              1e-5);
}

// Without weights every byte has probability 1/256.
TEST_F(EvaluateTest, AModelThatKnowsNothingNeedsEightBits) {
  const ModelConfig config = test::small_config("aft_local");
  test::Tensors tensors = test::random_tensors(config, 3);
  std::fill(tensors["head.weight"].begin(), tensors["head.weight"].end(), 0.0F);
  EXPECT_NEAR(evaluate(load(config, tensors), test::random_bytes(100, 4), pool_).bits_per_byte, 8.0, 1e-12);
}

TEST_F(EvaluateTest, ReportsProgressToTheEnd) {
  const ModelConfig config = test::small_config("aft_simple");
  std::vector<int64_t> done;
  evaluate(load(config, test::random_tensors(config, 3)), test::random_bytes(1000, 4), pool_,
           [&](int64_t bytes) { done.push_back(bytes); });
  ASSERT_GT(done.size(), 1U);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));
  EXPECT_EQ(done.back(), 1000);
}

TEST_F(EvaluateTest, NothingToPredictIsAnError) {
  ModelConfig config = test::small_config("aft_simple");
  const Model model = load(config, test::random_tensors(config, 3));
  EXPECT_THROW(evaluate(model, {}, pool_), Error);
  EXPECT_THROW(evaluate(model, test::random_bytes(1, 4), pool_), Error);
  config.context = 1;
  EXPECT_THROW(evaluate(load(config, test::random_tensors(config, 3)), test::random_bytes(50, 4), pool_), Error);
}

}  // namespace
}  // namespace aft::runtime

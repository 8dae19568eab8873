#include "aft/runtime/session.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "../io/random_bytes.h"
#include "../io/temporary_folder.h"
#include "aft/error.h"
#include "naive_model.h"
#include "random_model.h"

namespace aft::runtime {
namespace {

struct Loaded {
  ModelConfig config;
  test::Tensors tensors;
  Model model;
};

class SessionTest : public testing::Test {
 protected:
  Loaded load(const ModelConfig& config, const test::Tensors& tensors) {
    test::write_model(folder_ / "model.safetensors", config, tensors);
    return {config, tensors, Model::load(folder_.path(), *pool_)};
  }
  Loaded load(const ModelConfig& config) { return load(config, test::random_tensors(config, 1)); }

  test::TemporaryFolder folder_;
  std::shared_ptr<ThreadPool> pool_ = std::make_shared<ThreadPool>(3);
};

/// Largest difference of logits [n, 256] from row `first` of the truth, over the largest logit.
double difference(std::span<const float> logits, const std::vector<double>& truth, int64_t first) {
  double largest = 0;
  double scale = 1;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double right = truth[static_cast<size_t>(first) * 256 + i];
    const double error = std::abs(static_cast<double>(logits[i]) - right);
    largest = std::isnan(error) ? INFINITY : std::max(largest, error);
    scale = std::max(scale, std::abs(right));
  }
  return largest / scale;
}

constexpr double kTolerance = 1e-5;  // f32 through a few layers; the sessions reach 1e-6

std::vector<ModelConfig> all_configs() {
  std::vector<ModelConfig> configs;
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"})
    configs.push_back(test::small_config(mixer));
  for (const int64_t window : {0, 1, 2, 48, 60}) {
    configs.push_back(test::small_config("aft_local"));
    configs.back().mixer.window = window;
  }
  configs.push_back(test::small_config("attention"));
  configs.back().mixer.heads = 1;
  for (const int64_t window : {1, 48, 60}) {
    configs.push_back(test::small_config("aft_conv1d"));
    configs.back().mixer.window = window;
    configs.back().mixer.heads = window == 48 ? 1 : 21;
  }
  configs.push_back(test::small_config("aft_local"));
  configs.back().channels = 1;
  configs.push_back(test::small_config("aft_local"));
  configs.back().channels = 64;
  configs.back().mlp_channels = 300;
  return configs;
}

// The truth itself, by hand: LayerNorm maps (1, -1) to (r, -r) with r = 1 / sqrt(1 + 1e-5).
TEST(NaiveModel, HandWorkedCase) {
  ModelConfig config = test::small_config("aft_local");
  config.layers = 1;
  config.channels = 2;
  config.mlp_channels = 1;
  config.context = 2;
  config.mixer.window = 1;
  config.mixer.factor_channels = 1;
  test::Tensors t = test::random_tensors(config, 1);
  for (auto& [name, values] : t) {
    std::fill(values.begin(), values.end(), name.ends_with("norm.weight") ? 1.0F : 0.0F);
  }
  const float r = 1.0F / std::sqrt(1.0F + 1e-5F);
  t["embedding.token.weight"][2 * 'a'] = 1.0F;
  t["embedding.token.weight"][2 * 'a' + 1] = -1.0F;
  t["embedding.token.weight"][2 * 'b'] = -1.0F;
  t["embedding.token.weight"][2 * 'b' + 1] = 1.0F;
  // Keys of channel 0: ln 3 for a, -ln 3 for b; values: 1 for a, -1 for b. Channel 1: keys and values 0. Query 0.
  t["blocks.0.mixer.qkv.weight"][2 * 2] = std::log(3.0F) / r;
  t["blocks.0.mixer.qkv.weight"][4 * 2] = 1.0F / r;
  // Output: channel 0 to channel 0, times 10. MLP: gelu(1) = 0.8413447461 to channel 1.
  t["blocks.0.mixer.output.weight"][0] = 10.0F;
  t["blocks.0.mlp.up.bias"][0] = 1.0F;
  t["blocks.0.mlp.down.weight"][1] = 1.0F;
  // The head shows normalised channel 0 as byte 0 and channel 1 as byte 1.
  t["head.weight"][0] = 1.0F;
  t["head.weight"][3] = 1.0F;

  const auto normalised = [](double a, double b) {  // of (a, b)
    const double half = (a - b) / 2;
    return half / std::sqrt(half * half + 1e-5);
  };
  const std::vector<uint8_t> ab = {'a', 'b'};
  // At b: N/D = (3 * 1 + (1/3) * (-1)) / (3 + 1/3) = 0.8, gate 1/2, times 10: 4.
  std::vector<double> logits = test::naive_logits(config, t, ab);
  EXPECT_NEAR(logits[256], normalised(-1 + 4.0, 1 + 0.8413447461), 1e-6);
  EXPECT_NEAR(logits[257], -normalised(-1 + 4.0, 1 + 0.8413447461), 1e-6);
  EXPECT_NEAR(logits[0], normalised(1 + 5.0, -1 + 0.8413447461), 1e-6);
  // w[1,1] = ln 9 raises the weight of b to 3: N/D = 0.
  t["blocks.0.mixer.u"][1] = 1.0F;
  t["blocks.0.mixer.v"][1] = std::log(9.0F);
  logits = test::naive_logits(config, t, ab);
  EXPECT_NEAR(logits[256], normalised(-1 + 0.0, 1 + 0.8413447461), 1e-6);
  // Attention of one head sees the same keys as scores of the query, which is 0: the mean of the values, (1 - 1) / 2.
  config.mixer.name = "attention";
  config.mixer.heads = 1;
  logits = test::naive_logits(config, t, ab);
  EXPECT_NEAR(logits[256], normalised(-1 + 0.0, 1 + 0.8413447461), 1e-6);
  // A query of -1 at b on channel 0, width 2: scores -+ln 3 / sqrt(2).
  t["blocks.0.mixer.qkv.weight"][0] = 1.0F / r;
  logits = test::naive_logits(config, t, ab);
  const double ratio = std::exp(-2 * std::log(3.0) / std::sqrt(2.0));  // weight of a over weight of b
  EXPECT_NEAR(logits[256], normalised(-1 + 10 * (ratio - 1) / (ratio + 1), 1 + 0.8413447461), 1e-6);
}

TEST_F(SessionTest, PrefillGivesTheTruth) {
  for (const ModelConfig& config : all_configs()) {
    const Loaded m = load(config);
    const std::vector<uint8_t> tokens = test::random_bytes(config.context, 2);
    const std::vector<double> truth = test::naive_logits(config, m.tensors, tokens);
    Session session(m.model, pool_);
    for (const int64_t length : {1, 2, 5, 33, 48}) {
      session.reset();
      const auto logits = session.prefill({tokens.data(), static_cast<size_t>(length)});
      EXPECT_LT(difference(logits, truth, length - 1), kTolerance) << to_json(config) << " length " << length;
      EXPECT_EQ(session.position(), length);
    }
    std::vector<float> all(static_cast<size_t>(config.context * 256));
    session.reset();
    session.prefill_all(tokens, all);
    EXPECT_LT(difference(all, truth, 0), kTolerance) << to_json(config);
  }
}

TEST_F(SessionTest, StepsGiveTheTruth) {
  for (const ModelConfig& config : all_configs()) {
    const Loaded m = load(config);
    const std::vector<uint8_t> tokens = test::random_bytes(config.context, 2);
    const std::vector<double> truth = test::naive_logits(config, m.tensors, tokens);
    Session session(m.model, pool_);
    for (int64_t t = 0; t < config.context; ++t) {
      const auto logits = session.step({&tokens[static_cast<size_t>(t)], 1});
      ASSERT_LT(difference(logits, truth, t), kTolerance) << to_json(config) << " position " << t;
    }
  }
}

TEST_F(SessionTest, AnyCuttingIntoPiecesGivesTheTruth) {
  const std::vector<std::vector<int64_t>> cuttings = {
      {1, 47}, {47, 1}, {3, 1, 1, 20, 1, 22}, {7, 7, 7, 7, 7, 7, 6}, {24, 24}, {2, 4, 8, 16, 18}};
  for (const ModelConfig& config : all_configs()) {
    const Loaded m = load(config);
    const std::vector<uint8_t> tokens = test::random_bytes(config.context, 2);
    const std::vector<double> truth = test::naive_logits(config, m.tensors, tokens);
    for (const auto& cutting : cuttings) {
      Session session(m.model, pool_);
      size_t at = 0;
      for (const int64_t piece : cutting) {
        const auto logits = session.prefill({tokens.data() + at, static_cast<size_t>(piece)});
        at += static_cast<size_t>(piece);
        EXPECT_LT(difference(logits, truth, static_cast<int64_t>(at) - 1), kTolerance) << to_json(config);
      }
    }
  }
}

// More tokens than one pass takes: the passes hand the state on.
TEST_F(SessionTest, LongPrefillGoesInPasses) {
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    ModelConfig config = test::small_config(mixer);
    config.layers = 1;
    config.channels = 4;
    config.mixer.heads = 2;
    config.context = 1100;
    const Loaded m = load(config);
    const std::vector<uint8_t> tokens = test::random_bytes(config.context, 2);
    const std::vector<double> truth = test::naive_logits(config, m.tensors, tokens);
    Session session(m.model, pool_);
    std::vector<float> all(static_cast<size_t>(config.context * 256));
    session.prefill_all(tokens, all);
    EXPECT_LT(difference(all, truth, 0), kTolerance) << mixer;
    session.reset();
    EXPECT_LT(difference(session.prefill(tokens), truth, 1099), kTolerance) << mixer;
  }
}

TEST_F(SessionTest, TextsOfABatchAreApart) {
  for (const ModelConfig& config : all_configs()) {
    const Loaded m = load(config);
    const int64_t batch = 6;  // more than are multiplied row by row
    const int64_t time = 10;
    std::vector<uint8_t> tokens;
    std::vector<uint8_t> next;
    std::vector<std::vector<double>> truths;
    for (int64_t b = 0; b < batch; ++b) {
      const std::vector<uint8_t> text = test::random_bytes(time + 1, 10 + static_cast<uint64_t>(b));
      tokens.insert(tokens.end(), text.begin(), text.end() - 1);
      next.push_back(text.back());
      truths.push_back(test::naive_logits(config, m.tensors, text));
    }
    Session session(m.model, pool_, batch);
    std::vector<float> all(static_cast<size_t>(batch * time * 256));
    session.prefill_all(tokens, all);
    for (int64_t b = 0; b < batch; ++b) {
      const std::span<const float> row = {&all[static_cast<size_t>(b * time * 256)], static_cast<size_t>(time * 256)};
      EXPECT_LT(difference(row, truths[static_cast<size_t>(b)], 0), kTolerance) << to_json(config);
    }
    const auto stepped = session.step(next);
    for (int64_t b = 0; b < batch; ++b) {
      EXPECT_LT(difference(stepped.subspan(static_cast<size_t>(b * 256), 256), truths[static_cast<size_t>(b)], time),
                kTolerance);
    }
    session.reset();
    const auto last = session.prefill(tokens);
    for (int64_t b = 0; b < batch; ++b) {
      EXPECT_LT(difference(last.subspan(static_cast<size_t>(b * 256), 256), truths[static_cast<size_t>(b)], time - 1),
                kTolerance);
    }
  }
}

TEST_F(SessionTest, ThreadsDoNotChangeABit) {
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    const Loaded m = load(test::small_config(mixer));
    const std::vector<uint8_t> tokens = test::random_bytes(40, 2);
    std::vector<std::vector<float>> results;
    for (const int64_t threads : {1, 2, 7}) {
      Session session(m.model, std::make_shared<ThreadPool>(threads));
      session.prefill({tokens.data(), 30});
      for (size_t i = 30; i < 39; ++i) session.step({&tokens[i], 1});
      const auto logits = session.step({&tokens[39], 1});
      results.emplace_back(logits.begin(), logits.end());
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(results[0], results[2]);
  }
}

// So that a text or an image is the same, alone or among others.
TEST_F(SessionTest, StepsDoNotDependOnTheBatch) {
  std::vector<ModelConfig> configs = all_configs();
  configs.push_back(test::small_config("aft_local"));
  configs.back().channels = 256;  // matrix products of some of these sizes are done in other ways
  configs.back().mlp_channels = 64;
  for (const ModelConfig& config : configs) {
    const Loaded m = load(config);
    constexpr size_t kMost = 19;
    constexpr size_t kTime = 12;
    const std::vector<uint8_t> tokens = test::random_bytes(kMost * kTime, 2);  // [B, T]
    std::vector<std::vector<float>> alone;                                     // of each text, after its last token
    for (size_t b = 0; b < kMost; ++b) {
      Session session(m.model, pool_);
      std::span<const float> logits;
      for (size_t t = 0; t < kTime; ++t) logits = session.step({&tokens[b * kTime + t], 1});
      alone.emplace_back(logits.begin(), logits.end());
    }
    for (const size_t batch : {2, 5, 7, 19}) {
      Session session(m.model, std::make_shared<ThreadPool>(static_cast<int64_t>(batch % 4) + 1),
                      static_cast<int64_t>(batch));
      std::span<const float> logits;
      for (size_t t = 0; t < kTime; ++t) {
        std::vector<uint8_t> column;
        for (size_t b = 0; b < batch; ++b) column.push_back(tokens[b * kTime + t]);
        logits = session.step(column);
      }
      for (size_t b = 0; b < batch; ++b) {
        const auto row = logits.subspan(b * 256, 256);
        ASSERT_EQ(std::vector<float>(row.begin(), row.end()), alone[b])
            << to_json(config) << " text " << b << " of " << batch;
      }
    }
  }
}

// The start token stands before the first value, whose logits start() gives.
TEST_F(SessionTest, ImagesBeginWithTheStartToken) {
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    const Loaded m = load(test::small_pixel_config(mixer, 3));
    const std::vector<uint8_t> values = test::random_bytes(44, 2);
    const std::vector<double> truth = test::naive_logits(m.config, m.tensors, values);
    Session session(m.model, pool_, 1);
    EXPECT_EQ(session.context(), 45);
    ASSERT_LT(difference(session.start(), truth, 0), kTolerance) << mixer;
    for (size_t i = 0; i < 44; ++i) {
      ASSERT_LT(difference(session.step({&values[i], 1}), truth, static_cast<int64_t>(i) + 1), kTolerance)
          << mixer << " value " << i;
    }
    session.reset();
    session.start();
    EXPECT_LT(difference(session.prefill(values), truth, 44), kTolerance) << mixer;
    EXPECT_THROW(session.start(), Error);
  }
  EXPECT_THROW(Session(load(test::small_config("aft_simple")).model, pool_).start(), Error);
}

TEST_F(SessionTest, PastTheContextThrowsAndChangesNothing) {
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    const Loaded m = load(test::small_config(mixer));
    const std::vector<uint8_t> tokens = test::random_bytes(49, 2);
    const std::vector<double> truth = test::naive_logits(m.config, m.tensors, {tokens.data(), 48});
    Session session(m.model, pool_);
    EXPECT_THROW(session.prefill(tokens), Error);
    EXPECT_EQ(session.position(), 0);
    session.prefill({tokens.data(), 40});
    try {
      session.prefill({tokens.data() + 40, 9});
      FAIL() << "expected an Error";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("position 40 and 9 more pass the end of the model's context of 48"),
                std::string::npos)
          << e.what();
    }
    EXPECT_LT(difference(session.prefill({tokens.data() + 40, 8}), truth, 47), kTolerance);
    EXPECT_THROW(session.step({&tokens[48], 1}), Error);
  }
}

TEST_F(SessionTest, BadCallsThrow) {
  const Loaded m = load(test::small_config("aft_simple"));
  EXPECT_THROW(Session(m.model, pool_, 0), Error);
  Session session(m.model, pool_, 2);
  const std::vector<uint8_t> tokens = {1, 2, 3, 4};
  std::vector<float> logits(4 * 256);
  EXPECT_THROW(session.prefill({}), Error);
  EXPECT_THROW(session.prefill({tokens.data(), 3}), Error);
  EXPECT_THROW(session.step(tokens), Error);
  EXPECT_THROW(session.prefill_all(tokens, {logits.data(), 3 * 256}), Error);
  EXPECT_NO_THROW(session.prefill_all(tokens, logits));
}

TEST_F(SessionTest, StateGrowsWhereEveryPositionIsKept) {
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    const Loaded m = load(test::small_config(mixer));
    Session session(m.model, pool_);
    const std::vector<uint8_t> tokens = test::random_bytes(48, 2);
    session.prefill({tokens.data(), 1});
    const int64_t early = session.state_bytes();
    session.prefill({tokens.data() + 1, 47});
    if (std::string(mixer) == "attention") {
      EXPECT_EQ(session.state_bytes(), 48 * early);
    } else if (std::string(mixer) == "aft_full") {  // keys and values of 47 more positions, in each of 3 layers
      EXPECT_EQ(session.state_bytes(), early + 3 * 47 * 2 * 21 * 4);
    } else {
      EXPECT_EQ(session.state_bytes(), early);
    }
  }
}

// Windows begin at multiples of 24 = 48 - 48 / 2; the last that holds the text counts.
TEST_F(SessionTest, RollingSessionReadsTheLastHalfAgain) {
  for (const char* mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    const Loaded m = load(test::small_config(mixer));
    const std::vector<uint8_t> tokens = test::random_bytes(200, 2);
    RollingSession session(m.model, pool_);
    for (int64_t n = 1; n <= 200; ++n) {
      const auto logits = session.feed({&tokens[static_cast<size_t>(n - 1)], 1});
      const int64_t start = n <= 48 ? 0 : (n - 48 + 23) / 24 * 24;
      const std::vector<double> truth =
          test::naive_logits(m.config, m.tensors, {tokens.data() + start, static_cast<size_t>(n - start)});
      ASSERT_LT(difference(logits, truth, n - start - 1), kTolerance) << mixer << " after " << n;
      ASSERT_EQ(session.length(), n);
    }
    // The same text in other pieces.
    for (const size_t first : {1, 47, 48, 49, 72, 73, 150}) {
      RollingSession other(m.model, pool_);
      other.feed({tokens.data(), first});
      const auto logits = other.feed({tokens.data() + first, 200 - first});
      const std::vector<double> truth = test::naive_logits(m.config, m.tensors, {tokens.data() + 168, 32});
      EXPECT_LT(difference(logits, truth, 31), kTolerance) << mixer << " first " << first;
      EXPECT_EQ(other.length(), 200);
    }
    EXPECT_THROW(session.feed({}), Error);
  }
}

// A text read with bounded memory: its surplus dropped now and then leads to the same as the whole.
TEST_F(SessionTest, RollingSessionNeedsNoSurplus) {
  for (const int64_t context : {1, 7, 20}) {
    ModelConfig config = test::small_config("aft_local");
    config.context = context;
    const Loaded m = load(config);
    std::vector<uint8_t> text;
    std::vector<uint8_t> kept;
    for (int64_t i = 0; i < 70; ++i) {
      text.push_back(static_cast<uint8_t>(i * 37));
      kept.push_back(text.back());
      RollingSession whole(m.model, pool_);
      const auto expected = whole.feed(text);
      RollingSession last(m.model, pool_);
      const auto got = last.feed(kept);
      ASSERT_TRUE(std::equal(expected.begin(), expected.end(), got.begin(), got.end())) << context << ' ' << i;
      if (i % 3 == 0) kept.erase(kept.begin(), kept.begin() + RollingSession::surplus(std::ssize(kept), context));
      ASSERT_LE(std::ssize(kept), context + 3);
    }
  }
}

TEST_F(SessionTest, RollingSessionOfAContextOfOne) {
  ModelConfig config = test::small_config("aft_local");
  config.context = 1;
  const Loaded m = load(config);
  RollingSession session(m.model, pool_);
  const std::vector<uint8_t> tokens = {7, 8, 9};
  session.feed(tokens);
  for (const uint8_t byte : tokens) {
    const auto logits = session.feed({&byte, 1});
    EXPECT_LT(difference(logits, test::naive_logits(config, m.tensors, {&byte, 1}), 0), kTolerance);
  }
}

}  // namespace
}  // namespace aft::runtime

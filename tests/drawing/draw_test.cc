#include "drawing/draw.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../data/message.h"
#include "../io/random_bytes.h"
#include "../io/temporary_folder.h"
#include "../runtime/naive_model.h"
#include "../runtime/random_model.h"

namespace aft {
namespace {

constexpr const char* kMixers[] = {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"};
constexpr runtime::SamplerOptions kGreedy = {.temperature = 0};
constexpr runtime::SamplerOptions kFree = {};

using Values = std::vector<uint8_t>;

class DrawTest : public testing::Test {
 protected:
  runtime::Model load(const ModelConfig& config, uint64_t seed = 1) {
    test::write_model(folder_ / "model.safetensors", config, test::random_tensors(config, seed));
    return runtime::Model::load(folder_.path(), *pool_);
  }
  runtime::Model load(const char* mixer, int64_t colors = 1) { return load(test::small_pixel_config(mixer, colors)); }

  std::vector<Values> draw(const runtime::Model& model, const std::vector<Wanted>& wanted, int64_t batch = 4,
                           const runtime::SamplerOptions& sampler = kFree) {
    std::vector<Values> values;
    for (Picture& picture : draw_images(model, pool_, wanted, batch, sampler)) values.push_back(picture.values);
    return values;
  }

  test::TemporaryFolder folder_;
  std::shared_ptr<runtime::ThreadPool> pool_ = std::make_shared<runtime::ThreadPool>(2);
};

std::vector<Wanted> seeds(std::initializer_list<uint64_t> list) {
  std::vector<Wanted> wanted;
  for (const uint64_t seed : list) wanted.push_back({seed, {}});
  return wanted;
}

/// The image at a row and column of a grid, by the rule of one pixel of line.
Values cell(const Picture& all, const ImageShape& shape, int64_t row, int64_t column) {
  Values values;
  for (int64_t y = 0; y < shape.height; ++y) {
    const int64_t line = 1 + row * (shape.height + 1) + y;
    const int64_t left = 1 + column * (shape.width + 1);
    const auto begin = all.values.begin() + (line * all.shape.width + left) * shape.channels;
    values.insert(values.end(), begin, begin + shape.width * shape.channels);
  }
  return values;
}

// By the model in f64: the value drawn has the largest of the logits that come after those before it.
TEST_F(DrawTest, AtTemperatureZeroEveryValueIsTheMostLikely) {
  for (const char* mixer : kMixers) {
    for (const int64_t colors : {1, 3}) {
      const ModelConfig config = test::small_pixel_config(mixer, colors);
      const Values image = draw(load(config), seeds({7}), 1, kGreedy).front();
      ASSERT_EQ(std::ssize(image), 15 * colors);
      const auto truth = test::naive_logits(config, test::random_tensors(config, 1), image);
      for (size_t t = 0; t < image.size(); ++t) {
        const auto row = truth.begin() + static_cast<int64_t>(256 * t);
        EXPECT_GE(row[image[t]], *std::max_element(row, row + 256) - 1e-4) << mixer << " value " << t;
      }
    }
  }
}

TEST_F(DrawTest, AnImageIsTheSameInAnyBatchAndOrder) {
  for (const char* mixer : kMixers) {
    const runtime::Model model = load(mixer, 3);
    const std::vector<Values> alone = draw(model, seeds({1, 2, 3, 4, 5, 6, 7}), 1);
    for (const int64_t batch : {2, 5, 7, 100}) {
      EXPECT_EQ(draw(model, seeds({1, 2, 3, 4, 5, 6, 7}), batch), alone) << mixer << " batch " << batch;
    }
    EXPECT_EQ(draw(model, seeds({6, 2}), 2), (std::vector<Values>{alone[5], alone[1]}));
    pool_ = std::make_shared<runtime::ThreadPool>(5);
    EXPECT_EQ(draw(model, seeds({6, 2, 6}), 3), (std::vector<Values>{alone[5], alone[1], alone[5]}));
    EXPECT_NE(alone[0], alone[1]);
  }
}

TEST_F(DrawTest, GivenValuesStayAndAreReadOn) {
  const runtime::Model model = load("aft_local", 3);
  const Values whole = draw(model, seeds({3}), 1, kGreedy).front();
  const Values other = test::random_bytes(45, 9);
  for (const size_t given : {0, 1, 20, 44, 45}) {
    // The most likely goes on as it went on before.
    EXPECT_EQ(draw(model, {{5, std::span(whole).first(given)}}, 1, kGreedy).front(), whole);
    const Values completed = draw(model, {{5, std::span(other).first(given)}, {6, std::span(other).first(given)}})[1];
    EXPECT_TRUE(std::equal(other.begin(), other.begin() + static_cast<int64_t>(given), completed.begin()));
    if (given == 20) {
      EXPECT_NE(Values(completed.begin() + 20, completed.end()), Values(whole.begin() + 20, whole.end()));
    }
  }
}

TEST_F(DrawTest, SamplesInAGrid) {
  const std::vector<runtime::Model> models = {load("aft_local", 3), load(test::small_pixel_config("aft_local", 3), 2)};
  FigureOptions options;
  options.count = 5;
  options.sampler.seed = 11;
  const ImageShape shape = {5, 3, 3};
  int64_t told = 0;
  const Picture all = draw_samples(models, pool_, options, [&](int64_t done) {
    EXPECT_GT(done, told);
    told = done;
  });
  EXPECT_EQ(told, 2 * values_of(models[0], 5));
  EXPECT_EQ(told, 2 * 5 * 45);
  EXPECT_EQ(all.shape, (ImageShape{4 * 6 + 1, 3 * 4 + 1, 3}));  // 2 rows of 3 for each
  for (size_t m = 0; m < 2; ++m) {
    for (int64_t i = 0; i < 5; ++i) {
      const Values image = draw(models[m], seeds({nth_seed(11, static_cast<uint64_t>(i))})).front();
      EXPECT_EQ(cell(all, shape, 2 * static_cast<int64_t>(m) + i / 3, i % 3), image);
    }
  }
  EXPECT_EQ(cell(all, shape, 1, 2), Values(45, 255));
  options.columns = 4;
  EXPECT_EQ(draw_samples({models.data(), 1}, pool_, options).shape, (ImageShape{2 * 6 + 1, 4 * 4 + 1, 3}));
  options.columns = 40;
  EXPECT_EQ(draw_samples(models, pool_, options).shape, (ImageShape{2 * 6 + 1, 5 * 4 + 1, 3}));
}

TEST_F(DrawTest, CompletionsInRows) {
  const std::vector<runtime::Model> models = {load("aft_conv1d", 3), load(test::small_pixel_config("attention", 3), 2)};
  const ImageShape shape = {5, 3, 3};
  const std::vector<Picture> originals = {{shape, test::random_bytes(45, 1)}, {shape, test::random_bytes(45, 2)}};
  FigureOptions options;
  options.count = 2;
  const Picture all = draw_completions(models, pool_, originals, options);
  EXPECT_EQ(all.shape, (ImageShape{2 * 6 + 1, 6 * 4 + 1, 3}));
  std::vector<Values> seen;
  for (int64_t i = 0; i < 2; ++i) {
    const Values& original = originals[static_cast<size_t>(i)].values;
    const Values upper(original.begin(), original.begin() + 2 * 9);  // two of five rows
    Values given = upper;
    given.resize(45, 128);
    EXPECT_EQ(cell(all, shape, i, 0), given);
    EXPECT_EQ(cell(all, shape, i, 5), original);
    for (int64_t k = 0; k < 4; ++k) {
      const Values completed = cell(all, shape, i, 1 + k);
      EXPECT_EQ(Values(completed.begin(), completed.begin() + 18), upper);
      const uint64_t seed = nth_seed(nth_seed(0, static_cast<uint64_t>(i)), static_cast<uint64_t>(k % 2));
      EXPECT_EQ(completed, draw(models[static_cast<size_t>(k / 2)], {{seed, upper}}).front());
      EXPECT_EQ(std::count(seen.begin(), seen.end(), completed), 0);
      seen.push_back(completed);
    }
  }
}

TEST_F(DrawTest, Refuses) {
  const auto begins = [](const std::string& text, const std::string& with) {
    EXPECT_TRUE(text.starts_with(with)) << text;
  };
  const runtime::Model text = load(test::small_config("aft_local"));
  begins(message([&] { draw(text, seeds({1})); }),
         "sample: expected a model of kind pixel_lm, got a byte_lm; aft generate");
  const runtime::Model model = load("aft_local");
  begins(message([&] { draw(model, seeds({1}), 0); }), "batch: expected at least 1, got 0");
  begins(message([&] { draw(model, seeds({1}), 1, {.temperature = -1}); }), "temperature: expected");
  const Values values(16);
  begins(message([&] { draw(model, {{1, values}}); }), "given: expected");
  begins(message([&] { draw(model, {{1, {}}, {1, std::span(values).first(1)}}); }), "given: expected");
  EXPECT_TRUE(draw(model, {}).empty());
  const std::vector<runtime::Model> both = {model, load("aft_local", 3)};
  begins(message([&] { draw_samples(both, pool_, {}); }), "models: expected all to draw 5 x 3 pixels of 1 value");
  begins(message([&] { draw_samples({}, pool_, {}); }), "models: expected at least one");
  FigureOptions none;
  none.count = 0;
  begins(message([&] { draw_samples({&model, 1}, pool_, none); }), "count: expected");
  const std::vector<Picture> wide = {plain_picture({3, 5, 1}, 0)};
  begins(message([&] { draw_completions({&model, 1}, pool_, wide, {}); }), "originals: expected images of 5 x 3");
  begins(message([&] { draw_completions({&model, 1}, pool_, {}, {}); }), "originals: expected at least one");
}

TEST_F(DrawTest, WeightsThatAreNoNumbersEndWithAMessage) {
  const ModelConfig config = test::small_pixel_config("aft_local", 1);
  test::Tensors tensors = test::random_tensors(config, 1);
  tensors["head.weight"][0] = std::numeric_limits<float>::quiet_NaN();
  test::write_model(folder_ / "model.safetensors", config, tensors);
  const auto model = runtime::Model::load(folder_.path(), *pool_);
  EXPECT_NE(message([&] { draw(model, seeds({1, 2})); }).find("finite"), std::string::npos);
}

}  // namespace
}  // namespace aft

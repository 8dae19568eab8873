#include "train/training_step.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <thread>
#include <vector>

#include "../data/scratch.h"
#include "aft/error.h"
#include "aft/runtime/evaluate.h"
#include "data/text.h"
#include "models/language_model.h"
#include "train/checkpoint.h"
#include "train/evaluate.h"

namespace aft {
namespace {

Recipe small(const std::string& mixer) {
  Recipe recipe;
  recipe.model.mixer.name = mixer;
  recipe.model.layers = 2;
  recipe.model.channels = 16;
  recipe.model.mlp_channels = 32;
  recipe.model.context = 24;
  recipe.model.mixer.heads = 2;
  recipe.model.mixer.window = 4;
  recipe.model.mixer.factor_channels = 5;
  recipe.train.batch = 2;
  recipe.train.steps = 6;
  recipe.train.warmup = 2;
  recipe.train.lr = 1e-2;
  return recipe;
}

std::vector<uint8_t> text(size_t size) {
  std::vector<uint8_t> bytes(size);
  uint32_t x = 1;
  for (auto& byte : bytes) {
    x = x * 1664525 + 1013904223;
    byte = static_cast<uint8_t>((x >> 24) % 7 * 11);
  }
  return bytes;
}

struct Trained {
  torch::Tensor weight;
  torch::Tensor moment;
  double loss = 0;
};

/// A text of so many bytes as training data, and what hands it out.
struct Batches {
  Batches(const Recipe& recipe, size_t size, int64_t threads = 0)
      : data({Bytes(text(size)), {}, {}}, recipe.model.context),
        loader(data, EpochOrder(data.size(Split::kTrain), 5), recipe.train.batch, torch::kCPU, threads) {}
  TextData data;
  Loader loader;
};

/// bits per byte
double bits(const Evaluation& result) { return result.values.at(0).second; }

/// Of a text alone.
std::optional<Evaluation> evaluate(Model& model, const Bytes& bytes, const std::atomic<bool>* stop = nullptr) {
  return aft::evaluate(model, TextData({{}, bytes, {}}, model.config.context), Split::kValid, stop);
}

/// Trains all steps of `recipe`, in f64 from the same f32 start if asked; by update_unread() if so.
Trained train(const Recipe& recipe, torch::ScalarType dtype, uint64_t seed = 3, bool unread = false) {
  LanguageModel model(recipe.model);
  model->initialise(seed);
  model->to(dtype);
  Optimizer optimizer(model.ptr());
  Batches batches(recipe, 1000);
  Trained trained;
  for (int64_t step = 1; step <= recipe.train.steps; ++step) {
    const int64_t position = (step - 1) * recipe.train.batch * recipe.train.accumulate;
    const auto result =
        compute_gradient(*model, optimizer, batches.loader, recipe, position, unread ? Look::kLater : Look::kAtOnce);
    if (unread) {
      optimizer.update_unread(recipe.train, step, result.loss, result.gradient_norm);
    } else {
      optimizer.update(recipe.train, step, result.gradient_norm.item<double>());
    }
    trained.loss = result.loss.item<double>();
  }
  trained.weight = optimizer.weight().to(torch::kFloat64);
  trained.moment = optimizer.first_moment().to(torch::kFloat64);
  return trained;
}

double largest(const torch::Tensor& a) { return a.abs().max().item<double>(); }
double root_mean_square(const torch::Tensor& a) { return a.pow(2).mean().sqrt().item<double>(); }
double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

TEST(TrainingStep, AccumulatedBatchesAreOneLargeBatch) {
  for (const std::string mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    Recipe plain = small(mixer);
    plain.train.batch = 6;
    Recipe accumulated = plain;
    accumulated.train.batch = 2;
    accumulated.train.accumulate = 3;
    // In f64 the two differ by rounding alone. In f32 they are as far from it as each other, for the median of several
    // starts: where a gradient is next to nothing, AdamW makes a step of its rounding, and such a start is no measure.
    std::vector<double> moment_once, moment_thrice, largest_once, largest_thrice, weight_once, weight_thrice;
    for (const uint64_t seed : {3, 4, 5, 6, 7}) {
      const auto truth = train(plain, torch::kFloat64, seed);
      EXPECT_LT(largest(train(accumulated, torch::kFloat64, seed).weight - truth.weight), 1e-9) << mixer;
      const auto once = train(plain, torch::kFloat32, seed);
      const auto thrice = train(accumulated, torch::kFloat32, seed);
      largest_once.push_back(largest(once.moment - truth.moment));
      largest_thrice.push_back(largest(thrice.moment - truth.moment));
      moment_once.push_back(root_mean_square(once.moment - truth.moment));
      moment_thrice.push_back(root_mean_square(thrice.moment - truth.moment));
      weight_once.push_back(root_mean_square(once.weight - truth.weight));
      weight_thrice.push_back(root_mean_square(thrice.weight - truth.weight));
    }
    EXPECT_LE(median(largest_thrice), 2 * median(largest_once)) << mixer;
    EXPECT_LE(median(moment_thrice), 2 * median(moment_once)) << mixer;
    EXPECT_LE(median(weight_thrice), 2 * median(weight_once)) << mixer;
  }
}

TEST(TrainingStep, LossIsTheMeanOverAllTargetsAndFalls) {
  Recipe recipe = small("aft_local");
  recipe.train.steps = 1;
  // Before training every byte is about equally likely.
  EXPECT_NEAR(train(recipe, torch::kFloat64).loss, std::log(256.0), 0.05);
  recipe.train.steps = 40;
  EXPECT_LT(train(recipe, torch::kFloat32).loss, std::log(10.0));
}

TEST(TrainingStep, ChunksWithDetachedStateGiveTheSameLossAndAnotherGradient) {
  for (const std::string mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    Recipe whole = small(mixer);
    whole.train.steps = 1;
    Recipe chunked = whole;
    chunked.train.chunk = 7;  // 7 + 7 + 7 + 3
    const auto a = train(whole, torch::kFloat64);
    const auto b = train(chunked, torch::kFloat64);
    EXPECT_NEAR(a.loss, b.loss, 1e-12) << mixer;
    EXPECT_GT(largest(a.moment - b.moment), 1e-9) << mixer;
    EXPECT_LT(largest(a.moment - b.moment), largest(a.moment)) << mixer;
  }
}

TEST(TrainingStep, ClippingScalesTheWholeGradient) {
  Recipe recipe = small("aft_local");
  recipe.train.steps = 1;
  recipe.train.clip = 0;
  const auto free = train(recipe, torch::kFloat64);
  const double norm = std::sqrt(free.moment.pow(2).sum().item<double>()) / (1 - recipe.train.beta1);
  recipe.train.clip = norm / 8;
  EXPECT_LT(largest(train(recipe, torch::kFloat64).moment * 8 - free.moment), 1e-12);
  recipe.train.clip = norm * 1.01;
  EXPECT_EQ(largest(train(recipe, torch::kFloat64).moment - free.moment), 0);
}

std::string failure(LanguageModel& model, Optimizer& optimizer, const Recipe& recipe) {
  Batches batches(recipe, 100);
  try {
    compute_gradient(*model, optimizer, batches.loader, recipe, 0, Look::kAtOnce);
  } catch (const NotFinite& what) {
    return what.where;
  }
  return "nothing";
}

TEST(TrainingStep, NonFiniteTensorsAreNamed) {
  Recipe recipe = small("aft_local");
  const auto poisoned = [&](const std::string& name, float value) {
    LanguageModel model(recipe.model);
    Optimizer optimizer(model.ptr());
    const torch::NoGradGuard no_grad;
    model->named_parameters()[name].fill_(value);
    const torch::AutoGradMode grad(true);
    return failure(model, optimizer, recipe);
  };
  const auto none = poisoned("blocks.1.mixer.qkv.bias", 0);
  EXPECT_EQ(none, "nothing");
  const auto weight = poisoned("blocks.1.mixer.qkv.bias", NAN);
  EXPECT_NE(weight.find("the weight blocks.1.mixer.qkv.bias"), std::string::npos) << weight;
  const auto output = poisoned("blocks.1.mlp.up.weight", 3e38F);
  EXPECT_NE(output.find("the output of blocks.1.mlp"), std::string::npos) << output;
  recipe.train.precision = "bf16";
  EXPECT_EQ(poisoned("blocks.1.mlp.up.weight", 3e38F), output);
}

// On a GPU the host does not know the norm when it updates.
TEST(TrainingStep, AnUpdateWithoutReadingIsTheUpdate) {
  for (const double clip : {0.0, 0.01, 1e9}) {
    Recipe recipe = small("aft_local");
    recipe.train.clip = clip;
    const auto read = train(recipe, torch::kFloat64);
    const auto unread = train(recipe, torch::kFloat64, 3, true);
    EXPECT_LT(largest(unread.weight - read.weight), 1e-9) << clip;
    EXPECT_LT(largest(unread.moment - read.moment), 1e-9) << clip;
    EXPECT_GT(largest(read.weight - train(small("aft_local"), torch::kFloat64, 4).weight), 1e-3);
  }
}

TEST(TrainingStep, NothingIsUpdatedFromAStepThatIsNotFiniteOn) {
  const Recipe recipe = small("aft_local");
  const auto number = [](double value) { return torch::full({}, value, torch::kFloat64); };
  for (const auto& [loss, norm] : {std::pair{NAN, 1.0F}, {INFINITY, 1.0F}, {1.0F, NAN}, {1.0F, INFINITY}}) {
    LanguageModel model(recipe.model);
    Optimizer optimizer(model.ptr());
    Batches batches(recipe, 200);
    compute_gradient(*model, optimizer, batches.loader, recipe, 0, Look::kLater);
    optimizer.update_unread(recipe.train, 1, number(1), optimizer.gradient_norm());
    const auto flats = {&Optimizer::weight, &Optimizer::first_moment, &Optimizer::second_moment};
    std::vector<torch::Tensor> before;
    for (const auto flat : flats) before.push_back((optimizer.*flat)().clone());
    optimizer.update_unread(recipe.train, 2, number(loss), number(norm));
    optimizer.update_unread(recipe.train, 3, number(1), number(1));
    size_t i = 0;
    for (const auto flat : flats) EXPECT_TRUE(torch::equal((optimizer.*flat)(), before[i++]));
    EXPECT_GT(largest(before[1]), 0);
  }
}

TEST(TrainingStep, InBf16WeightsAndGradientsStayF32) {
  for (const std::string mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    for (const int64_t chunk : {0, 7}) {
      Recipe recipe = small(mixer);
      recipe.train.steps = 30;
      recipe.train.chunk = chunk;
      const auto wide = train(recipe, torch::kFloat32);
      recipe.train.precision = "bf16";
      LanguageModel model(recipe.model);
      Optimizer optimizer(model.ptr());
      Batches batches(recipe, 1000);
      const auto result = compute_gradient(*model, optimizer, batches.loader, recipe, 0, Look::kAtOnce);
      EXPECT_EQ(result.loss.scalar_type(), torch::kFloat64);
      for (const auto& item : model->named_parameters()) {
        EXPECT_EQ(item.value().scalar_type(), torch::kFloat32) << item.key();
        EXPECT_EQ(item.value().grad().scalar_type(), torch::kFloat32) << item.key();
      }
      const auto narrow = train(recipe, torch::kFloat32);
      EXPECT_LT(narrow.loss, std::log(16.0)) << mixer;  // from ln 256
      EXPECT_NE(narrow.loss, wide.loss) << mixer;
      EXPECT_NEAR(narrow.loss, wide.loss, 0.1) << mixer;
      EXPECT_FALSE(at::autocast::is_autocast_enabled(at::kCPU));
    }
  }
}

TEST(Checkpoint, RestoresWeightsMomentsGeneratorAndState) {
  const Scratch scratch;
  const auto path = scratch.path() / "checkpoint.safetensors";
  const Recipe recipe = small("aft_local");
  LanguageModel model(recipe.model);
  Optimizer optimizer(model.ptr());
  Batches batches(recipe, 200);
  for (int64_t step = 1; step <= 2; ++step) {
    const auto result = compute_gradient(*model, optimizer, batches.loader, recipe, step, Look::kAtOnce);
    optimizer.update(recipe.train, step, result.gradient_norm.item<double>());
  }
  auto generator = at::detail::createCPUGenerator(17);
  torch::randn({5}, generator);
  RunState state;
  state.step = 2;
  state.position = 4;
  state.evaluated = false;
  state.seconds = 0.1 + 0.2;
  state.logged = {1.0 / 3, 5, 4, 3};
  state.best = 2.0 / 3;
  state.data_checksum = UINT64_MAX;
  save_checkpoint(path, recipe.model, to_toml(recipe), state, optimizer, generator);
  const auto expected_draw = torch::randn({9}, generator);

  const auto header = read_checkpoint_header(path);
  EXPECT_EQ(header.recipe_toml, to_toml(recipe));
  EXPECT_EQ(header.state.step, 2);
  EXPECT_EQ(header.state.position, 4);
  EXPECT_FALSE(header.state.evaluated);
  EXPECT_EQ(header.state.seconds, state.seconds);
  EXPECT_EQ(header.state.logged.nats, state.logged.nats);
  EXPECT_EQ(header.state.logged.targets, 5);
  EXPECT_EQ(header.state.logged.correct, 4);
  EXPECT_EQ(header.state.logged.correct_5, 3);
  EXPECT_EQ(header.state.best, state.best);
  EXPECT_EQ(header.state.data_checksum, UINT64_MAX);

  LanguageModel again(recipe.model);
  Optimizer restored(again.ptr());
  auto other = at::detail::createCPUGenerator(1);
  restore_checkpoint(path, restored, &other);
  EXPECT_TRUE(torch::equal(restored.weight(), optimizer.weight()));
  EXPECT_TRUE(torch::equal(restored.first_moment(), optimizer.first_moment()));
  EXPECT_TRUE(torch::equal(restored.second_moment(), optimizer.second_moment()));
  EXPECT_GT(largest(restored.second_moment()), 0);
  EXPECT_TRUE(torch::equal(torch::randn({9}, other), expected_draw));
  // The model's parameters are the flat buffer.
  EXPECT_TRUE(torch::equal(again->named_parameters()["head.weight"], model->named_parameters()["head.weight"]));
  // A checkpoint serves as a model file too.
  EXPECT_TRUE(torch::equal(load_model(path)->module().named_parameters()["head.weight"],
                           model->named_parameters()["head.weight"]));

  Recipe wider = recipe;
  wider.model.channels = 18;
  LanguageModel misfit(wider.model);
  Optimizer refused(misfit.ptr());
  EXPECT_THROW(restore_checkpoint(path, refused, &other), Error);

  // Of a run that was on another kind of device everything but the generator.
  LanguageModel third(recipe.model);
  Optimizer moved(third.ptr());
  restore_checkpoint(path, moved, nullptr);
  EXPECT_TRUE(torch::equal(moved.weight(), optimizer.weight()));
  EXPECT_TRUE(torch::equal(moved.second_moment(), optimizer.second_moment()));
}

/// Bits per byte from one forward for each byte, with nothing shared with evaluate().
double plain_bits(LanguageModel& model, const std::vector<uint8_t>& bytes) {
  const torch::NoGradGuard no_grad;
  const auto context = static_cast<size_t>(model->config.context);
  double bits = 0;
  int64_t predicted = 0;
  for (size_t begin = 0; begin < bytes.size(); begin += context) {
    for (size_t t = begin + 1; t < std::min(bytes.size(), begin + context); ++t) {
      const std::vector<int64_t> before(bytes.begin() + static_cast<int64_t>(begin),
                                        bytes.begin() + static_cast<int64_t>(t));
      const auto logits = model->forward(torch::tensor(before, torch::kInt64).unsqueeze(0))[0][-1];
      bits -= logits.to(torch::kFloat64).log_softmax(0)[bytes[t]].item<double>() / std::numbers::ln2;
      ++predicted;
    }
  }
  return bits / static_cast<double>(predicted);
}

TEST(Evaluate, EveryByteAfterTheFirstOfAWindowIsPredictedOnce) {
  for (const std::string mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"}) {
    LanguageModel model(small(mixer).model);
    for (const size_t size : {2U, 23U, 24U, 25U, 26U, 48U, 101U}) {
      const auto bytes = text(size);
      const auto result = evaluate(*model, Bytes(bytes));
      ASSERT_TRUE(result);
      EXPECT_EQ(result->bytes, static_cast<int64_t>(size));
      EXPECT_EQ(result->predicted, static_cast<int64_t>(size - (size + 23) / 24));
      EXPECT_NEAR(bits(*result), plain_bits(model, bytes), 1e-5) << mixer << " " << size;
    }
    EXPECT_TRUE(model->is_training());
  }
}

TEST(Evaluate, LongWindowsAreWalkedInChunksWithTheirState) {
  Recipe recipe = small("aft_local");
  recipe.model.context = 9000;  // above what one forward takes
  LanguageModel model(recipe.model);
  const auto bytes = text(9500);
  const auto result = evaluate(*model, Bytes(bytes));
  EXPECT_EQ(result->predicted, 9498);
  const torch::NoGradGuard no_grad;
  const auto all = torch::tensor(std::vector<int64_t>(bytes.begin(), bytes.end()), torch::kInt64);
  double nats = 0;
  for (const auto& [begin, length] : {std::pair<int64_t, int64_t>{0, 9000}, {9000, 500}}) {
    const auto window = all.narrow(0, begin, length);
    const auto logits = model->forward(window.narrow(0, 0, length - 1).unsqueeze(0))[0];
    const auto targets = window.narrow(0, 1, length - 1);
    nats += at::cross_entropy_loss(logits, targets, {}, at::Reduction::Sum).item<double>();
  }
  EXPECT_NEAR(bits(*result), nats / std::numbers::ln2 / 9498, 1e-5);
}

TEST(Evaluate, StopsWhenAsked) {
  LanguageModel model(small("aft_simple").model);
  const std::atomic<bool> stop{true};
  EXPECT_FALSE(evaluate(*model, Bytes(text(100)), &stop));
}

// Nothing measured is no perfect score: one byte alone, or windows of one byte, in which nothing is predicted.
TEST(Evaluate, ATextInWhichNothingIsPredictedIsRefused) {
  Recipe recipe = small("aft_simple");
  LanguageModel model(recipe.model);
  for (const size_t size : {0U, 1U}) EXPECT_THROW(evaluate(*model, Bytes(text(size))), Error) << size;
  recipe.model.context = 1;
  recipe.model.mixer.window = 0;
  LanguageModel short_sighted(recipe.model);
  EXPECT_THROW(evaluate(*short_sighted, Bytes(text(100))), Error);
  EXPECT_EQ(runtime::predicted_bytes(0, 24), 0);
  EXPECT_EQ(runtime::predicted_bytes(1, 24), 0);
  EXPECT_EQ(runtime::predicted_bytes(24, 24), 23);
  EXPECT_EQ(runtime::predicted_bytes(25, 24), 23);
  EXPECT_EQ(runtime::predicted_bytes(26, 24), 24);
  EXPECT_EQ(runtime::predicted_bytes(100, 1), 0);
}

// Ties count for the smaller index; by hand.
TEST(TrainingStep, CountsWhatIsAmongTheLargest) {
  const auto logits = torch::tensor({{1.0, 3.0, 2.0, 0.0}, {5.0, 5.0, 5.0, 4.0}, {0.0, 1.0, 2.0, 3.0}});
  const auto count = [&](std::vector<int64_t> targets, int64_t most) {
    return count_correct(logits, torch::tensor(targets, torch::kInt64), most).item<double>();
  };
  EXPECT_EQ(count({1, 0, 3}, 1), 3);
  EXPECT_EQ(count({2, 1, 0}, 1), 0);
  EXPECT_EQ(count({2, 1, 2}, 2), 3);
  EXPECT_EQ(count({0, 2, 1}, 2), 0);
  EXPECT_EQ(count({0, 2, 1}, 3), 3);
  EXPECT_EQ(count({3, 3, 0}, 5), 3);  // of four classes every one is among five
}

TEST(UseThreads, AsManyAsTheProcessHasCpus) {
  const int before = at::get_num_threads();
  std::thread([] {  // of its own, as the mask goes with the thread
    cpu_set_t set;
    ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
    int first = 0;
    while (!CPU_ISSET(first, &set)) ++first;
    CPU_ZERO(&set);
    CPU_SET(first, &set);
    ASSERT_EQ(sched_setaffinity(0, sizeof set, &set), 0);
    use_threads(0);
    EXPECT_EQ(at::get_num_threads(), 1);
  })
      .join();
  at::set_num_threads(before);
}

}  // namespace
}  // namespace aft

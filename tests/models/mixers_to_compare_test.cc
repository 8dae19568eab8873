#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "aft/error.h"
#include "models/attention.h"
#include "models/linear_attention.h"
#include "models/linformer.h"
#include "models/mlp_mixer.h"
#include "models/sliding_window.h"
#include "models/synthesizer.h"
#include "plain_mixers.h"

namespace aft {
namespace {

using plain::Setting;

struct Layer {
  std::shared_ptr<torch::nn::Module> module;
  std::function<torch::Tensor(const torch::Tensor&)> forward;
  std::function<std::tuple<torch::Tensor, MixerState>(const torch::Tensor&, const MixerState&)> forward_with_state;
  std::function<MixerState(int64_t)> initial_state;
};

template <typename Impl>
Layer wrap(const std::shared_ptr<Impl>& layer) {
  Layer wrapped{layer, [layer](const torch::Tensor& x) { return layer->forward(x); }, {}, {}};
  if constexpr (requires { layer->initial_state(1); }) {
    wrapped.forward_with_state = [layer](const torch::Tensor& x, const MixerState& state) {
      return layer->forward_with_state(x, state);
    };
    wrapped.initial_state = [layer](int64_t batch) { return layer->initial_state(batch); };
  }
  return wrapped;
}

Layer wrap_any(const std::shared_ptr<torch::nn::Module>& module) {
  if (const auto layer = std::dynamic_pointer_cast<AttentionImpl>(module)) return wrap(layer);
  if (const auto layer = std::dynamic_pointer_cast<LinearAttentionImpl>(module)) return wrap(layer);
  if (const auto layer = std::dynamic_pointer_cast<SlidingWindowImpl>(module)) return wrap(layer);
  if (const auto layer = std::dynamic_pointer_cast<LinformerImpl>(module)) return wrap(layer);
  if (const auto layer = std::dynamic_pointer_cast<SynthesizerImpl>(module)) return wrap(layer);
  if (const auto layer = std::dynamic_pointer_cast<MlpMixerImpl>(module)) return wrap(layer);
  throw std::invalid_argument("no mixer");
}

std::shared_ptr<torch::nn::Module> make(const Setting& at) {
  if (at.mixer == "attention") return Attention(at.channels, at.heads, at.causal).ptr();
  if (at.mixer == "linear") return LinearAttention(at.channels, at.heads, at.causal).ptr();
  if (at.mixer == "window") return SlidingWindow(at.channels, at.heads, at.window, at.causal).ptr();
  if (at.mixer == "linformer") return Linformer(at.channels, at.heads, at.positions, at.rank).ptr();
  if (at.mixer == "mlp") return MlpMixer(at.positions, at.hidden).ptr();
  return Synthesizer(at.channels, at.heads, at.positions, at.mixer, at.causal).ptr();
}

/// Random values everywhere, biases too, so that no term can hide.
Layer scrambled(const Setting& at, torch::ScalarType dtype = torch::kFloat64) {
  const auto layer = wrap_any(make(at));
  const torch::NoGradGuard no_grad;
  torch::manual_seed(11);
  for (auto& parameter : layer.module->parameters()) parameter.normal_(0, 0.6);
  layer.module->to(dtype);
  return layer;
}

torch::Tensor random_input(const Setting& at, int64_t batch, int64_t time, torch::ScalarType dtype = torch::kFloat64) {
  torch::manual_seed(7);
  return torch::randn({batch, time, at.channels}, torch::kFloat64).to(dtype);
}

plain::Parameters parameters_of(const Layer& layer) {
  plain::Parameters p;
  for (const auto& item : layer.module->named_parameters()) {
    p[item.key()] = item.value().detach().to(torch::kFloat64).clone();
  }
  return p;
}

std::vector<Setting> causal_settings(int64_t positions = 16) {
  std::vector<Setting> all;
  for (const char* mixer : {"attention", "linear", "window", "random", "dense"}) {
    all.push_back({.mixer = mixer, .positions = positions});
  }
  return all;
}

std::vector<Setting> settings(int64_t positions = 16) {
  auto all = causal_settings(positions);
  for (const char* mixer : {"attention", "linear", "window", "random", "dense", "linformer", "mlp"}) {
    all.push_back({.mixer = mixer, .causal = false, .positions = positions});
  }
  return all;
}

std::string described(const Setting& at) {
  return at.mixer + (at.causal ? ", causal" : "") + ", window " + std::to_string(at.window) + ", positions " +
         std::to_string(at.positions) + ", rank " + std::to_string(at.rank);
}

double difference(const torch::Tensor& a, const torch::Tensor& b) {
  return (a - b).abs().max().item<double>() / (b.abs().max().item<double>() + 1e-30);
}

void expect_equation(const Setting& at, int64_t time) {
  SCOPED_TRACE(described(at) + ", T " + std::to_string(time));
  const auto layer = scrambled(at);
  const auto x = random_input(at, 2, time);
  const auto y = layer.forward(x);
  ASSERT_EQ(y.sizes(), x.sizes());
  EXPECT_LT(difference(y, plain::forward(at, parameters_of(layer), x)), 1e-12);
}

TEST(MixersToCompare, ValuesAreThoseOfTheEquations) {
  for (const int64_t time : {1, 2, 3, 4, 5, 7, 8, 13, 16}) {
    for (Setting at : settings()) {
      if (at.mixer == "mlp") at.positions = time;
      expect_equation(at, time);
    }
    for (const int64_t window : {1, 2, 3, 5, 12, 13, 14, 40}) {
      for (const bool causal : {true, false})
        expect_equation({.mixer = "window", .causal = causal, .window = window}, time);
    }
    for (const int64_t rank : {1, 16, 30}) expect_equation({.mixer = "linformer", .causal = false, .rank = rank}, time);
  }
  for (const bool causal : {true, false}) {
    // Sums are kept once in 64 positions.
    for (const int64_t time : {63, 64, 65, 127, 128, 129, 200})
      expect_equation({.mixer = "linear", .causal = causal}, time);
    // One head, and one channel a head.
    for (Setting at : settings()) {
      if (at.causal != causal || at.mixer == "mlp") continue;
      for (const int64_t heads : {1, 6}) {
        at.heads = heads;
        expect_equation(at, 11);
      }
    }
  }
}

// LibTorch's kernel goes through 512 keys at a time, of which a row may see none.
TEST(MixersToCompare, WindowsLongerThanAKernelsBlockOfKeysAreRight) {
  for (const bool causal : {true, false}) {
    for (const auto& [window, time] : {std::pair<int64_t, int64_t>{600, 700}, {530, 1300}, {1100, 1150}}) {
      const Setting at{.mixer = "window", .causal = causal, .window = window, .heads = 2, .channels = 4};
      expect_equation(at, time);
      const auto narrow = scrambled(at, torch::kFloat32).forward(random_input(at, 1, time, torch::kFloat32));
      EXPECT_LT(difference(narrow.to(torch::kFloat64), scrambled(at).forward(random_input(at, 1, time))), 1e-5);
    }
  }
}

// Central differences of the plain loops: with steps of 1e-5 they are off by about 1e-10 of the largest gradient.
void expect_gradients(const Setting& at, int64_t time) {
  SCOPED_TRACE(described(at) + ", T " + std::to_string(time));
  const auto layer = scrambled(at);
  auto x = random_input(at, 2, time).requires_grad_();
  const auto factors = torch::randn(x.sizes(), torch::kFloat64);
  auto inputs = layer.module->parameters();
  inputs.push_back(x);
  const auto got = torch::autograd::grad({(layer.forward(x) * factors).sum()}, inputs, {}, std::nullopt, false, true);

  auto p = parameters_of(layer);
  p["x"] = x.detach().clone();
  auto names = layer.module->named_parameters().keys();
  names.push_back("x");
  const auto loss = [&] { return (plain::forward(at, p, p.at("x")) * factors).sum().item<double>(); };
  constexpr double kStep = 1e-5;
  for (size_t i = 0; i < names.size(); ++i) {
    auto wanted = torch::empty_like(p.at(names[i]));
    double* value = p.at(names[i]).data_ptr<double>();
    for (int64_t n = 0; n < wanted.numel(); ++n) {
      const double kept = value[n];
      value[n] = kept + kStep;
      const double above = loss();
      value[n] = kept - kStep;
      wanted.data_ptr<double>()[n] = (above - loss()) / (2 * kStep);
      value[n] = kept;
    }
    ASSERT_TRUE(got[i].defined()) << names[i];
    EXPECT_LT((got[i] - wanted).abs().max().item<double>(), 1e-7 * (1 + wanted.abs().max().item<double>())) << names[i];
  }
}

TEST(MixersToCompare, GradientsAreThoseOfTheEquations) {
  for (Setting at : settings(8)) {
    if (at.mixer == "mlp") at.positions = 7;
    expect_gradients(at, 7);
  }
  for (const bool causal : {true, false}) {
    expect_gradients({.mixer = "window", .causal = causal, .window = 3}, 13);
    expect_gradients({.mixer = "window", .causal = causal, .window = 30}, 5);
    expect_gradients({.mixer = "linear", .causal = causal, .heads = 1, .channels = 2}, 67);
  }
}

TEST(MixersToCompare, AnyCuttingIntoChunksGivesTheSameAlsoInTheGradient) {
  auto all = causal_settings(131);
  for (const int64_t window : {1, 2, 50, 131, 500}) all.push_back({.mixer = "window", .window = window});
  for (const auto& at : all) {
    SCOPED_TRACE(described(at));
    const auto layer = scrambled(at);
    const auto x = random_input(at, 2, 131);
    const auto whole = layer.forward(x);
    const auto factors = torch::randn(whole.sizes(), torch::kFloat64);
    const auto parameters = layer.module->parameters();
    const auto wanted = torch::autograd::grad({(whole * factors).sum()}, parameters);
    for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{131},
                                             {64, 67},
                                             {65, 66},
                                             {1, 130},
                                             {128, 1, 2},
                                             {3, 1, 5, 4, 1, 70, 47},
                                             std::vector<int64_t>(131, 1)}) {
      auto state = layer.initial_state(2);
      std::vector<torch::Tensor> pieces;
      int64_t begin = 0;
      for (const int64_t size : cuts) {
        torch::Tensor piece;
        std::tie(piece, state) = layer.forward_with_state(x.narrow(1, begin, size), state);
        pieces.push_back(piece);
        begin += size;
      }
      const auto joined = torch::cat(pieces, 1);
      EXPECT_LT(difference(joined, whole), 1e-12) << cuts.size();
      const auto got = torch::autograd::grad({(joined * factors).sum()}, parameters);
      for (size_t i = 0; i < got.size(); ++i) {
        EXPECT_LT((got[i] - wanted[i]).abs().max().item<double>(), 1e-11 * (1 + wanted[i].abs().max().item<double>()))
            << cuts.size() << " " << layer.module->named_parameters().keys()[i];
      }
    }
  }
}

TEST(MixersToCompare, StatesHoldWhatTheyShould) {
  const auto shapes_after = [](const Setting& at, int64_t time) {
    const auto layer = scrambled(at);
    std::vector<std::vector<int64_t>> shapes;
    const auto [y, state] = layer.forward_with_state(random_input(at, 2, time), layer.initial_state(2));
    for (const auto& tensor : state.tensors) shapes.push_back(tensor.sizes().vec());
    return shapes;
  };
  using Shapes = std::vector<std::vector<int64_t>>;
  for (const int64_t time : {1, 2, 3, 4, 9}) {
    EXPECT_EQ(shapes_after({.mixer = "attention"}, time), (Shapes{{2, 3, time, 2}, {2, 3, time, 2}}));
    EXPECT_EQ(shapes_after({.mixer = "linear"}, time), (Shapes{{2, 3, 2, 2}, {2, 3, 2}}));
    const int64_t kept = std::min<int64_t>(time, 3);
    EXPECT_EQ(shapes_after({.mixer = "window"}, time), (Shapes{{2, 3, kept, 2}, {2, 3, kept, 2}}));
    EXPECT_EQ(shapes_after({.mixer = "random"}, time), (Shapes{{2, 3, time, 2}}));
    EXPECT_EQ(shapes_after({.mixer = "dense"}, time), (Shapes{{2, 3, time, 2}}));
  }
  // The sums of 16-bit layers do not lose what is small.
  for (const auto dtype : {torch::kBFloat16, torch::kFloat16}) {
    const auto layer = scrambled({.mixer = "linear"}, dtype);
    const auto x = random_input({}, 2, 70, dtype);
    const auto [y, state] = layer.forward_with_state(x, layer.initial_state(2));
    EXPECT_EQ(y.scalar_type(), dtype);
    for (const auto& tensor : state.tensors) EXPECT_EQ(tensor.scalar_type(), torch::kFloat32);
  }
}

TEST(MixersToCompare, DetachedStateStopsTheGradient) {
  for (const auto& at : causal_settings()) {
    SCOPED_TRACE(at.mixer);
    const auto layer = scrambled(at);
    const auto x = random_input(at, 1, 12).requires_grad_();
    const auto [first, state] = layer.forward_with_state(x.narrow(1, 0, 6), layer.initial_state(1));
    const auto reach = [&](const MixerState& from) {
      const auto [second, next] = layer.forward_with_state(x.narrow(1, 6, 6), from);
      return torch::autograd::grad({second.square().sum()}, {x}, {}, true)[0]
          .narrow(1, 0, 6)
          .abs()
          .max()
          .item<double>();
    };
    EXPECT_GT(reach(state), 0);
    EXPECT_EQ(reach(state.detach()), 0);
  }
}

TEST(MixersToCompare, LaterInputsLeaveEarlierOutputsBitwiseAloneIfCausal) {
  for (const auto dtype : {torch::kFloat32, torch::kFloat64}) {
    for (const auto& at : settings(90)) {
      SCOPED_TRACE(described(at));
      const auto layer = scrambled(at, dtype);
      const auto x = random_input(at, 2, 90, dtype);
      auto changed = x.clone();
      changed.narrow(1, 77, 13).fill_(3);
      const auto before = layer.forward(x);
      const auto after = layer.forward(changed);
      EXPECT_EQ(torch::equal(after.narrow(1, 0, 77), before.narrow(1, 0, 77)), at.causal);
      EXPECT_FALSE(torch::equal(after.select(1, 77), before.select(1, 77)));
    }
  }
}

TEST(MixersToCompare, TheWindowSeesWhatIsInItAndNothingElse) {
  for (const bool causal : {true, false}) {
    for (const int64_t window : {1, 2, 5, 8}) {
      const Setting at{.mixer = "window", .causal = causal, .window = window};
      const auto layer = scrambled(at);
      const auto x = random_input(at, 1, 29);
      const auto y = layer.forward(x);
      for (int64_t source = 0; source < 29; ++source) {
        auto changed = x.clone();
        changed.select(1, source).add_(1);
        const auto other = layer.forward(changed);
        for (int64_t t = 0; t < 29; ++t) {
          const bool seen = std::abs(t - source) < window && (!causal || source <= t);
          EXPECT_EQ(torch::equal(other.select(1, t), y.select(1, t)), !seen) << window << " " << source << " " << t;
        }
      }
    }
  }
}

// As a child of another module, whose clone() fills it in its place.
struct OuterImpl : torch::nn::Cloneable<OuterImpl> {
  explicit OuterImpl(Setting at_) : at(std::move(at_)) { reset(); }
  void reset() override { inner = register_module("inner", make(at)); }
  Setting at;
  std::shared_ptr<torch::nn::Module> inner;
};

TEST(MixersToCompare, Clone) {
  for (const auto& at : settings(9)) {
    SCOPED_TRACE(described(at));
    const auto layer = scrambled(at);
    OuterImpl outer(at);
    outer.to(torch::kFloat64);
    const torch::NoGradGuard no_grad;
    for (const auto& item : outer.inner->named_parameters()) {
      item.value().copy_(layer.module->named_parameters()[item.key()]);
    }
    const auto x = random_input(at, 2, 9);
    const auto want = layer.forward(x);
    const auto copy = layer.module->clone();
    const auto outer_copy = std::dynamic_pointer_cast<OuterImpl>(outer.clone());
    ASSERT_NE(outer_copy, nullptr);
    EXPECT_EQ(copy->named_parameters().keys(), layer.module->named_parameters().keys());
    for (auto& p : layer.module->parameters()) p.zero_();
    for (auto& p : outer.parameters()) p.zero_();
    for (const auto& each : {copy, outer_copy->inner}) {
      const auto cloned = wrap_any(each);
      EXPECT_TRUE(torch::equal(cloned.forward(x), want));
      // What it computes with is what it registers.
      for (auto& p : each->parameters()) p.zero_();
      EXPECT_EQ(cloned.forward(x).abs().max().item<double>(), 0);
    }
  }
}

TEST(MixersToCompare, ParametersHaveTheirNamesAndShapes) {
  using Shapes = std::map<std::string, std::vector<int64_t>>;
  const auto shapes_of = [](const std::string& mixer) {
    Shapes shapes;
    for (const auto& item : make({.mixer = mixer})->named_parameters()) shapes[item.key()] = item.value().sizes().vec();
    return shapes;
  };
  const Shapes output = {{"output.weight", {6, 6}}, {"output.bias", {6}}};
  const auto with = [&](Shapes own) {
    own.insert(output.begin(), output.end());
    return own;
  };
  const Shapes qkv = with({{"qkv.weight", {18, 6}}, {"qkv.bias", {18}}});
  EXPECT_EQ(shapes_of("attention"), qkv);
  EXPECT_EQ(shapes_of("linear"), qkv);
  EXPECT_EQ(shapes_of("window"), qkv);
  Shapes linformer = qkv;
  linformer.insert({{"e", {5, 16}}, {"f", {5, 16}}});
  EXPECT_EQ(shapes_of("linformer"), linformer);
  EXPECT_EQ(shapes_of("random"), with({{"value.weight", {6, 6}}, {"value.bias", {6}}, {"r", {3, 16, 16}}}));
  EXPECT_EQ(shapes_of("dense"), with({{"value.weight", {6, 6}},
                                      {"value.bias", {6}},
                                      {"hidden.weight", {3, 2, 2}},
                                      {"hidden.bias", {3, 2}},
                                      {"scores.weight", {3, 16, 2}},
                                      {"scores.bias", {3, 16}}}));
  EXPECT_EQ(shapes_of("mlp"),
            (Shapes{{"up.weight", {9, 16}}, {"up.bias", {9}}, {"down.weight", {16, 9}}, {"down.bias", {16}}}));
}

TEST(MixersToCompare, NewParametersAreSpreadAsTheDocstringsSay) {
  torch::manual_seed(3);
  const Linformer linformer(4, 1, 400, 25);
  EXPECT_NEAR(linformer->e.std().item<double>(), 0.2, 0.01);
  EXPECT_NEAR(linformer->f.std().item<double>(), 0.2, 0.01);
  EXPECT_FALSE(torch::equal(linformer->e, linformer->f));
  const Synthesizer dense(64, 1, 500, "dense");
  EXPECT_NEAR(dense->scores->weight.abs().max().item<double>(), 0.125, 1e-3);
}

struct Bf16Autocast {
  Bf16Autocast() {
    at::autocast::increment_nesting();
    at::autocast::set_autocast_dtype(torch::kCPU, torch::kBFloat16);
    at::autocast::set_autocast_enabled(torch::kCPU, true);
  }
  ~Bf16Autocast() {
    at::autocast::set_autocast_enabled(torch::kCPU, false);
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
  }
  Bf16Autocast(const Bf16Autocast&) = delete;
  Bf16Autocast& operator=(const Bf16Autocast&) = delete;
};

// bf16 has 8 bits: each rounding is off by up to 2^-9 of its value, and a softmax multiplies that by the size of its
// scores, which is up to 10 here.
TEST(MixersToCompare, WorkUnderAutocast) {
  for (const auto& at : settings(70)) {
    SCOPED_TRACE(described(at));
    const auto layer = scrambled(at, torch::kFloat32);
    const auto x = random_input(at, 2, 70, torch::kFloat32);
    const auto want = plain::forward(at, parameters_of(layer), x.to(torch::kFloat64));
    torch::Tensor y;
    {
      const Bf16Autocast autocast;
      y = layer.forward(x);
      if (layer.initial_state && at.causal) {
        auto [first, state] = layer.forward_with_state(x.narrow(1, 0, 66), layer.initial_state(2));
        auto [second, next] = layer.forward_with_state(x.narrow(1, 66, 4), state);
        const auto joined = torch::cat({first, second}, 1).to(torch::kFloat64);
        EXPECT_LT(difference(joined, want), 0.03);
      }
    }
    EXPECT_EQ(y.scalar_type(), torch::kBFloat16);
    EXPECT_LT(difference(y.to(torch::kFloat64), want), 0.03);
    y.to(torch::kFloat32).square().mean().backward();
    for (const auto& item : layer.module->named_parameters()) {
      ASSERT_TRUE(item.value().grad().defined()) << item.key();
      EXPECT_EQ(item.value().grad().scalar_type(), torch::kFloat32);
      EXPECT_TRUE(item.value().grad().isfinite().all().item<bool>()) << item.key();
    }
  }
}

// Far below 0 the features are e^x, of which elu(x) + 1 has nothing left from x = -17 on in f32.
TEST(LinearAttention, SmallFeaturesKeepTheirPrecision) {
  for (const bool causal : {true, false}) {
    const Setting at{.mixer = "linear", .causal = causal};
    const auto layer = scrambled(at, torch::kFloat32);
    const auto x = random_input(at, 2, 70, torch::kFloat32);
    const torch::NoGradGuard no_grad;
    auto bias = layer.module->named_parameters()["qkv.bias"];
    for (const auto& [query, key] : {std::pair<float, float>{-20, -20}, {-60, -5}, {-5, -60}, {-70, -70}, {30, -70}}) {
      bias.narrow(0, 0, 6).fill_(query);
      bias.narrow(0, 6, 6).fill_(key);
      const auto want = plain::forward(at, parameters_of(layer), x.to(torch::kFloat64));
      EXPECT_LT(difference(layer.forward(x).to(torch::kFloat64), want), 1e-4) << query << " " << key;
    }
    // Queries of any size. Keys of which nothing is left give 0, and gradients that are numbers.
    bias.narrow(0, 6, 6).fill_(-3);
    bias.narrow(0, 0, 6).fill_(-600);
    auto close = parameters_of(layer);
    close["qkv.bias"].narrow(0, 0, 6).fill_(-100);  // the same by factors that cancel
    const auto want = plain::forward(at, close, x.to(torch::kFloat64));
    EXPECT_LT(difference(layer.forward(x).to(torch::kFloat64), want), 1e-3);
    bias.narrow(0, 6, 6).fill_(-600);
    const auto output_bias = layer.module->named_parameters()["output.bias"];
    EXPECT_TRUE(torch::equal(layer.forward(x), output_bias.expand_as(x)));
    const torch::AutoGradMode with_grad(true);
    layer.forward(x).square().sum().backward();
    for (const auto& parameter : layer.module->parameters()) {
      EXPECT_TRUE(parameter.grad().isfinite().all().item<bool>());
    }
  }
}

template <typename Call>
void expect_error(const Call& call, const std::vector<std::string>& words) {
  try {
    call();
    ADD_FAILURE() << "no error naming " << words[0];
  } catch (const Error& error) {
    for (const auto& word : words) EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
  }
}

TEST(MixersToCompare, BadArgumentsAreNamed) {
  expect_error([] { Attention(6, 4); }, {"Attention: heads:", "divisor of channels = 6", "got 4"});
  expect_error([] { Attention(6, 0); }, {"Attention: heads:", "at least 1", "got 0"});
  expect_error([] { LinearAttention(0, 1); }, {"LinearAttention: channels:", "at least 1", "got 0"});
  expect_error([] { LinearAttention(6, 12); }, {"LinearAttention: heads:", "got 12"});
  expect_error([] { SlidingWindow(6, 5, 3); }, {"SlidingWindow: heads:", "got 5"});
  expect_error([] { SlidingWindow(6, 3, 0); }, {"SlidingWindow: window:", "at least 1", "got 0"});
  expect_error([] { Linformer(6, 5, 3, 3); }, {"Linformer: heads:", "got 5"});
  expect_error([] { Linformer(6, 3, -1, 3); }, {"Linformer: positions:", "got -1"});
  expect_error([] { Linformer(6, 3, 3, 0); }, {"Linformer: rank:", "got 0"});
  expect_error([] { Synthesizer(6, 5, 3, "dense"); }, {"Synthesizer: heads:", "got 5"});
  expect_error([] { Synthesizer(6, 3, 0, "dense"); }, {"Synthesizer: positions:", "got 0"});
  expect_error([] { Synthesizer(6, 3, 3, "mixed"); },
               {"Synthesizer: kind:", "\"random\" or \"dense\"", "got \"mixed\""});
  expect_error([] { MlpMixer(0, 3); }, {"MlpMixer: positions:", "got 0"});
  expect_error([] { MlpMixer(3, 0); }, {"MlpMixer: hidden:", "got 0"});
}

TEST(MixersToCompare, BadInputsAreNamed) {
  for (const auto& at : settings()) {
    SCOPED_TRACE(described(at));
    const auto layer = scrambled(at);
    const auto zeros = [&](at::IntArrayRef shape) { return torch::zeros(shape, torch::kFloat64); };
    if (at.mixer == "attention") {
      EXPECT_ANY_THROW(layer.forward(zeros({2, 3, 7})));
    } else if (at.mixer == "mlp") {
      expect_error([&] { layer.forward(zeros({2, 15, 6})); }, {"MlpMixer: x:", "positions = 16", "[2, 15, 6]"});
      expect_error([&] { layer.forward(zeros({16, 6})); }, {"MlpMixer: x:", "[16, 6]"});
    } else {
      for (const std::vector<int64_t>& shape :
           {std::vector<int64_t>{2, 3, 7}, {3, 6}, {2, 0, 6}, {0, 3, 6}, {1, 2, 3, 6}}) {
        expect_error([&] { layer.forward(zeros(shape)); }, {": x:", "[batch, time, 6]"});
      }
    }
    if (at.mixer == "linformer" || at.mixer == "random" || at.mixer == "dense") {
      expect_error([&] { layer.forward(zeros({1, 17, 6})); }, {": x:", "positions = 16", "got 17"});
    }
    if (!layer.initial_state) continue;
    if (!at.causal) {
      expect_error([&] { layer.initial_state(1); }, {": causal:", "expected true", "got false"});
      expect_error(
          [&] {
            layer.forward_with_state(zeros({1, 2, 6}), {});
          },
          {": causal:", "expected true", "got false"});
      continue;
    }
    expect_error([&] { layer.forward_with_state(zeros({1, 2, 6}), {}); }, {": state:", "got 0", "initial_state()"});
    if (at.mixer == "random" || at.mixer == "dense") {
      const auto [y, state] = layer.forward_with_state(zeros({1, 16, 6}), layer.initial_state(1));
      expect_error([&, &full = state] { layer.forward_with_state(zeros({1, 1, 6}), full); }, {": x:", "got 17"});
    }
  }
}

}  // namespace
}  // namespace aft

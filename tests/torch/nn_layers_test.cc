// What PyTorch asks of a layer: every dtype, autocast, clone(), torch::nn::Sequential.

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/container/sequential.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "aft/torch.h"

namespace {

using aft::Gate;
using aft::State;
using torch::Tensor;

constexpr int64_t kChannels = 6, kTime = 9, kContext = 12;
constexpr std::array<int64_t, 2> kGrid = {3, 3};

Tensor sequence(torch::Dtype dtype, int64_t time = kTime) {
  torch::manual_seed(5);
  return torch::randn({2, time, kChannels}, torch::kDouble).to(dtype);
}

// The parts of a projection: q where there is a gate, k, v.
struct Parts {
  std::optional<Tensor> q;
  Tensor k, v;
  Parts(const Tensor& qkv, Gate gate) {
    const int64_t query = gate == Gate::kNone ? 0 : kChannels;
    const auto p = qkv.split_with_sizes({query, qkv.size(-1) - query - kChannels, kChannels}, -1);
    if (query > 0) q = p[0];
    k = p[1];
    v = p[2];
  }
};

// In the dtype that sums have for it.
Tensor wide(const Tensor& t) { return t.scalar_type() == torch::kDouble ? t : t.to(torch::kFloat); }

// A layer and what it must compute, from its operator and its parameters alone.
struct Layer {
  std::string name;
  std::shared_ptr<torch::nn::Module> module;
  torch::nn::Linear qkv, output;
  std::function<Tensor(const Tensor& x)> forward;
  std::function<Tensor(const Parts& in)> wanted;
  // Absent: takes no state.
  std::function<std::tuple<Tensor, State>(const Tensor& x, const State& state)> forward_with_state = nullptr;
  std::function<std::tuple<Tensor, State>(const Parts& in, const State& state)> wanted_with_state = nullptr;
  std::function<State()> initial_state = nullptr;
};

template <typename Holder>
Layer layer_of(const std::string& name, Holder holder) {
  Layer layer{name,
              holder.ptr(),
              holder->qkv,
              holder->output,
              [holder](const Tensor& x) mutable {
                return holder->forward(x); },
              nullptr};
  if constexpr (requires { holder->initial_state(2); }) {
    if (holder->options.causal) {
      layer.initial_state = [holder] { return holder->initial_state(2); };
      layer.forward_with_state = [holder](const Tensor& x, const State& state) mutable {
        return holder->forward_with_state(x, state);
      };
    }
  }
  return layer;
}

std::vector<Layer> layers(Gate gate, bool causal) {
  torch::manual_seed(3);
  std::vector<Layer> all;
  {
    aft::nn::AFTSimple simple(aft::nn::AFTSimpleOptions{.channels = kChannels, .causal = causal, .gate = gate});
    all.push_back(layer_of("simple", simple));
    all.back().wanted = [=](const Parts& in) { return aft::simple(in.q, in.k, in.v, causal, gate); };
    all.back().wanted_with_state = [=](const Parts& in, const State& s) {
      return aft::simple(in.q, in.k, in.v, s, gate);
    };
  }
  for (const int64_t window : {0, 3}) {
    aft::nn::AFTLocal local(aft::nn::AFTLocalOptions{.channels = kChannels,
                                                     .context = kContext,
                                                     .window = window,
                                                     .factor_channels = 4,
                                                     .causal = causal,
                                                     .gate = gate});
    const auto bias = [=] {
      if (window == 0) return torch::zeros({kContext, 0}, wide(local->u).options());
      return aft::local_bias(wide(local->u), wide(local->v), window - 1, causal ? 0 : window - 1);
    };
    all.push_back(layer_of("local " + std::to_string(window), local));
    all.back().wanted = [=](const Parts& in) { return aft::local(in.q, in.k, in.v, bias(), causal, gate); };
    all.back().wanted_with_state = [=](const Parts& in, const State& s) {
      return aft::local(in.q, in.k, in.v, bias(), s, gate);
    };
  }
  for (const bool key_per_head : {true, false}) {
    aft::nn::AFTConv1d conv(aft::nn::AFTConv1dOptions{
        .channels = kChannels, .heads = 3, .kernel = 3, .key_per_head = key_per_head, .causal = causal, .gate = gate});
    all.push_back(layer_of("conv1d", conv));
    all.back().wanted = [=](const Parts& in) { return aft::conv1d(in.q, in.k, in.v, conv->kernel(), causal, gate); };
    all.back().wanted_with_state = [=](const Parts& in, const State& s) {
      return aft::conv1d(in.q, in.k, in.v, conv->kernel(), s, gate);
    };
  }
  {
    aft::nn::AFTFull full(aft::nn::AFTFullOptions{
        .channels = kChannels, .context = kContext, .factor_channels = 4, .causal = causal, .gate = gate});
    const auto weights = [=](int64_t rows) {
      return aft::FullWeights{.bias = std::nullopt, .u = wide(full->u).slice(0, 0, rows), .w = wide(full->v)};
    };
    all.push_back(layer_of("full", full));
    all.back().wanted = [=](const Parts& in) { return aft::full(in.q, in.k, in.v, weights(kTime), causal, gate); };
    all.back().wanted_with_state = [=](const Parts& in, const State& s) {
      return aft::full(in.q, in.k, in.v, weights(kContext), s, gate);
    };
  }
  if (!causal) {
    aft::nn::AFTConv2d conv(
        aft::nn::AFTConv2dOptions{.channels = kChannels, .heads = 3, .kernel = 3, .gate = gate, .grid = kGrid});
    all.push_back(layer_of("conv2d", conv));
    all.back().wanted = [=](const Parts& in) {
      return aft::conv2d(in.q, in.k, in.v, conv->kernel(), kGrid, std::nullopt, gate);
    };
  }
  // Factors and kernels start near zero: make them matter.
  const torch::NoGradGuard no_grad;
  for (const Layer& layer : all) {
    for (auto& p : layer.module->named_parameters(/*recurse=*/false)) p.value().normal_();
  }
  return all;
}

template <typename Check>
void for_each_layer(const Check& check) {
  for (const bool causal : {true, false}) {
    for (const Gate gate : {Gate::kSigmoid, Gate::kRelu, Gate::kNone}) {
      for (Layer& layer : layers(gate, causal)) {
        SCOPED_TRACE(layer.name + (causal ? ", causal" : "") + ", gate " + std::to_string(static_cast<int>(gate)));
        check(layer, gate);
      }
    }
  }
}

// Bit for bit: the same operator of the same numbers.
void expect_same(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.scalar_type(), want.scalar_type()) << what;
  EXPECT_TRUE(torch::equal(got, want)) << what << ": off by " << (got - want).abs().max();
}

void expect_what_it_must_compute(Layer& layer, Gate gate, torch::Dtype dtype, torch::Dtype result) {
  const Tensor x = sequence(dtype).requires_grad_();
  const Tensor y = layer.forward(x);
  const Tensor want = layer.output(layer.wanted(Parts(layer.qkv(x), gate)));
  EXPECT_EQ(y.scalar_type(), result);
  expect_same(y, want, "y");
  std::vector<Tensor> leaves = {x};
  for (const Tensor& p : layer.module->parameters()) leaves.push_back(p);
  const Tensor target = torch::randn(y.sizes(), torch::kFloat).to(y.scalar_type());
  const auto got = torch::autograd::grad({y}, leaves, {target}, true, false, /*allow_unused=*/true);
  const auto expected = torch::autograd::grad({want}, leaves, {target}, true, false, /*allow_unused=*/true);
  for (size_t i = 0; i < leaves.size(); ++i) {
    const std::string what = "gradient " + std::to_string(i);
    if (!got[i].defined()) {  // window 0 has no use for u and v
      EXPECT_TRUE(!expected[i].defined() || expected[i].abs().sum().item<double>() == 0) << what;
      continue;
    }
    EXPECT_EQ(got[i].scalar_type(), leaves[i].scalar_type()) << what;
    EXPECT_GT(got[i].abs().sum().to(torch::kDouble).item<double>(), 0) << what;
    expect_same(got[i], expected[i], what);
  }

  if (layer.initial_state == nullptr) return;
  State state = layer.initial_state();
  State wanted_state = state;
  for (const int64_t begin : {0, 4}) {
    const Tensor piece = x.slice(1, begin, begin == 0 ? 4 : kTime);
    auto [chunk, after] = layer.forward_with_state(piece, state);
    auto [wanted, wanted_after] = layer.wanted_with_state(Parts(layer.qkv(piece), gate), wanted_state);
    EXPECT_EQ(chunk.scalar_type(), result);
    expect_same(chunk, layer.output(wanted), "chunk");
    for (const Tensor& t : {after.max, after.den, after.num, after.ring_key, after.ring_value}) {
      EXPECT_EQ(t.scalar_type(), dtype == torch::kDouble ? torch::kDouble : torch::kFloat);
    }
    state = after;
    wanted_state = wanted_after;
  }
}

TEST(Layers, WorkInEveryDtype) {
  for (const torch::Dtype dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
    SCOPED_TRACE(c10::toString(dtype));
    for_each_layer([&](Layer& layer, Gate gate) {
      layer.module->to(dtype);
      expect_what_it_must_compute(layer, gate, dtype, dtype);
    });
  }
}

struct Autocast {
  explicit Autocast(torch::Dtype dtype) {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, dtype);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(at::kCPU, false);
  }
};

TEST(Layers, WorkUnderAutocast) {
  for (const torch::Dtype cast : {torch::kBFloat16, torch::kHalf}) {
    for (const torch::Dtype dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf, torch::kDouble}) {
      SCOPED_TRACE(std::string(c10::toString(dtype)) + " under " + c10::toString(cast));
      for_each_layer([&](Layer& layer, Gate gate) {
        layer.module->to(dtype);
        const Autocast autocast(cast);
        expect_what_it_must_compute(layer, gate, dtype, dtype == torch::kDouble ? dtype : cast);
      });
    }
  }
}

TEST(Layers, InitialStateHasTheDtypeOfSums) {
  for_each_layer([](Layer& layer, Gate) {
    if (layer.initial_state == nullptr) return;
    for (const torch::Dtype dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16, torch::kHalf}) {
      layer.module->to(dtype);
      EXPECT_EQ(layer.initial_state().num.scalar_type(), dtype == torch::kDouble ? torch::kDouble : torch::kFloat);
    }
  });
}

TEST(Layers, KernelsOf16BitsAreComputedInF32) {
  const aft::nn::AFTConv1d conv1d(aft::nn::AFTConv1dOptions{.channels = kChannels, .heads = 3, .kernel = 5});
  const aft::nn::AFTConv2d conv2d(aft::nn::AFTConv2dOptions{.channels = kChannels, .heads = 3, .kernel = 3});
  const torch::NoGradGuard no_grad;
  const auto check = [](auto layer) {
    for (Tensor& p : layer->parameters(/*recurse=*/false)) p.normal_();
    layer->to(torch::kBFloat16);
    const Tensor small = layer->kernel();
    layer->to(torch::kFloat);  // the same numbers
    EXPECT_TRUE(torch::equal(small, layer->kernel()));
  };
  check(conv1d);
  check(conv2d);
}

template <typename Holder>
void expect_clone(Holder layer, torch::Dtype dtype) {
  layer->to(dtype);
  layer->eval();
  {
    const torch::NoGradGuard no_grad;
    for (Tensor& p : layer->parameters()) p.normal_();
  }
  const Tensor x = sequence(dtype);
  const Tensor y = layer->forward(x);
  const auto copy = std::dynamic_pointer_cast<typename Holder::ContainedType>(layer->clone());
  ASSERT_NE(copy, nullptr);
  EXPECT_EQ(copy->options.channels, layer->options.channels);
  EXPECT_FALSE(copy->is_training());
  EXPECT_TRUE(torch::equal(copy->forward(x), y));
  const auto names = layer->named_parameters().keys();
  EXPECT_EQ(copy->named_parameters().keys(), names);
  // Memory of its own, and what the copy computes with is what it registers.
  const torch::NoGradGuard no_grad;
  for (Tensor& p : layer->parameters()) p.zero_();
  EXPECT_TRUE(torch::equal(copy->forward(x), y));
  for (Tensor& p : copy->parameters()) p.zero_();
  EXPECT_EQ(copy->forward(x).abs().sum().template item<double>(), 0.0);
}

struct Layers {
  aft::nn::AFTSimple simple{aft::nn::AFTSimpleOptions{.channels = kChannels, .causal = false, .gate = Gate::kNone}};
  aft::nn::AFTLocal local{
      aft::nn::AFTLocalOptions{.channels = kChannels, .context = kContext, .window = 3, .factor_channels = 4}};
  aft::nn::AFTConv1d conv1d{aft::nn::AFTConv1dOptions{.channels = kChannels, .heads = 3, .kernel = 5}};
  aft::nn::AFTConv2d conv2d{aft::nn::AFTConv2dOptions{.channels = kChannels, .heads = 3, .kernel = 3, .grid = kGrid}};
  aft::nn::AFTFull full{aft::nn::AFTFullOptions{.channels = kChannels, .context = kContext, .factor_channels = 4}};
};

TEST(Layers, Clone) {
  for (const torch::Dtype dtype : {torch::kFloat, torch::kBFloat16}) {
    const Layers l;
    expect_clone(l.simple, dtype);
    expect_clone(l.local, dtype);
    expect_clone(l.conv1d, dtype);
    expect_clone(l.conv2d, dtype);
    expect_clone(l.full, dtype);
  }
}

TEST(Layers, GoIntoSequential) {
  torch::manual_seed(3);
  Layers l;
  torch::nn::Sequential all(l.simple, l.local, l.conv1d, l.conv2d, l.full);
  const Tensor x = sequence(torch::kFloat);
  Tensor want = x;
  want = l.simple->forward(want);
  want = l.local->forward(want);
  want = l.conv1d->forward(want);
  want = l.conv2d->forward(want, kGrid);
  want = l.full->forward(want);
  EXPECT_TRUE(torch::equal(all->forward(x), want));
  EXPECT_TRUE(torch::equal(l.local(x), l.local->forward(x)));  // one forward: layer(x) works

  const auto copy = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(all->clone());
  ASSERT_NE(copy, nullptr);
  const torch::NoGradGuard no_grad;
  for (Tensor& p : all->parameters()) p.zero_();
  EXPECT_TRUE(torch::equal(copy->forward(x), want));
}

TEST(Layers, TheFirstOfSequentialTakesAGridAndAMask) {
  torch::manual_seed(3);
  aft::nn::AFTConv2d conv(aft::nn::AFTConv2dOptions{.channels = kChannels, .heads = 3, .kernel = 3});
  torch::nn::Sequential one(conv);
  const Tensor x = sequence(torch::kFloat);
  const std::optional<Tensor> mask = torch::arange(18).view({2, 9}).remainder(5) != 1;
  EXPECT_TRUE(torch::equal(one->forward(x, kGrid), conv->forward(x, {3, 3})));
  EXPECT_TRUE(torch::equal(one->forward(x, kGrid, mask), conv->forward(x, {3, 3}, mask)));
  try {
    conv->forward(x);
    ADD_FAILURE() << "no grid, no error";
  } catch (const aft::Error& e) {
    EXPECT_NE(std::string(e.what()).find("grid must be [height, width] with height * width = 9"), std::string::npos)
        << e.what();
  }
}

TEST(Layers, ForwardModeSaysWhatToCall) {
  for_each_layer([](Layer& layer, Gate) {
    layer.module->to(torch::kDouble);
    const auto level = torch::autograd::forward_ad::enter_dual_level();
    const Tensor x = sequence(torch::kDouble);
    try {
      layer.forward(torch::_make_dual(x, torch::ones_like(x), static_cast<int64_t>(level)));
      ADD_FAILURE() << "nothing thrown";
    } catch (const aft::Error& e) {
      EXPECT_NE(std::string(e.what()).find("call aft::reference"), std::string::npos) << e.what();
    }
    torch::autograd::forward_ad::exit_dual_level(level);
  });
}

}  // namespace

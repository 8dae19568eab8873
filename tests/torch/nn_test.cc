// The C++ modules and functions of include/aft/torch.h.

#include <gtest/gtest.h>
#include <torch/autograd.h>

#include <array>
#include <functional>
#include <string>
#include <tuple>
#include <vector>

#include "aft/torch.h"

namespace {

using aft::Gate;
using aft::State;
using torch::Tensor;

constexpr double kTight = 1e-12;

void expect_close(const Tensor& a, const Tensor& b, double tolerance = kTight) {
  ASSERT_EQ(a.sizes(), b.sizes());
  EXPECT_TRUE(torch::allclose(a, b, tolerance, tolerance)) << (a - b).abs().max();
}

std::vector<std::pair<std::string, std::vector<int64_t>>> parameters_of(const torch::nn::Module& module) {
  std::vector<std::pair<std::string, std::vector<int64_t>>> result;
  for (const auto& p : module.named_parameters()) result.emplace_back(p.key(), p.value().sizes().vec());
  return result;
}

std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const aft::Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

void expect_message(const std::string& part, const std::function<void()>& call) {
  EXPECT_NE(message(call).find(part), std::string::npos) << message(call);
}

aft::nn::AFTLocal local_module(aft::nn::AFTLocalOptions options) {
  torch::manual_seed(3);
  aft::nn::AFTLocal module(options);
  module->to(torch::kDouble);
  // The factors start near zero: make the window matter.
  const torch::NoGradGuard no_grad;
  module->u.mul_(100);
  module->v.mul_(100);
  return module;
}

aft::nn::AFTSimple simple_module(aft::nn::AFTSimpleOptions options) {
  torch::manual_seed(3);
  aft::nn::AFTSimple module(options);
  module->to(torch::kDouble);
  return module;
}

aft::nn::AFTFull full_module(aft::nn::AFTFullOptions options) {
  torch::manual_seed(3);
  aft::nn::AFTFull module(options);
  module->to(torch::kDouble);
  // The factors start near zero: make the weights matter.
  const torch::NoGradGuard no_grad;
  module->u.mul_(100);
  module->v.mul_(100);
  return module;
}

aft::nn::AFTConv1d conv_module(aft::nn::AFTConv1dOptions options) {
  torch::manual_seed(3);
  aft::nn::AFTConv1d module(options);
  module->to(torch::kDouble);
  // Gamma and beta start at zero: make the kernel matter.
  const torch::NoGradGuard no_grad;
  module->gamma.normal_();
  module->beta.normal_();
  return module;
}

Tensor sequence(int64_t batch, int64_t time, int64_t channels) {
  torch::manual_seed(5);
  return torch::randn({batch, time, channels}, torch::kDouble);
}

TEST(Modules, ParameterNamesAreThoseOfTheModelFile) {
  using Parameters = std::vector<std::pair<std::string, std::vector<int64_t>>>;
  const Parameters projections = {
      {"qkv.weight", {12, 4}}, {"qkv.bias", {12}}, {"output.weight", {4, 4}}, {"output.bias", {4}}};
  EXPECT_EQ(parameters_of(*aft::nn::AFTSimple(aft::nn::AFTSimpleOptions{.channels = 4})), projections);
  Parameters with_factors = {{"u", {9, 2}}, {"v", {9, 2}}};
  with_factors.insert(with_factors.end(), projections.begin(), projections.end());
  for (const int64_t window : {0, 3}) {
    EXPECT_EQ(parameters_of(*aft::nn::AFTLocal(
                  aft::nn::AFTLocalOptions{.channels = 4, .context = 9, .window = window, .factor_channels = 2})),
              with_factors);
  }
  EXPECT_EQ(
      parameters_of(*aft::nn::AFTFull(aft::nn::AFTFullOptions{.channels = 4, .context = 9, .factor_channels = 2})),
      with_factors);
  EXPECT_EQ(aft::nn::AFTSimple(aft::nn::AFTSimpleOptions{.channels = 4, .gate = Gate::kNone})->qkv->weight.sizes(),
            torch::IntArrayRef({8, 4}));
}

TEST(Modules, FactorsStartSmall) {
  torch::manual_seed(1);
  const aft::nn::AFTLocal module(aft::nn::AFTLocalOptions{.channels = 4, .context = 256, .factor_channels = 64});
  const aft::nn::AFTFull full(aft::nn::AFTFullOptions{.channels = 4, .context = 256, .factor_channels = 64});
  for (const Tensor& t : {module->u, module->v, full->u, full->v}) {
    // 16,384 draws: the sample deviation lies within 3 % of 0.01, the mean within 4 standard errors of 0.
    EXPECT_NEAR(t.std().item<double>(), 0.01, 3e-4);
    EXPECT_NEAR(t.mean().item<double>(), 0.0, 4 * 0.01 / 128);
  }
}

TEST(Modules, ForwardIsTheOperatorBetweenTheProjections) {
  const Tensor x = sequence(2, 7, 4);
  for (const bool causal : {true, false}) {
    for (const Gate gate : {Gate::kSigmoid, Gate::kRelu, Gate::kNone}) {
      auto simple = simple_module({.channels = 4, .causal = causal, .gate = gate});
      auto local = local_module(
          {.channels = 4, .context = 9, .window = 3, .factor_channels = 2, .causal = causal, .gate = gate});
      const auto parts = [&](const Tensor& qkv) {
        std::vector<Tensor> p = qkv.chunk(gate == Gate::kNone ? 2 : 3, -1);
        std::optional<Tensor> q;
        if (gate != Gate::kNone) q = p[0];
        return std::tuple(q, p[p.size() - 2], p[p.size() - 1]);
      };
      {
        auto [q, k, v] = parts(simple->qkv(x));
        expect_close(simple->forward(x), simple->output(aft::simple(q, k, v, causal, gate)));
      }
      {
        auto [q, k, v] = parts(local->qkv(x));
        const Tensor bias = aft::local_bias(local->u, local->v, 2, causal ? 0 : 2);
        // Whole tables and the rows of this sequence alone differ in nothing that is seen.
        expect_close(local->forward(x), local->output(aft::local(q, k, v, bias, causal, gate)));
      }
    }
  }
}

TEST(Modules, FullIsTheReferenceBetweenTheProjections) {
  const Tensor x = sequence(2, 7, 4);
  for (const bool causal : {true, false}) {
    for (const Gate gate : {Gate::kSigmoid, Gate::kRelu, Gate::kNone}) {
      for (const int64_t context : {7, 9}) {
        auto full =
            full_module({.channels = 4, .context = context, .factor_channels = 2, .causal = causal, .gate = gate});
        const std::vector<Tensor> p = full->qkv(x).chunk(gate == Gate::kNone ? 2 : 3, -1);
        std::optional<Tensor> q;
        if (gate != Gate::kNone) q = p[0];
        const Tensor w = torch::matmul(full->u.slice(0, 0, 7), full->v.slice(0, 0, 7).t());
        const Tensor want = full->output(aft::reference(q, p[p.size() - 2], p[p.size() - 1], w, causal, gate));
        expect_close(full->forward(x), want);
        const auto parameters = full->parameters();
        const Tensor target = sequence(2, 7, 4);
        const auto got = torch::autograd::grad({(full->forward(x) * target).sum()}, parameters);
        const auto expected = torch::autograd::grad({(want * target).sum()}, parameters);
        for (size_t i = 0; i < parameters.size(); ++i) {
          expect_close(got[i], expected[i], 1e-10);
          EXPECT_GT(got[i].abs().sum().item<double>(), 0.0) << full->named_parameters()[i].key();
        }
      }
    }
  }
}

TEST(Modules, Conv1dIsItsNormalisedKernelBetweenTheProjections) {
  const Tensor x = sequence(2, 9, 6);
  for (const bool causal : {true, false}) {
    for (const bool key_per_head : {true, false}) {
      auto conv = conv_module({.channels = 6, .heads = 3, .kernel = 5, .key_per_head = key_per_head, .causal = causal});
      const int64_t keys = key_per_head ? 3 : 6;
      EXPECT_EQ(conv->qkv->weight.size(0), 12 + keys);
      std::vector<Tensor> rows;
      for (int64_t h = 0; h < 3; ++h) {
        const Tensor w = conv->weight[h];
        const Tensor centred = w - w.mean();
        rows.push_back(conv->gamma[h] * centred / (centred.square().mean() + 1e-5).sqrt() + conv->beta[h]);
      }
      const std::vector<Tensor> p = conv->qkv(x).split_with_sizes({6, keys, 6}, -1);
      const Tensor want = conv->output(aft::conv1d(p[0], p[1], p[2], torch::stack(rows), causal));
      expect_close(conv->forward(x), want);
      const Tensor target = sequence(2, 9, 6);
      const auto parameters = conv->parameters();
      const auto got = torch::autograd::grad({(conv->forward(x) * target).sum()}, parameters);
      const auto expected = torch::autograd::grad({(want * target).sum()}, parameters);
      for (size_t i = 0; i < parameters.size(); ++i) {
        expect_close(got[i], expected[i], 1e-10);
        EXPECT_GT(got[i].abs().sum().item<double>(), 0.0);
      }
    }
  }
}

TEST(Modules, Conv1dStartsAsSimple) {
  torch::manual_seed(4);
  const aft::nn::AFTConv1d conv(aft::nn::AFTConv1dOptions{.channels = 8, .heads = 64 / 8, .kernel = 512});
  EXPECT_EQ(conv->kernel().abs().max().item<double>(), 0.0);
  EXPECT_NEAR(conv->weight.std().item<double>(), 1.0, 0.05);  // 4,096 draws: 4 standard errors
  EXPECT_EQ(parameters_of(*conv)[0].first, "weight");
}

TEST(Modules, Conv2dIsItsNormalisedKernelBetweenTheProjections) {
  const Tensor x = sequence(2, 12, 6);
  const Tensor mask = torch::arange(24).view({2, 12}).remainder(5) != 1;
  for (const bool key_per_head : {true, false}) {
    for (const Gate gate : {Gate::kSigmoid, Gate::kNone}) {
      torch::manual_seed(3);
      aft::nn::AFTConv2d conv(aft::nn::AFTConv2dOptions{
          .channels = 6, .heads = 3, .kernel = 5, .key_per_head = key_per_head, .gate = gate});
      conv->to(torch::kDouble);
      {  // Gamma and beta start at zero: make the kernel matter.
        const torch::NoGradGuard no_grad;
        conv->gamma.normal_();
        conv->beta.normal_();
      }
      const int64_t keys = key_per_head ? 3 : 6;
      std::vector<Tensor> kernels;
      for (int64_t h = 0; h < 3; ++h) {
        const Tensor w = conv->weight[h];
        const Tensor centred = w - w.mean();
        kernels.push_back(conv->gamma[h] * centred / (centred.square().mean() + 1e-5).sqrt() + conv->beta[h]);
      }
      const int64_t query = gate == Gate::kNone ? 0 : 6;
      const std::vector<Tensor> p = conv->qkv(x).split_with_sizes({query, keys, 6}, -1);
      const std::optional<Tensor> q = gate == Gate::kNone ? std::nullopt : std::optional(p[0]);
      for (const std::array<int64_t, 2> grid : {std::array<int64_t, 2>{3, 4}, {1, 12}}) {
        const Tensor want = conv->output(aft::conv2d(q, p[1], p[2], torch::stack(kernels), grid, mask, gate));
        expect_close(conv->forward(x, grid, mask), want);
        const auto parameters = conv->parameters();
        const Tensor target = sequence(2, 12, 6);
        const auto got = torch::autograd::grad({(conv->forward(x, grid, mask) * target).sum()}, parameters);
        const auto expected = torch::autograd::grad({(want * target).sum()}, parameters, {}, /*retain_graph=*/true);
        for (size_t i = 0; i < parameters.size(); ++i) {
          expect_close(got[i], expected[i], 1e-10);
          EXPECT_GT(got[i].abs().sum().item<double>(), 0.0);
        }
        const torch::NoGradGuard no_grad;
        EXPECT_TRUE(torch::equal(conv->forward(x, grid, mask), conv->forward(x, grid, mask)));
        expect_close(conv->forward(x, grid, mask), want);
      }
    }
  }
  const aft::nn::AFTConv2d fresh(aft::nn::AFTConv2dOptions{.channels = 64, .heads = 64, .kernel = 7});
  EXPECT_EQ(fresh->qkv->weight.size(0), 3 * 64);  // the paper's way: one key a head
  EXPECT_EQ(fresh->kernel().sizes(), torch::IntArrayRef({64, 7, 7}));
  EXPECT_EQ(fresh->kernel().abs().max().item<double>(), 0.0);
  EXPECT_NEAR(fresh->weight.std().item<double>(), 1.0, 0.06);  // 3,136 draws: more than 4 standard errors
}

TEST(Modules, GradientsEqualThoseOfThePlainComposition) {
  for (const bool causal : {true, false}) {
    for (const Gate gate : {Gate::kSigmoid, Gate::kNone}) {
      for (const int64_t window : {0, 3}) {
        auto local = local_module(
            {.channels = 4, .context = 7, .window = window, .factor_channels = 2, .causal = causal, .gate = gate});
        const Tensor x = sequence(2, 7, 4).requires_grad_();
        const auto gradients = [&](const Tensor& y) {
          local->zero_grad();
          x.mutable_grad() = Tensor();
          y.square().sum().backward();
          std::vector<Tensor> g = {x.grad().clone()};
          for (const auto& p : local->parameters()) g.push_back(p.grad().defined() ? p.grad().clone() : Tensor());
          return g;
        };
        const std::vector<Tensor> got = gradients(local->forward(x));
        const std::vector<Tensor> p = local->qkv(x).chunk(gate == Gate::kNone ? 2 : 3, -1);
        std::optional<Tensor> q;
        if (gate != Gate::kNone) q = p[0];
        const Tensor &k = p[p.size() - 2], &v = p[p.size() - 1];
        const Tensor y =
            window == 0 ? aft::simple(q, k, v, causal, gate)
                        : aft::local(q, k, v, aft::local_bias(local->u, local->v, 2, causal ? 0 : 2), causal, gate);
        const std::vector<Tensor> want = gradients(local->output(y));
        for (size_t i = 0; i < want.size(); ++i) {
          ASSERT_EQ(got[i].defined(), want[i].defined());
          if (got[i].defined()) expect_close(got[i], want[i]);
        }
      }
    }
  }
}

TEST(Modules, GradientReachesEveryParameter) {
  auto local = local_module({.channels = 4, .context = 9, .window = 3, .factor_channels = 2});
  local->forward(sequence(2, 7, 4)).square().sum().backward();
  for (const auto& p : local->named_parameters()) {
    ASSERT_TRUE(p.value().grad().defined()) << p.key();
    EXPECT_GT(p.value().grad().abs().sum().item<double>(), 0.0) << p.key();
  }
  EXPECT_EQ(local->u.grad().slice(0, 7).abs().sum().item<double>(), 0.0) << "positions beyond the sequence";
}

// With its weights frozen, a module leaves out their gradient and gives the same one of everything else.
void expect_frozen_weights(torch::nn::Module& module, const std::vector<std::string>& weights,
                           const std::function<Tensor()>& forward) {
  const auto gradients = [&] {
    module.zero_grad();
    forward().square().sum().backward();
    std::vector<Tensor> g;
    for (const auto& p : module.parameters()) g.push_back(p.grad());
    return g;
  };
  const std::vector<Tensor> whole = gradients();
  auto parameters = module.named_parameters();
  for (const std::string& name : weights) parameters[name].set_requires_grad(false);
  const std::vector<Tensor> frozen = gradients();
  for (size_t i = 0; i < whole.size(); ++i) {
    const std::string& name = parameters[i].key();
    if (parameters[i].value().requires_grad()) {
      EXPECT_TRUE(torch::equal(frozen[i], whole[i])) << name;
    } else {
      EXPECT_FALSE(frozen[i].defined()) << name;
    }
  }
}

TEST(Modules, FrozenWeightsHaveNoGradient) {
  const Tensor x = sequence(2, 9, 4);
  auto local = local_module({.channels = 4, .context = 9, .window = 3, .factor_channels = 2});
  expect_frozen_weights(*local, {"u", "v"}, [&] { return local->forward(x); });
  auto conv1d = conv_module({.channels = 4, .heads = 2, .kernel = 3});
  expect_frozen_weights(*conv1d, {"weight", "gamma", "beta"}, [&] { return conv1d->forward(x); });
  auto full = full_module({.channels = 4, .context = 9, .factor_channels = 2});
  expect_frozen_weights(*full, {"u", "v"}, [&] { return full->forward(x); });
  torch::manual_seed(3);
  aft::nn::AFTConv2d conv2d(aft::nn::AFTConv2dOptions{.channels = 4, .heads = 2, .kernel = 3});
  conv2d->to(torch::kDouble);
  expect_frozen_weights(*conv2d, {"weight", "gamma", "beta"}, [&] { return conv2d->forward(x, {3, 3}); });
}

template <typename Module>
void expect_chunks_equal_whole(Module module, int64_t time) {
  const Tensor x = sequence(2, time, 4);
  const Tensor whole = module->forward(x);
  const auto gradients = [&](const Tensor& y) {
    module->zero_grad();
    y.square().sum().backward();
    std::vector<Tensor> g;
    for (const auto& p : module->parameters()) g.push_back(p.grad().clone());
    return g;
  };
  const std::vector<Tensor> want = gradients(whole);
  for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{0, time}, {0, 1, 4, time}, {0, 5, 5, time}}) {
    State state = module->initial_state(2);
    std::vector<Tensor> ys;
    for (size_t i = 1; i < cuts.size(); ++i) {
      auto [y, after] = module->forward_with_state(x.slice(1, cuts[i - 1], cuts[i]), state);
      ys.push_back(y);
      state = after;
    }
    EXPECT_TRUE(torch::equal(state.position, torch::full({2}, time, torch::kLong)));
    const Tensor y = torch::cat(ys, 1);
    expect_close(y, whole);
    const std::vector<Tensor> got = gradients(y);
    for (size_t i = 0; i < want.size(); ++i) expect_close(got[i], want[i], 1e-10);
  }
}

TEST(Modules, ChunksEqualTheWhole) {
  expect_chunks_equal_whole(simple_module({.channels = 4}), 9);
  expect_chunks_equal_whole(local_module({.channels = 4, .context = 9, .window = 3, .factor_channels = 2}), 9);
  expect_chunks_equal_whole(local_module({.channels = 4, .context = 9, .window = 20, .factor_channels = 2}), 9);
  expect_chunks_equal_whole(full_module({.channels = 4, .context = 9, .factor_channels = 2}), 9);
  expect_chunks_equal_whole(full_module({.channels = 4, .context = 12, .factor_channels = 2}), 9);
  expect_chunks_equal_whole(conv_module({.channels = 4, .heads = 2, .kernel = 3}), 9);
  expect_chunks_equal_whole(conv_module({.channels = 4, .heads = 2, .kernel = 20, .key_per_head = false}), 9);
}

TEST(Modules, DetachedStateCutsTheGraph) {
  auto simple = simple_module({.channels = 4});
  const Tensor x = sequence(1, 4, 4).requires_grad_();
  const auto [first, state] = simple->forward_with_state(x, simple->initial_state(1));
  EXPECT_TRUE(state.num.requires_grad());
  const State cut = state.detach();
  EXPECT_FALSE(cut.num.requires_grad());
  EXPECT_TRUE(torch::equal(cut.num, state.num));
}

TEST(Modules, WindowZeroIsSimple) {
  auto local = local_module({.channels = 4, .context = 9, .window = 0, .factor_channels = 2});
  auto simple = simple_module({.channels = 4});
  const torch::NoGradGuard no_grad;
  simple->qkv->weight.copy_(local->qkv->weight);
  simple->qkv->bias.copy_(local->qkv->bias);
  simple->output->weight.copy_(local->output->weight);
  simple->output->bias.copy_(local->output->bias);
  const Tensor x = sequence(2, 7, 4);
  EXPECT_TRUE(torch::equal(local->forward(x), simple->forward(x)));
  EXPECT_EQ(local->initial_state(2).ring_key.size(1), 0);
}

TEST(Modules, BadInputIsNamed) {
  auto local = local_module({.channels = 4, .context = 9, .window = 3, .factor_channels = 2});
  expect_message("x must have shape [batch, time, 4], got [2, 7, 5]", [&] { local->forward(torch::rand({2, 7, 5})); });
  expect_message("x must hold at most context = 9 positions, got 10", [&] { local->forward(sequence(1, 10, 4)); });
  expect_message("channels must be at least 1, got 0", [] { aft::nn::AFTSimple(aft::nn::AFTSimpleOptions{}); });
  expect_message("context must be at least 1, got 0",
                 [] { aft::nn::AFTLocal(aft::nn::AFTLocalOptions{.channels = 4}); });
  auto both_ways = local_module({.channels = 4, .context = 9, .window = 3, .factor_channels = 2, .causal = false});
  expect_message("a state needs causal = true, got false", [&] { (void)both_ways->initial_state(1); });
  auto full = full_module({.channels = 4, .context = 9, .factor_channels = 2});
  expect_message("x must have shape [batch, time, 4], got [2, 7, 5]", [&] { full->forward(torch::rand({2, 7, 5})); });
  expect_message("aft::nn::AFTFull: x must hold at most context = 9 positions, got 10",
                 [&] { full->forward(sequence(1, 10, 4)); });
  expect_message("expected room for 6 more in a ring of 9, got 4", [&] {
    const auto after = std::get<State>(full->forward_with_state(sequence(1, 4, 4), full->initial_state(1)));
    full->forward_with_state(sequence(1, 6, 4), after);
  });
  expect_message("context must be at least 1, got 0", [] { aft::nn::AFTFull(aft::nn::AFTFullOptions{.channels = 4}); });
  auto full_both_ways = full_module({.channels = 4, .context = 9, .factor_channels = 2, .causal = false});
  expect_message("AFTFull: a state needs causal = true, got false", [&] { (void)full_both_ways->initial_state(1); });
  expect_message("heads must divide channels = 4, got 3",
                 [] { aft::nn::AFTConv1d(aft::nn::AFTConv1dOptions{.channels = 4, .heads = 3}); });
  expect_message("kernel must be odd if causal is false, got 4",
                 [] { aft::nn::AFTConv1d(aft::nn::AFTConv1dOptions{.channels = 4, .kernel = 4, .causal = false}); });
  expect_message("kernel must be odd, got 4",
                 [] { aft::nn::AFTConv2d(aft::nn::AFTConv2dOptions{.channels = 4, .kernel = 4}); });
  expect_message("grid must be [height, width] with height * width = 6", [] {
    aft::nn::AFTConv2d(aft::nn::AFTConv2dOptions{.channels = 4, .kernel = 3})->forward(torch::rand({1, 6, 4}), {2, 2});
  });
  const Tensor x = sequence(2, 7, 4).requires_grad_();
  expect_message("double backward", [&] {
    const Tensor y = local->forward(x).square().sum();
    torch::autograd::grad({y}, {x}, {}, std::nullopt, /*create_graph=*/true);
  });
}

TEST(Functions, StepEqualsChunk) {
  const Tensor q = sequence(2, 6, 4), k = q.flip(1), v = q + 1;
  const Tensor bias = aft::local_bias(sequence(1, 8, 3)[0], sequence(1, 8, 3)[0], 2);
  for (const bool windowed : {false, true}) {
    const State start = aft::initial_state(2, 4, 4, windowed ? 2 : 0, torch::kDouble);
    const auto [want, end] = windowed ? aft::local(q, k, v, bias, start) : aft::simple(q, k, v, start);
    State state = start;
    std::vector<Tensor> ys;
    for (int64_t t = 0; t < 6; ++t) {
      const Tensor qt = q.narrow(1, t, 1), kt = k.narrow(1, t, 1), vt = v.narrow(1, t, 1);
      ys.push_back(windowed ? aft::local_step(qt, kt, vt, bias, state) : aft::simple_step(qt, kt, vt, state));
    }
    expect_close(torch::cat(ys, 1), want);
    EXPECT_TRUE(torch::equal(state.position, end.position));
    EXPECT_TRUE(torch::equal(state.max, end.max));
    expect_close(state.den, end.den);
    expect_close(state.num, end.num);
  }
}

TEST(Functions, FullStepEqualsChunk) {
  const Tensor q = sequence(2, 6, 4), k = q.flip(1), v = q + 1;
  const Tensor factors = sequence(2, 8, 3);
  const Tensor matrix = torch::matmul(factors[0], factors[1].t());
  for (const aft::FullWeights& weights : {aft::FullWeights{.bias = matrix, .u = std::nullopt, .w = std::nullopt},
                                          aft::FullWeights{.bias = std::nullopt, .u = factors[0], .w = factors[1]}}) {
    const Tensor whole = aft::full(q, k, v, weights);
    expect_close(whole, aft::reference(q, k, v, matrix.slice(0, 0, 6).slice(1, 0, 6)));
    const State start = aft::initial_state(2, 4, 4, 8, torch::kDouble);
    const auto [want, end] = aft::full(q, k, v, weights, start);
    EXPECT_TRUE(torch::equal(want, whole));
    State state = start;
    std::vector<Tensor> ys;
    for (int64_t t = 0; t < 6; ++t) {
      ys.push_back(aft::full_step(q.narrow(1, t, 1), k.narrow(1, t, 1), v.narrow(1, t, 1), weights, state));
    }
    expect_close(torch::cat(ys, 1), want);
    EXPECT_TRUE(torch::equal(state.position, end.position));
    EXPECT_TRUE(torch::equal(state.ring_key, end.ring_key));
    EXPECT_TRUE(torch::equal(state.ring_value, end.ring_value));
  }
}

TEST(Functions, ReferenceIsTheOperators) {
  const Tensor q = sequence(2, 6, 4), k = q.flip(1), v = q + 1;
  const Tensor bias = aft::local_bias(sequence(1, 8, 3)[0], sequence(1, 8, 3)[0], 2);
  expect_close(aft::reference(q, k, v), aft::simple(q, k, v));
  expect_close(aft::reference(q, k, v, aft::local_weights(bias, 6, 2)), aft::local(q, k, v, bias));
  // A grid of one row is a line.
  const Tensor kernel = bias.narrow(0, 3, 1);
  expect_close(aft::reference(std::nullopt, k, v, aft::conv2d_weights(kernel.unsqueeze(1), {1, 6}), false, Gate::kNone),
               aft::conv1d(std::nullopt, k, v, kernel, false, Gate::kNone));
}

TEST(Functions, InferenceModeWorks) {
  const c10::InferenceMode inference;
  auto local = local_module({.channels = 4, .context = 9, .window = 3, .factor_channels = 2});
  const Tensor x = sequence(2, 7, 4);
  const auto [y, state] = local->forward_with_state(x, local->initial_state(2));
  expect_close(y, local->forward(x));
  State edited = state;
  const Tensor one = x.narrow(1, 0, 1);
  EXPECT_NO_THROW(aft::local_step(one, one, one, aft::local_bias(local->u, local->v, 2), edited));
}

}  // namespace

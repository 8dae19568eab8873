#include "models/language_model.h"

#include <gtest/gtest.h>
#include <torch/autograd.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/container/sequential.h>

#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "../data/scratch.h"
#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "config/architecture.h"

namespace aft {
namespace {

const std::vector<std::string> kMixers = {"aft_simple", "aft_local", "aft_conv1d", "aft_full", "attention"};

ModelConfig small(const std::string& mixer) {
  ModelConfig config;
  config.mixer.name = mixer;
  config.layers = 2;
  config.channels = 12;
  config.mlp_channels = 20;
  config.context = 37;
  config.mixer.heads = 3;
  config.mixer.window = 5;
  config.mixer.factor_channels = 7;
  return config;
}

torch::Tensor random_bytes(int64_t batch, int64_t time) {
  torch::manual_seed(7);
  return torch::randint(256, {batch, time}, torch::kInt64);
}

/// Random values everywhere, norms and biases too, so that no term can hide.
LanguageModel scrambled(const ModelConfig& config, torch::ScalarType dtype = torch::kFloat64) {
  LanguageModel model(config);
  const torch::NoGradGuard no_grad;
  torch::manual_seed(11);
  for (auto& parameter : model->parameters()) parameter.normal_(0, 0.3);
  model->to(dtype);
  return model;
}

struct F64 {
  std::map<std::string, torch::Tensor> p;
  torch::Tensor operator()(const std::string& name) const { return p.at(name); }
};

torch::Tensor norm(const torch::Tensor& x, const torch::Tensor& weight, const torch::Tensor& bias) {
  const auto centred = x - x.mean(-1, true);
  return centred / (centred.pow(2).mean(-1, true) + 1e-5).sqrt() * weight + bias;
}

/// The model from its equations, dense and slow: AFT as T x T weights with the exact row maximum.
torch::Tensor plain_forward(const ModelConfig& config, const F64& w, const torch::Tensor& bytes) {
  const int64_t time = bytes.size(1);
  const auto future = torch::ones({time, time}, torch::kBool).triu(1);
  auto x = w("embedding.token.weight").index({bytes}) + w("embedding.position.weight").slice(0, 0, time);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = "blocks." + std::to_string(layer) + ".";
    const auto h = norm(x, w(block + "mixer_norm.weight"), w(block + "mixer_norm.bias"));
    const auto qkv = torch::matmul(h, w(block + "mixer.qkv.weight").t()) + w(block + "mixer.qkv.bias");
    const int64_t keys = config.mixer.name == "aft_conv1d" ? config.mixer.heads : config.channels;
    auto parts = qkv.split_with_sizes({config.channels, keys, config.channels}, -1);
    torch::Tensor y;
    if (config.mixer.name == "attention") {
      const int64_t width = config.channels / config.mixer.heads;
      std::vector<torch::Tensor> heads;
      for (int64_t head = 0; head < config.mixer.heads; ++head) {
        const auto q = parts[0].narrow(-1, head * width, width);
        const auto k = parts[1].narrow(-1, head * width, width);
        const auto scores = torch::matmul(q, k.transpose(1, 2)) / std::sqrt(static_cast<double>(width));
        heads.push_back(
            torch::matmul(scores.masked_fill(future, -INFINITY).softmax(-1), parts[2].narrow(-1, head * width, width)));
      }
      y = torch::cat(heads, -1);
    } else {
      auto bias = torch::zeros({time, time}, x.options());
      if (config.mixer.name == "aft_local" || config.mixer.name == "aft_full") {
        bias = torch::matmul(w(block + "mixer.u").slice(0, 0, time), w(block + "mixer.v").slice(0, 0, time).t());
      }
      if (config.mixer.name == "aft_local") {
        bias = bias.masked_fill(torch::ones({time, time}, torch::kBool).tril(-config.mixer.window), 0);
      }
      bias = bias.unsqueeze(-1);
      if (config.mixer.name == "aft_conv1d") {
        const auto raw = w(block + "mixer.weight");
        const auto centred = raw - raw.mean(1, true);
        const auto kernel =
            w(block + "mixer.gamma").unsqueeze(1) * centred / (centred.pow(2).mean(1, true) + 1e-5).sqrt() +
            w(block + "mixer.beta").unsqueeze(1);
        bias = torch::zeros({time, time, config.mixer.heads}, x.options());
        for (int64_t back = 0; back < std::min(config.mixer.window, time); ++back) {
          const auto along = torch::arange(time - back);
          bias.index_put_({along + back, along}, kernel.select(1, config.mixer.window - 1 - back));
        }
        bias = bias.repeat_interleave(config.channels / config.mixer.heads, 2);
        parts[1] = parts[1].repeat_interleave(config.channels / config.mixer.heads, 2);
      }
      // [B, target, source, d]
      const auto logits = (parts[1].unsqueeze(1) + bias).masked_fill(future.unsqueeze(-1), -INFINITY);
      y = torch::sigmoid(parts[0]) * (logits.softmax(2) * parts[2].unsqueeze(1)).sum(2);
    }
    x = x + torch::matmul(y, w(block + "mixer.output.weight").t()) + w(block + "mixer.output.bias");
    const auto g = norm(x, w(block + "mlp_norm.weight"), w(block + "mlp_norm.bias"));
    const auto up = torch::matmul(g, w(block + "mlp.up.weight").t()) + w(block + "mlp.up.bias");
    const auto lifted = up * 0.5 * (1 + torch::erf(up / std::sqrt(2.0)));
    x = x + torch::matmul(lifted, w(block + "mlp.down.weight").t()) + w(block + "mlp.down.bias");
  }
  return torch::matmul(norm(x, w("norm.weight"), w("norm.bias")), w("head.weight").t());
}

F64 parameters_of(const LanguageModel& model) {
  F64 w;
  for (const auto& item : model->named_parameters()) w.p[item.key()] = item.value();
  return w;
}

// As a child of another module, whose clone() fills it in its place.
struct OuterImpl : torch::nn::Cloneable<OuterImpl> {
  explicit OuterImpl(const ModelConfig& config_) : config(config_) { reset(); }
  void reset() override { inner = register_module("inner", LanguageModel(config)); }
  ModelConfig config;
  LanguageModel inner{nullptr};
};

TEST(LanguageModel, Clones) {
  for (const auto& mixer : kMixers) {
    SCOPED_TRACE(mixer);
    auto model = scrambled(small(mixer), torch::kFloat32);
    model->eval();
    int64_t seen = 0;
    model->observe([&](const std::string&, const torch::Tensor&) { ++seen; });
    const auto bytes = random_bytes(2, 20);
    const auto copy = std::dynamic_pointer_cast<LanguageModelImpl>(model->clone());
    ASSERT_NE(copy, nullptr);
    OuterImpl outer(small(mixer));
    {
      const torch::NoGradGuard no_grad;
      for (const auto& p : outer.inner->named_parameters()) p.value().copy_(model->named_parameters()[p.key()]);
    }
    outer.eval();
    const auto outer_copy = std::dynamic_pointer_cast<OuterImpl>(outer.clone());
    ASSERT_NE(outer_copy, nullptr);
    const auto want = model->forward(bytes);
    EXPECT_EQ(copy->config.mixer.name, mixer);
    EXPECT_FALSE(copy->is_training());
    EXPECT_EQ(copy->named_parameters().keys(), model->named_parameters().keys());
    const int64_t by_model = seen;
    const torch::NoGradGuard no_grad;
    for (auto& p : model->parameters()) p.zero_();
    for (auto& p : outer.parameters()) p.zero_();
    for (LanguageModelImpl* each : {copy.get(), outer_copy->inner.get()}) {
      EXPECT_TRUE(torch::equal(each->forward(bytes), want));
      auto [first, state] = each->forward_with_state(bytes.narrow(1, 0, 9), each->initial_state(2));
      EXPECT_TRUE(torch::allclose(first, want.narrow(1, 0, 9), 1e-4, 1e-4));
      // What it computes with is what it registers.
      for (auto& p : each->parameters()) p.zero_();
      EXPECT_EQ(each->forward(bytes).abs().sum().item<double>(), 0.0);
    }
    EXPECT_EQ(seen, by_model) << "a clone has an observer";
  }
}

TEST(LanguageModel, GoesIntoSequential) {
  auto model = scrambled(small("aft_local"));
  torch::nn::Sequential chain(model, torch::nn::Softmax(-1));
  const auto bytes = random_bytes(2, 20);
  EXPECT_TRUE(torch::equal(chain->forward(bytes), model->forward(bytes).softmax(-1)));
}

TEST(LanguageModel, WorksIn16Bits) {
  for (const auto& mixer : kMixers) {
    for (const auto dtype : {torch::kBFloat16, torch::kFloat16}) {
      SCOPED_TRACE(mixer);
      auto model = scrambled(small(mixer), dtype);
      const auto bytes = random_bytes(2, 20);
      model->forward(bytes).to(torch::kFloat32).square().mean().backward();
      for (const auto& p : model->named_parameters()) {
        ASSERT_TRUE(p.value().grad().defined()) << p.key();
        EXPECT_EQ(p.value().grad().scalar_type(), dtype) << p.key();
      }
      auto [first, state] = model->forward_with_state(bytes.narrow(1, 0, 9), model->initial_state(2));
      auto [second, after] = model->forward_with_state(bytes.narrow(1, 9, 11), state);
      EXPECT_EQ(second.scalar_type(), dtype);
      EXPECT_TRUE(second.isfinite().all().item<bool>());
    }
  }
}

TEST(LanguageModel, LogitsAndGradientsAreThoseOfTheEquations) {
  for (const auto& mixer : kMixers) {
    const ModelConfig config = small(mixer);
    auto model = scrambled(config);
    const auto bytes = random_bytes(3, 29);
    const auto logits = model->forward(bytes);
    const auto expected = plain_forward(config, parameters_of(model), bytes);
    EXPECT_LT((logits - expected).abs().max().item<double>(), 1e-10) << mixer;
    const auto weights = torch::randn(logits.sizes(), torch::kFloat64);
    const auto parameters = model->parameters();
    const auto got = torch::autograd::grad({(logits * weights).sum()}, parameters);
    const auto wanted = torch::autograd::grad({(expected * weights).sum()}, parameters);
    for (size_t i = 0; i < got.size(); ++i) {
      const double scale = wanted[i].abs().max().item<double>() + 1e-12;
      EXPECT_LT((got[i] - wanted[i]).abs().max().item<double>() / scale, 1e-9)
          << mixer << " " << model->named_parameters().keys()[i];
    }
  }
}

TEST(LanguageModel, AnyCuttingIntoChunksGivesTheSameAlsoInTheGradient) {
  for (const auto& mixer : kMixers) {
    auto model = scrambled(small(mixer));
    const auto bytes = random_bytes(2, 31);
    const auto whole = model->forward(bytes);
    const auto weights = torch::randn(whole.sizes(), torch::kFloat64);
    const auto parameters = model->parameters();
    const auto wanted = torch::autograd::grad({(whole * weights).sum()}, parameters);
    for (const std::vector<int64_t>& cuts :
         {std::vector<int64_t>{31}, {16, 15}, {1, 30}, {4, 1, 5, 6, 1, 14}, std::vector<int64_t>(31, 1)}) {
      auto state = model->initial_state(2);
      std::vector<torch::Tensor> pieces;
      int64_t begin = 0;
      for (const int64_t size : cuts) {
        torch::Tensor piece;
        std::tie(piece, state) = model->forward_with_state(bytes.narrow(1, begin, size), state);
        pieces.push_back(piece);
        begin += size;
      }
      EXPECT_EQ(state.position, 31);
      const auto joined = torch::cat(pieces, 1);
      EXPECT_LT((joined - whole).abs().max().item<double>(), 1e-10) << mixer << " " << cuts.size();
      const auto got = torch::autograd::grad({(joined * weights).sum()}, parameters);
      for (size_t i = 0; i < got.size(); ++i) {
        const double scale = wanted[i].abs().max().item<double>() + 1e-12;
        EXPECT_LT((got[i] - wanted[i]).abs().max().item<double>() / scale, 1e-9)
            << mixer << " " << cuts.size() << " " << model->named_parameters().keys()[i];
      }
    }
  }
}

TEST(LanguageModel, DetachedStateStopsTheGradient) {
  for (const auto& mixer : kMixers) {
    auto model = scrambled(small(mixer));
    const auto bytes = random_bytes(1, 20);
    auto [first, state] = model->forward_with_state(bytes.narrow(1, 0, 10), model->initial_state(1));
    const auto token = model->named_parameters()["embedding.position.weight"];
    const auto reach = [&](const ModelState& from) {
      auto [second, next] = model->forward_with_state(bytes.narrow(1, 10, 10), from);
      return torch::autograd::grad({second.sum()}, {token})[0].narrow(0, 0, 10).abs().max().item<double>();
    };
    EXPECT_GT(reach(state), 0) << mixer;
    EXPECT_EQ(reach(state.detach()), 0) << mixer;
  }
}

TEST(LanguageModel, LaterBytesLeaveEarlierLogitsBitwiseAlone) {
  for (const auto& mixer : {"aft_simple", "aft_local", "aft_conv1d", "aft_full"}) {
    auto model = scrambled(small(mixer), torch::kFloat32);
    const auto bytes = random_bytes(2, 30);
    const auto before = model->forward(bytes);
    auto changed = bytes.clone();
    changed.narrow(1, 20, 10).fill_(3);
    EXPECT_TRUE(torch::equal(model->forward(changed).narrow(1, 0, 20), before.narrow(1, 0, 20))) << mixer;
  }
}

// The table of architectures describes the modules of every mixer it has, in names and shapes.
TEST(Models, ParametersAreThoseOfTheTable) {
  for (const ModelEntry& kind : model_entries()) {
    for (const MixerEntry& mixer : mixer_entries()) {
      for (const char* weights : {"dense", "random"}) {
        if (!(kind.causal ? mixer.causal : mixer.not_causal)) continue;
        ModelConfig config = small(mixer.name);
        config.model = kind.name;
        config.height = 4;
        config.width = 8;
        config.mixer.weights = weights;
        config.mixer.rank = 3;
        config.mixer.hidden = 5;
        SCOPED_TRACE(to_json(config));
        std::map<std::string, std::vector<int64_t>> expected, got;
        for (const TensorSpec& spec : model_tensors(config)) expected[spec.name] = spec.shape;
        const ModelPtr model = make_model(config);
        for (const auto& item : model->module().named_parameters()) got[item.key()] = item.value().sizes().vec();
        EXPECT_EQ(got, expected);
        model->module().eval();
        const torch::NoGradGuard no_grad;
        const auto logits =
            kind.causal ? model->forward(random_bytes(2, 9)) : model->forward(torch::rand({2, 4, 8, 3}));
        EXPECT_TRUE(logits.isfinite().all().item<bool>());
      }
    }
  }
}

TEST(LanguageModel, ParametersAreNamedAndCountedAsInTheModelFile) {
  for (const auto& mixer : kMixers) {
    const ModelConfig config = small(mixer);
    const LanguageModel model(config);
    std::set<std::string> names;
    int64_t count = 0;
    for (const auto& item : model->named_parameters()) {
      names.insert(item.key());
      count += item.value().numel();
    }
    EXPECT_EQ(count, parameter_count(config)) << mixer;
    std::set<std::string> expected = {"embedding.token.weight", "embedding.position.weight", "norm.weight", "norm.bias",
                                      "head.weight"};
    for (const std::string block : {"blocks.0.", "blocks.1."}) {
      for (const std::string part : {"mixer_norm", "mixer.qkv", "mixer.output", "mlp_norm", "mlp.up", "mlp.down"}) {
        expected.insert(block + part + ".weight");
        expected.insert(block + part + ".bias");
      }
      if (mixer == "aft_conv1d") {
        expected.insert({block + "mixer.weight", block + "mixer.gamma", block + "mixer.beta"});
      }
      if (mixer == "aft_local" || mixer == "aft_full") expected.insert({block + "mixer.u", block + "mixer.v"});
    }
    EXPECT_EQ(names, expected) << mixer;
  }
}

TEST(LanguageModel, InitialValuesHaveTheirDeviations) {
  ModelConfig config;
  config.channels = 128;
  config.mlp_channels = 512;
  config.layers = 8;
  LanguageModel model(config);
  model->initialise(5);
  const auto p = model->named_parameters();
  const auto deviation = [&](const char* name) { return p[name].std().item<double>(); };
  EXPECT_NEAR(deviation("embedding.token.weight"), 0.02, 5e-4);
  EXPECT_NEAR(deviation("embedding.position.weight"), 0.02, 5e-4);
  EXPECT_NEAR(deviation("blocks.3.mixer.qkv.weight"), 0.02, 5e-4);
  EXPECT_NEAR(deviation("blocks.3.mlp.up.weight"), 0.02, 5e-4);
  EXPECT_NEAR(deviation("blocks.3.mixer.output.weight"), 0.02 / 4, 2e-4);
  EXPECT_NEAR(deviation("blocks.3.mlp.down.weight"), 0.02 / 4, 2e-4);
  EXPECT_NEAR(deviation("blocks.3.mixer.u"), 0.01, 3e-4);
  EXPECT_NEAR(deviation("blocks.3.mixer.v"), 0.01, 3e-4);
  EXPECT_EQ(p["blocks.3.mlp.up.bias"].abs().max().item<double>(), 0);
  EXPECT_TRUE(torch::equal(p["norm.weight"], torch::ones({128})));
  const auto first = p["head.weight"].detach().clone();
  model->initialise(6);
  EXPECT_FALSE(torch::equal(p["head.weight"], first));
  model->initialise(5);
  EXPECT_TRUE(torch::equal(p["head.weight"], first));
}

TEST(LanguageModel, DropoutActsInTrainingOnly) {
  ModelConfig config = small("aft_local");
  config.dropout = 0.5;
  LanguageModel model(config);
  const auto bytes = random_bytes(1, 8);
  model->train();
  EXPECT_FALSE(torch::equal(model->forward(bytes), model->forward(bytes)));
  model->eval();
  EXPECT_TRUE(torch::equal(model->forward(bytes), model->forward(bytes)));
}

TEST(LanguageModel, PositionsPastTheContextThrow) {
  for (const auto& mixer : kMixers) {
    LanguageModel model(small(mixer));
    EXPECT_NO_THROW(model->forward(random_bytes(1, 37)));
    EXPECT_THROW(model->forward(random_bytes(1, 38)), Error);
    auto [logits, state] = model->forward_with_state(random_bytes(1, 37), model->initial_state(1));
    EXPECT_THROW(model->forward_with_state(random_bytes(1, 1), state), Error);
    EXPECT_THROW(model->forward(random_bytes(1, 4).to(torch::kFloat32)), Error);
    EXPECT_THROW(model->forward(random_bytes(1, 4)[0]), Error);
  }
}

TEST(ModelFile, ReadsBackBitForBit) {
  const Scratch scratch;
  for (const auto& mixer : kMixers) {
    const auto model = scrambled(small(mixer), torch::kFloat32);
    const auto path = scratch.path() / (mixer + ".safetensors");
    save_model(*model, path);
    const auto again = load_model(path);
    EXPECT_EQ(to_json(again->config), to_json(model->config));
    for (const auto& item : model->named_parameters()) {
      EXPECT_TRUE(torch::equal(item.value(), again->module().named_parameters()[item.key()])) << item.key();
    }
    const SafetensorsFile file(path);
    EXPECT_EQ(file.metadata().at("format"), "aft");
    EXPECT_EQ(file.metadata().at("format_version"), "2");
    EXPECT_EQ(file.metadata().count("library_version"), 1U);
  }
}

TEST(ModelFile, ForeignAndUnfittingFilesAreRefused) {
  const Scratch scratch;
  const auto model = scrambled(small("aft_local"), torch::kFloat32);
  const auto path = scratch.path() / "model.safetensors";
  save_model(*model, path);
  const SafetensorsFile file(path);
  const auto bad = scratch.path() / "bad.safetensors";
  const auto refuse = [&](const auto& change) {
    std::map<std::string, TensorView> tensors;
    std::map<std::string, std::vector<std::byte>> values;
    for (const auto& [name, tensor] : file.tensors()) {
      values[name].resize(tensor.bytes);
      file.read(tensor, values[name].data());
      tensors[name] = {tensor.dtype, tensor.shape, values[name].data(), tensor.bytes};
    }
    auto metadata = file.metadata();
    change(tensors, metadata);
    write_safetensors(bad, tensors, metadata);
    EXPECT_THROW(load_model(bad), Error);
  };
  refuse([](auto&, auto& metadata) { metadata.erase("format"); });
  refuse([](auto&, auto& metadata) { metadata["format"] = "pt"; });
  refuse([](auto&, auto& metadata) { metadata["format_version"] = "3"; });
  refuse([](auto&, auto& metadata) { metadata["config"] = "{"; });
  refuse([](auto& tensors, auto&) { tensors.erase("head.weight"); });
  refuse([](auto& tensors, auto&) {
    tensors["other"] = tensors["norm.bias"];
    tensors.erase("norm.bias");
  });
  refuse([](auto& tensors, auto&) { std::swap(tensors["head.weight"].shape[0], tensors["head.weight"].shape[1]); });
  EXPECT_THROW(load_model(scratch.path() / "none"), Error);
}

}  // namespace
}  // namespace aft

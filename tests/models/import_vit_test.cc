#include "models/import_vit.h"

#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "../io/temporary_folder.h"
#include "aft/error.h"
#include "aft/io/safetensors.h"
#include "models/model.h"
#include "plain_classifier.h"

namespace aft {
namespace {

using Tensors = std::map<std::string, torch::Tensor>;

constexpr int64_t kChannels = 12;
constexpr int64_t kPatch = 2;
constexpr int64_t kGrid = 3;

/// A vision transformer under timm's names.
Tensors random_vit(bool class_token, bool layer_scale, int64_t classes) {
  torch::manual_seed(7);
  Tensors list;
  const auto add = [&](const std::string& name, at::IntArrayRef shape) { list[name] = torch::randn(shape) * 0.5; };
  const auto linear = [&](const std::string& name, int64_t outputs, int64_t inputs) {
    add(name + ".weight", {outputs, inputs});
    add(name + ".bias", {outputs});
  };
  add("patch_embed.proj.weight", {kChannels, 3, kPatch, kPatch});
  add("patch_embed.proj.bias", {kChannels});
  if (class_token) add("cls_token", {1, 1, kChannels});
  add("pos_embed", {1, kGrid * kGrid + (class_token ? 1 : 0), kChannels});
  for (int64_t i = 0; i < 2; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    for (const char* norm : {"norm1", "norm2"}) {
      add(block + norm + ".weight", {kChannels});
      add(block + norm + ".bias", {kChannels});
    }
    linear(block + "attn.qkv", 3 * kChannels, kChannels);
    linear(block + "attn.proj", kChannels, kChannels);
    linear(block + "mlp.fc1", 20, kChannels);
    linear(block + "mlp.fc2", kChannels, 20);
    if (layer_scale) {
      add(block + "ls1.gamma", {kChannels});
      add(block + "ls2.gamma", {kChannels});
    }
  }
  add("norm.weight", {kChannels});
  add("norm.bias", {kChannels});
  if (classes > 0) linear("head", classes, kChannels);
  return list;
}

/// The network as timm writes it: a strided convolution, then the blocks. images [B, 3, rows, columns].
torch::Tensor timm_forward(const Tensors& given, torch::Tensor images, int64_t heads, double eps) {
  Tensors w;
  for (const auto& [name, tensor] : given) w[name] = tensor.to(torch::kFloat64);
  const auto linear = [&](const std::string& name, const torch::Tensor& x) {
    return at::linear(x, w.at(name + ".weight"), w.at(name + ".bias"));
  };
  const auto norm = [&](const std::string& name, const torch::Tensor& x) {
    return torch::layer_norm(x, {kChannels}, w.at(name + ".weight"), w.at(name + ".bias"), eps);
  };
  const auto scale = [&](const std::string& name, const torch::Tensor& x) {
    return w.contains(name) ? x * w.at(name) : x;
  };
  auto x = torch::conv2d(images, w.at("patch_embed.proj.weight"), w.at("patch_embed.proj.bias"), kPatch);
  x = x.flatten(2).transpose(1, 2);
  if (w.contains("cls_token")) x = torch::cat({w.at("cls_token").expand({x.size(0), -1, -1}), x}, 1);
  x = x + w.at("pos_embed");
  for (int64_t i = 0; i < 2; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    const auto qkv = linear(block + "attn.qkv", norm(block + "norm1", x))
                         .view({x.size(0), x.size(1), 3, heads, kChannels / heads})
                         .permute({2, 0, 3, 1, 4});
    const auto scores = torch::matmul(qkv[0], qkv[1].transpose(2, 3)) / std::sqrt(double(kChannels / heads));
    const auto mixed = torch::matmul(torch::softmax(scores, 3), qkv[2]).transpose(1, 2).flatten(2);
    x = x + scale(block + "ls1.gamma", linear(block + "attn.proj", mixed));
    const auto up = torch::gelu(linear(block + "mlp.fc1", norm(block + "norm2", x)));
    x = x + scale(block + "ls2.gamma", linear(block + "mlp.fc2", up));
  }
  x = norm("norm", x);
  const auto pooled = w.contains("cls_token") ? x.select(1, 0) : x.mean(1);
  return w.contains("head.weight") ? linear("head", pooled) : pooled;
}

class ImportVit : public ::testing::Test {
 protected:
  void write(const Tensors& tensors, torch::ScalarType type = torch::kFloat32) {
    static const std::map<torch::ScalarType, std::string> kNames = {{torch::kFloat32, "F32"},
                                                                    {torch::kFloat64, "F64"},
                                                                    {torch::kHalf, "F16"},
                                                                    {torch::kBFloat16, "BF16"},
                                                                    {torch::kInt32, "I32"}};
    std::map<std::string, TensorView> views;
    std::vector<torch::Tensor> owners;
    for (const auto& [name, tensor] : tensors) {
      const auto value = owners.emplace_back(tensor.to(type).contiguous());
      views[name] = {kNames.at(type), value.sizes().vec(), static_cast<const std::byte*>(value.const_data_ptr()),
                     static_cast<size_t>(value.nbytes())};
    }
    write_safetensors(from, views, {});
  }

  /// The message with which what write() wrote is refused.
  std::string refusal() {
    try {
      import_vit(from, to, options);
    } catch (const Error& error) {
      EXPECT_FALSE(std::filesystem::exists(to));
      return error.what();
    }
    return "";
  }

  test::TemporaryFolder folder;
  const std::filesystem::path from = folder / "timm.safetensors";
  const std::filesystem::path to = folder / "model.safetensors";
  ImportOptions options = [] {
    ImportOptions given;
    given.heads = 3;
    given.crop = 0.875;
    return given;
  }();
};

TEST_F(ImportVit, GivesTheSameLogitsAndFeatures) {
  const auto images = torch::rand({2, 6, 6, 3}, torch::kFloat64);
  for (const auto& [class_token, layer_scale, classes] :
       {std::tuple{true, true, int64_t{0}}, {true, false, 5}, {false, true, 4}}) {
    const Tensors given = random_vit(class_token, layer_scale, classes);
    write(given);
    import_vit(from, to, options);
    const ModelPtr model = load_model(to);
    EXPECT_EQ(model->config.height, 6);
    EXPECT_EQ(model->config.crop, 0.875);
    EXPECT_EQ(model->config.norm_eps, 1e-6);
    model->module().to(torch::kFloat64);
    const auto expected = timm_forward(given, images.permute({0, 3, 1, 2}), 3, 1e-6);
    EXPECT_LT((model->forward(images) - expected).abs().max().item<double>(), 1e-12);
  }
}

TEST_F(ImportVit, ReadsEveryFloatingType) {
  const Tensors given = random_vit(true, true, 3);
  for (const auto type : {torch::kFloat64, torch::kHalf, torch::kBFloat16}) {
    write(given, type);
    import_vit(from, to, options);
    const auto weights = plain::weights_of(load_model(to)->module());
    const auto expected = given.at("blocks.1.mlp.fc1.weight").to(type).to(torch::kFloat64);
    EXPECT_TRUE(weights.at("blocks.1.mlp.up.weight").equal(expected)) << type;
  }
}

// Zeros, numbers below the smallest normal one, the largest, infinity and NaN.
TEST_F(ImportVit, ReadsEveryHalf) {
  Tensors given = random_vit(true, false, 3);
  std::vector<int16_t> bits;
  for (int i = 0; i < 20 * 12; ++i) bits.push_back(static_cast<int16_t>(i * 273));
  given["blocks.0.mlp.fc1.weight"] = torch::tensor(bits, torch::kInt16).view(torch::kHalf).view({20, 12});
  const auto expected = given["blocks.0.mlp.fc1.weight"].to(torch::kFloat64);
  write(given, torch::kHalf);
  import_vit(from, to, options);
  const auto weight = plain::weights_of(load_model(to)->module()).at("blocks.0.mlp.up.weight");
  EXPECT_TRUE(torch::allclose(weight, expected, 0, 0, /*equal_nan=*/true));
}

TEST_F(ImportVit, ReportsAllThatDoesNotFitAtOnce) {
  Tensors given = random_vit(true, true, 3);
  given.erase("blocks.1.ls2.gamma");
  given["reg_token"] = torch::zeros({1, 4, kChannels});
  given["blocks.0.attn.proj.weight"] = torch::zeros({kChannels, kChannels + 1});
  write(given);
  const std::string message = refusal();
  for (const char* part : {"blocks.1.ls2.gamma is missing", "reg_token is not of",
                           "blocks.0.attn.proj.weight has shape [12, 13], expected [12, 12]"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

TEST_F(ImportVit, RefusesWhatIsNoVisionTransformer) {
  const auto changed = [&](const std::function<void(Tensors&)>& change) {
    Tensors given = random_vit(true, false, 3);
    change(given);
    write(given);
    return refusal();
  };
  EXPECT_NE(changed([](Tensors& t) { t.erase("pos_embed"); }).find("no tensor pos_embed"), std::string::npos);
  EXPECT_NE(changed([](Tensors& t) { t["pos_embed"] = torch::zeros({1, 8, 12}); }).find("square"), std::string::npos);
  EXPECT_NE(changed([](Tensors& t) { t["pos_embed"] = torch::zeros({10, 12}); }).find("[10, 12]"), std::string::npos);
  EXPECT_NE(changed([](Tensors& t) { t["blocks.99999.x"] = torch::zeros({1}); }).find("block 99999"),
            std::string::npos);
  write(random_vit(true, false, 3), torch::kInt32);
  EXPECT_NE(refusal().find("has type I32"), std::string::npos);
  options.heads = 5;
  write(random_vit(true, false, 3));
  EXPECT_NE(refusal().find("heads"), std::string::npos);
  options.heads = 3;
  options.class_names = {"one"};
  EXPECT_NE(refusal().find("class_names"), std::string::npos);
}

// The head is drawn, all else given: how a pretrained transformer is trained on ten classes of one's own.
TEST_F(ImportVit, TakesANewHead) {
  write(random_vit(true, true, 0));
  import_vit(from, to, options);
  ModelConfig config = load_model(to)->config;
  config.classes = 10;
  const ModelPtr model = make_model(config);
  const auto drawn = plain::weights_of(model->module()).at("head.weight");
  load_weights(*model, to, {"head.*"});
  const auto weights = plain::weights_of(model->module());
  EXPECT_TRUE(weights.at("head.weight").equal(drawn));
  EXPECT_TRUE(
      weights.at("blocks.0.mixer_scale").equal(plain::weights_of(load_model(to)->module()).at("blocks.0.mixer_scale")));
}

}  // namespace
}  // namespace aft

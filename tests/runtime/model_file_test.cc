#include "aft/runtime/model_file.h"

#include <gtest/gtest.h>

#include "../io/temporary_folder.h"
#include "aft/error.h"
#include "aft/runtime/model.h"
#include "random_model.h"

namespace aft::runtime {
namespace {

class ModelFileTest : public testing::Test {
 protected:
  std::string refusal(const std::filesystem::path& path) {
    try {
      const ModelFile file(path);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  /// The message for a file of some metadata and tensors of one number each.
  std::string refusal_of(const std::map<std::string, std::string>& metadata,
                         const std::vector<std::string>& names = {}) {
    static const float kOne = 1.0F;
    std::map<std::string, TensorView> tensors;
    for (const auto& name : names) tensors[name] = {"F32", {1}, reinterpret_cast<const std::byte*>(&kOne), 4};
    write_safetensors(folder_ / "file", tensors, metadata);
    return refusal(folder_ / "file");
  }
  static void expect_part(const std::string& message, const std::string& part) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  test::TemporaryFolder folder_;
};

// The names and shapes are part of the format: a list of its own, to be changed with the format version only.
TEST(ModelTensors, AreTheFormats) {
  ModelConfig config;
  config.mixer.name = "aft_local";
  config.layers = 1;
  config.channels = 8;
  config.mlp_channels = 24;
  config.context = 10;
  config.mixer.factor_channels = 3;
  const std::map<std::string, std::vector<int64_t>> expected = {
      {"embedding.token.weight", {256, 8}},
      {"embedding.position.weight", {10, 8}},
      {"blocks.0.mixer_norm.weight", {8}},
      {"blocks.0.mixer_norm.bias", {8}},
      {"blocks.0.mixer.qkv.weight", {24, 8}},
      {"blocks.0.mixer.qkv.bias", {24}},
      {"blocks.0.mixer.output.weight", {8, 8}},
      {"blocks.0.mixer.output.bias", {8}},
      {"blocks.0.mixer.u", {10, 3}},
      {"blocks.0.mixer.v", {10, 3}},
      {"blocks.0.mlp_norm.weight", {8}},
      {"blocks.0.mlp_norm.bias", {8}},
      {"blocks.0.mlp.up.weight", {24, 8}},
      {"blocks.0.mlp.up.bias", {24}},
      {"blocks.0.mlp.down.weight", {8, 24}},
      {"blocks.0.mlp.down.bias", {8}},
      {"norm.weight", {8}},
      {"norm.bias", {8}},
      {"head.weight", {256, 8}},
  };
  EXPECT_EQ(test::shapes_of(config), expected);
  config.mixer.name = "aft_simple";
  EXPECT_EQ(test::shapes_of(config).size(), expected.size() - 2);
  config.mixer.name = "attention";
  config.layers = 3;
  EXPECT_EQ(test::shapes_of(config).size(), 5U + 3 * 12);
}

TEST_F(ModelFileTest, OpensAFileAndARunFolder) {
  const ModelConfig config = test::small_config("aft_local");
  const test::Tensors tensors = test::random_tensors(config, 1);
  test::write_model(folder_ / "model.safetensors", config, tensors);
  int64_t parameters = 0;
  for (const auto& [name, values] : tensors) parameters += static_cast<int64_t>(values.size());
  for (const auto& path : {folder_.path(), folder_ / "model.safetensors"}) {
    const ModelFile file(path);
    EXPECT_EQ(file.config().channels, config.channels);
    EXPECT_EQ(file.parameters(), parameters);
    EXPECT_EQ(file.library_version(), "0.1.0");
    float value = 0;
    file.read("head.weight", 5, 1, &value);
    EXPECT_EQ(value, tensors.at("head.weight")[5]);
    EXPECT_THROW(file.read("head.bias", 0, 1, &value), Error);
  }
}

// What earlier versions wrote: the options of every mixer beside the rest.
TEST_F(ModelFileTest, ReadsVersion1) {
  const ModelConfig config = test::small_config("aft_local");
  const test::Tensors tensors = test::random_tensors(config, 1);
  const auto shapes = test::shapes_of(config);
  std::map<std::string, TensorView> views;
  for (const auto& [name, values] : tensors) {
    views[name] = {"F32", shapes.at(name), reinterpret_cast<const std::byte*>(values.data()), values.size() * 4};
  }
  const std::string json = R"({"model":"byte_lm","mixer":"aft_local","vocabulary":256,"layers":3,"channels":21,)"
                           R"("mlp_channels":50,"context":48,"heads":4,"window":6,"factor_channels":5,"dropout":0.0})";
  write_safetensors(folder_ / "old", views,
                    {{"format", "aft"}, {"format_version", "1"}, {"library_version", "0.1.0"}, {"config", json}});
  const ModelFile file(folder_ / "old");
  EXPECT_EQ(file.format_version(), 1);
  EXPECT_EQ(to_json(file.config()), to_json(config));
}

TEST_F(ModelFileTest, ForeignFilesAreNamedAsSuch) {
  expect_part(refusal(folder_ / "missing"), "No such file");
  expect_part(refusal(folder_.path()), "no model.safetensors in this folder");
  expect_part(refusal_of({}), "not a model of aft");
  expect_part(refusal_of({{"format", "pt"}}), "not a model of aft");
  const std::string config = to_json(test::small_config("aft_local"));
  expect_part(refusal_of({{"format", "aft"}, {"format_version", "3"}, {"library_version", "9"}, {"config", config}}),
              "newer version");
  expect_part(refusal_of({{"format", "aft"}, {"format_version", "1"}, {"library_version", "0"}}), "\"config\"");
  expect_part(refusal_of({{"format", "aft"}, {"format_version", "1"}, {"library_version", "0"}, {"config", "{"}}),
              "model config");
}

TEST_F(ModelFileTest, AConfigBeyondTheFileIsRefusedAtOnce) {
  ModelConfig config;
  config.layers = 1 << 30;
  expect_part(
      refusal_of({{"format", "aft"}, {"format_version", "1"}, {"library_version", "0"}, {"config", to_json(config)}}),
      "layers");
}

TEST_F(ModelFileTest, WrongTensorsAreReportedTogether) {
  ModelConfig config;
  config.mixer.name = "aft_simple";
  config.layers = 1;
  config.channels = 1;
  config.mlp_channels = 1;
  const std::string message =
      refusal_of({{"format", "aft"}, {"format_version", "1"}, {"library_version", "0"}, {"config", to_json(config)}},
                 {"head.weight", "norm.weight", "blocks.7.mixer.u"});
  expect_part(message, "blocks.0.mixer.output.bias is missing");
  expect_part(message, "more");
  EXPECT_LT(message.size(), 1000U);

  test::Tensors tensors = test::random_tensors(config, 1);
  std::map<std::string, TensorView> views;
  const auto shapes = test::shapes_of(config);
  for (const auto& [name, values] : tensors) {
    views[name] = {"F32", shapes.at(name), reinterpret_cast<const std::byte*>(values.data()), values.size() * 4};
  }
  views["extra"] = views["norm.bias"];
  views["head.weight"].shape = {1, 256};
  views["norm.bias"].dtype = "I32";
  views.erase("norm.weight");
  write_safetensors(
      folder_ / "bad", views,
      {{"format", "aft"}, {"format_version", "1"}, {"library_version", "0"}, {"config", to_json(config)}});
  const std::string all = refusal(folder_ / "bad");
  expect_part(all, "extra does not belong to the model");
  expect_part(all, "head.weight has shape [1, 256], expected [256, 1]");
  expect_part(all, "norm.bias has type I32, expected F32");
  expect_part(all, "norm.weight is missing");
}

// A run that was stopped before its first validation has only its checkpoint: weights beside moments.
TEST_F(ModelFileTest, ACheckpointIsAModelToo) {
  const ModelConfig config = test::small_config("aft_local");
  const test::Tensors tensors = test::random_tensors(config, 1);
  const auto shapes = test::shapes_of(config);
  std::map<std::string, TensorView> views;
  for (const auto& [name, values] : tensors) {
    const TensorView view = {"F32", shapes.at(name), reinterpret_cast<const std::byte*>(values.data()),
                             values.size() * 4};
    views["weights." + name] = views["first_moment." + name] = views["second_moment." + name] = view;
  }
  const std::map<std::string, std::string> metadata = {{"format", "aft-checkpoint"},
                                                       {"format_version", "1"},
                                                       {"library_version", "0"},
                                                       {"config", to_json(config)},
                                                       {"state", "{}"}};
  write_safetensors(folder_ / "checkpoint.safetensors", views, metadata);
  const ModelFile file(folder_.path());
  EXPECT_TRUE(file.is_checkpoint());
  EXPECT_EQ(file.path(), folder_ / "checkpoint.safetensors");
  test::write_model(folder_ / "other.safetensors", config, tensors);
  EXPECT_EQ(file.parameters(), ModelFile(folder_ / "other.safetensors").parameters());
  float value = 0;
  file.read("head.weight", 7, 1, &value);
  EXPECT_EQ(value, tensors.at("head.weight")[7]);

  // Of a run that averages its weights the averages are the model.
  const test::Tensors averages = test::random_tensors(config, 2);
  auto both = views;
  for (const auto& [name, values] : averages) {
    both["average." + name] = views.at("weights." + name);
    both["average." + name].data = reinterpret_cast<const std::byte*>(values.data());
  }
  write_safetensors(folder_ / "checkpoint.safetensors", both, metadata);
  ModelFile(folder_.path()).read("head.weight", 7, 1, &value);
  EXPECT_EQ(value, averages.at("head.weight")[7]);
  EXPECT_NE(value, tensors.at("head.weight")[7]);

  views.erase("weights.norm.bias");
  write_safetensors(folder_ / "checkpoint.safetensors", views, metadata);
  expect_part(refusal(folder_.path()), "norm.bias is missing");

  test::write_model(folder_ / "model.safetensors", config, tensors);  // the best by validation goes before the last
  EXPECT_FALSE(ModelFile(folder_.path()).is_checkpoint());
}

TEST_F(ModelFileTest, WeightsCountedPerToken) {
  ModelConfig config = test::small_config("aft_local");  // 3 layers, d = 21, MLP 50, window 6
  test::write_model(folder_ / "model.safetensors", config, test::random_tensors(config, 1));
  ThreadPool pool(2);
  const Model model = Model::load(folder_.path(), pool);
  EXPECT_EQ(model.matrix_parameters(), 3 * (3 * 21 * 21 + 21 * 21 + 2 * 50 * 21));
  EXPECT_EQ(model.weight_bytes_per_token(),
            4 * (model.matrix_parameters() + 3 * (4 * 21 + 4 * 21 + 50 + 21 + 6) + 2 * 21 + 2 * 21 + 256 * 21));
}

}  // namespace
}  // namespace aft::runtime

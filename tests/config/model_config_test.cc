#include "aft/config/model_config.h"

#include <gtest/gtest.h>

#include "aft/error.h"

namespace aft {
namespace {

/// The message of the Error that `json` is refused with, "" if it is accepted.
std::string refusal(const std::string& json) {
  try {
    model_config_from_json(json);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(ModelConfig, GoesThroughJsonUnchanged) {
  ModelConfig config;
  config.layers = 7;
  config.channels = 96;
  config.mlp_channels = 100;
  config.context = 33;
  config.dropout = 0.125;
  config.mixer.name = "aft_local";
  config.mixer.window = 0;
  config.mixer.factor_channels = 5;
  const std::string json = to_json(config);
  EXPECT_EQ(
      json,
      R"({"model":"byte_lm","layers":7,"channels":96,"mlp_channels":100,"dropout":0.125,)"
      R"("vocabulary":256,"context":33,"mixer":{"name":"aft_local","window":0,"factor_channels":5,"gate":"sigmoid"}})");
  EXPECT_EQ(to_json(model_config_from_json(json)), json);
  config.model = "pixel_lm";
  config.height = 28;
  config.width = 27;
  config.colors = 1;
  config.mixer.name = "attention";
  config.mixer.heads = 3;
  const ModelConfig back = model_config_from_json(to_json(config));
  EXPECT_EQ(back.model, "pixel_lm");
  EXPECT_EQ(back.height, 28);
  EXPECT_EQ(back.width, 27);
  EXPECT_EQ(back.colors, 1);
  EXPECT_EQ(positions(back), 756);
  EXPECT_EQ(back.mixer.name, "attention");
  EXPECT_EQ(back.mixer.heads, 3);
}

TEST(ModelConfig, AClassifierGoesThroughJsonUnchanged) {
  ModelConfig config;
  config.model = "classifier";
  config.height = config.width = 12;
  config.classes = 2;
  config.class_token = true;
  config.position_embedding = false;
  config.layer_scale = 1;
  config.norm_eps = 1e-6;
  config.stochastic_depth = 0.25;
  config.mean = {0.485, 0.456, 0.406};
  config.deviation = {0.25};
  config.resampling = "bilinear";
  config.crop = 0.875;
  config.class_names = {"a \"cat\"", "\u00fc"};
  config.mixer.name = "aft_full";
  config.mixer.gate = "none";
  const std::string json = to_json(config);
  EXPECT_EQ(json, R"({"model":"classifier","layers":4,"channels":256,"mlp_channels":1024,"dropout":0.0,)"
                  R"("height":12,"width":12,"colors":3,"patch":4,"classes":2,"class_token":true,)"
                  R"("position_embedding":false,"layer_scale":1.0,"norm_eps":1e-06,"stochastic_depth":0.25,)"
                  R"("mean":[0.485,0.456,0.406],"deviation":[0.25],"resampling":"bilinear","crop":0.875,)"
                  "\"class_names\":[\"a \\\"cat\\\"\",\"\u00fc\"],"
                  R"("mixer":{"name":"aft_full","factor_channels":64,"gate":"none"}})");
  EXPECT_EQ(to_json(model_config_from_json(json)), json);
  EXPECT_EQ(positions(config), 10);
}

TEST(ModelConfig, OfAnotherSizeIsAClassifiersAlone) {
  ModelConfig config;
  EXPECT_EQ(to_json(with_side(config, 0)), to_json(config));
  EXPECT_THROW(with_side(config, 40), Error);
  config.model = "classifier";
  EXPECT_EQ(positions(with_side(config, 40)), 100);
  EXPECT_THROW(with_side(config, 42), Error);  // patches of 4
}

TEST(ModelConfig, RefusesImpossibleClassifiers) {
  const auto refused = [](const std::string& member) { return refusal(R"({"model":"classifier",)" + member + "}"); };
  EXPECT_EQ(refused(R"("classes": 0)"), "");
  EXPECT_NE(refused(R"("classes": 1)").find("classes"), std::string::npos);
  EXPECT_NE(refused(R"("mean": [])").find("mean"), std::string::npos);
  EXPECT_NE(refused(R"("mean": [0.1, 0.2])").find("mean"), std::string::npos);
  EXPECT_NE(refused(R"("mean": 0.5)").find("mean: expected an array"), std::string::npos);
  EXPECT_NE(refused(R"("deviation": [0.0])").find("deviation"), std::string::npos);
  EXPECT_NE(refused(R"("deviation": [127.5])").find("[0, 1]"), std::string::npos);
  EXPECT_NE(refused(R"("crop": 0.0)").find("crop"), std::string::npos);
  EXPECT_EQ(refused(R"("crop": 1)"), "");
  EXPECT_NE(refused(R"("crop": 1.5)").find("crop"), std::string::npos);
  EXPECT_NE(refused(R"("norm_eps": 0)").find("norm_eps"), std::string::npos);
  EXPECT_NE(refused(R"("stochastic_depth": 1)").find("stochastic_depth"), std::string::npos);
  EXPECT_NE(refused(R"("class_token": 1)").find("class_token: expected true or false"), std::string::npos);
  EXPECT_NE(refused(R"("class_names": ["a"])").find("class_names"), std::string::npos);
  EXPECT_NE(refused(R"("resampling": "lanczos")").find("resampling"), std::string::npos);
  const std::string conv2d = R"("mixer": {"name": "aft_conv2d", "window": 7})";
  EXPECT_EQ(refused(conv2d), "");
  EXPECT_NE(refused(R"("class_token": true, )" + conv2d).find("class_token"), std::string::npos);
  EXPECT_NE(refused(R"("mixer": {"name": "aft_conv2d", "window": 8})").find("odd"), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": {"name": "aft_conv2d"}})").find("mixer.name"), std::string::npos);
}

// Model files of version 1 have the options of every mixer beside the rest; those of other mixers meant nothing.
TEST(ModelConfig, ReadsVersion1) {
  const ModelConfig config = model_config_from_json(
      R"({"model":"byte_lm","mixer":"aft_conv1d","vocabulary":256,"layers":2,"channels":12,"mlp_channels":8,)"
      R"("context":10,"heads":3,"window":5,"factor_channels":0,"dropout":0.5})");
  EXPECT_EQ(config.mixer.name, "aft_conv1d");
  EXPECT_EQ(config.mixer.heads, 3);
  EXPECT_EQ(config.mixer.window, 5);
  EXPECT_EQ(config.dropout, 0.5);
  EXPECT_EQ(config.context, 10);
}

TEST(ModelConfig, RefusesBadJsonNamingTheField) {
  EXPECT_NE(refusal("{").find("JSON"), std::string::npos);
  EXPECT_NE(refusal("").find("JSON"), std::string::npos);
  EXPECT_NE(refusal("[]").find("object"), std::string::npos);
  EXPECT_NE(refusal(std::string(1 << 20, '[')).find("JSON"), std::string::npos);
  EXPECT_NE(refusal(R"({"colour": 3})").find("colour"), std::string::npos);
  EXPECT_NE(refusal(R"({"layers": "4"})").find("layers: expected an integer, got string"), std::string::npos);
  EXPECT_NE(refusal(R"({"layers": 4.5})").find("layers"), std::string::npos);
  EXPECT_NE(refusal(R"({"layers": 0})").find("layers"), std::string::npos);
  EXPECT_NE(refusal(R"({"layers": -1})").find("layers"), std::string::npos);
  EXPECT_NE(refusal(R"({"layers": 18446744073709551615})").find("layers"), std::string::npos);
  EXPECT_NE(refusal(R"({"layers": 1e300})").find("layers"), std::string::npos);
  EXPECT_NE(refusal(R"({"channels": 1073741825})").find("channels"), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": 3})").find("mixer: expected an object"), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": "aft_wide"})").find("aft_wide"), std::string::npos);
  EXPECT_NE(refusal(R"({"model": "image"})").find("byte_lm"), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": {"name": "attention", "window": 3}})").find("mixer.window"), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": {"name": "aft_local", "window": "3"}})").find("mixer.window: expected an integer"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": {"name": "aft_local"}, "window": 3})").find("\"window\""), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": {"name": 3}})").find("name: expected a string"), std::string::npos);
  EXPECT_NE(refusal(R"({"classes": 3})").find("classes"), std::string::npos);
  EXPECT_NE(refusal(R"({"model": "pixel_lm", "context": 3})").find("context"), std::string::npos);
  EXPECT_NE(refusal(R"({"model": "pixel_lm", "colors": 2})").find("colors: expected 1 or 3"), std::string::npos);
  EXPECT_NE(refusal(R"({"model": "pixel_lm", "height": 5000})").find("height"), std::string::npos);
  EXPECT_NE(refusal(R"({"model": "classifier", "patch": 5})").find("patch: expected a divisor of height = 32"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"model": "classifier", "mixer": {"name": "aft_conv1d", "window": 4}})").find("odd"),
            std::string::npos);
  EXPECT_NE(refusal(R"({"vocabulary": 257})").find("vocabulary"), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": "attention", "channels": 10, "heads": 4})").find("heads"), std::string::npos);
  EXPECT_NE(refusal(R"({"dropout": 1.0})").find("dropout"), std::string::npos);
  EXPECT_NE(refusal(R"({"dropout": "no"})").find("dropout"), std::string::npos);
  EXPECT_NE(refusal(R"({"window": -1})").find("window"), std::string::npos);
}

TEST(ModelConfig, HeadsMatterWhereTheMixerHasThem) {
  EXPECT_EQ(refusal(R"({"mixer": "aft_local", "channels": 10, "heads": 4})"), "");
  EXPECT_EQ(refusal(R"({"mixer": "aft_local", "window": 0})"), "");
  EXPECT_NE(refusal(R"({"mixer": "aft_conv1d", "channels": 10, "heads": 4})").find("heads"), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": "aft_conv1d", "window": 0})").find("window"), std::string::npos);
}

}  // namespace
}  // namespace aft

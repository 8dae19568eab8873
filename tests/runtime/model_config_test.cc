#include "aft/runtime/model_config.h"

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
  config.mixer = "attention";
  config.layers = 7;
  config.channels = 96;
  config.mlp_channels = 100;
  config.context = 33;
  config.heads = 3;
  config.window = 0;
  config.factor_channels = 5;
  config.dropout = 0.125;
  const ModelConfig back = model_config_from_json(to_json(config));
  EXPECT_EQ(back.model, "byte_lm");
  EXPECT_EQ(back.mixer, "attention");
  EXPECT_EQ(back.vocabulary, 256);
  EXPECT_EQ(back.layers, 7);
  EXPECT_EQ(back.channels, 96);
  EXPECT_EQ(back.mlp_channels, 100);
  EXPECT_EQ(back.context, 33);
  EXPECT_EQ(back.heads, 3);
  EXPECT_EQ(back.window, 0);
  EXPECT_EQ(back.factor_channels, 5);
  EXPECT_EQ(back.dropout, 0.125);
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
  EXPECT_NE(refusal(R"({"mixer": 3})").find("mixer: expected a string"), std::string::npos);
  EXPECT_NE(refusal(R"({"mixer": "aft_wide"})").find("aft_wide"), std::string::npos);
  EXPECT_NE(refusal(R"({"model": "image"})").find("byte_lm"), std::string::npos);
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

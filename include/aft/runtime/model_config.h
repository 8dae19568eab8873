#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace aft {

/// Everything that decides the shape of a model, as stored under the key "config" (JSON) of a model file's metadata.
struct ModelConfig {
  std::string model = "byte_lm";
  std::string mixer = "aft_local";  // aft_simple, aft_local, aft_conv1d, aft_full, attention
  int64_t vocabulary = 256;
  int64_t layers = 4;
  int64_t channels = 256;        // d
  int64_t mlp_channels = 1024;   // width inside the two-layer MLP, 4 d in the paper
  int64_t context = 256;         // T: length of the position tables
  int64_t heads = 4;             // attention; aft_conv1d: H, each has one key channel and its own kernel
  int64_t window = 32;           // w is kept where 0 <= t - t' < window; aft_local: 0 is aft_simple; aft_conv1d: >= 1
  int64_t factor_channels = 64;  // aft_local, aft_full: d', width of the factors u and v
  double dropout = 0.0;          // training only
};

/// Key channels of the mixer: d, or one a head for aft_conv1d. The qkv projection has 2 d and these rows.
int64_t key_channels(const ModelConfig& config);

/// Throws aft::Error naming the field, what was expected and what came.
void validate(const ModelConfig& config);

std::string to_json(const ModelConfig& config);

/// Unknown keys and wrong types throw aft::Error.
ModelConfig model_config_from_json(std::string_view json);

}  // namespace aft

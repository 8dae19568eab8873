#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace aft {

/// What mixes the positions of a layer. Each mixer has options of its own, which docs/mixers.md lists; the other
/// members mean nothing to it and are neither read nor written.
struct MixerConfig {
  std::string name = "aft_local";
  int64_t heads = 4;              // groups of channels that share a key, a kernel or a row of weights
  int64_t window = 32;            // positions that one sees, itself among them; of aft_conv1d the length of its kernels
  int64_t factor_channels = 64;   // aft_local, aft_full: d', width of the factors u and v
  int64_t rank = 64;              // linformer: k, positions that keys and values are projected to
  int64_t hidden = 256;           // mlp_mixer: width inside the MLP over positions
  std::string weights = "dense";  // synthesizer: "dense" (from each token) or "random" (learned, the same for all)
};

/// Everything that decides the shape of a model, as stored under the key "config" (JSON) of a model file's metadata.
/// Each model has its own of the members below `dropout`; the others mean nothing to it.
struct ModelConfig {
  std::string model = "byte_lm";  // byte_lm, pixel_lm, classifier
  int64_t layers = 4;
  int64_t channels = 256;       // d
  int64_t mlp_channels = 1024;  // width inside the two-layer MLP, 4 d in the paper
  double dropout = 0.0;         // training only

  int64_t vocabulary = 256;  // language models: values of a token
  int64_t context = 256;     // byte_lm: T, the longest sequence
  int64_t height = 32;       // of images: pixel_lm, classifier
  int64_t width = 32;
  int64_t colors = 3;    // 1 or 3 values a pixel
  int64_t patch = 4;     // classifier: pixels on a side of what becomes one position
  int64_t classes = 10;  // classifier

  MixerConfig mixer;
};

/// Positions of the longest sequence, rows of the tables of positions: byte_lm `context`, pixel_lm one for every value
/// of the image, classifier one for every patch.
int64_t positions(const ModelConfig& config);

/// Throws aft::Error naming the field, what was expected and what came.
void validate(const ModelConfig& config);

/// The model's own fields, and as an object "mixer" its name and own options.
std::string to_json(const ModelConfig& config);

/// Unknown keys and wrong types throw aft::Error. Also reads the form of model files of version 1, where "mixer" is a
/// name and the options of all mixers stand beside it.
ModelConfig model_config_from_json(std::string_view json);

}  // namespace aft

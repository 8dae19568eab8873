#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

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
  std::string gate = "sigmoid";   // AFT: of the query; "relu" in the paper's first version; "none": there is no query
  bool global = true;             // aft_conv2d: w is 0 outside the kernel; false: -inf, so that nothing there counts
  bool reparameterised = true;    // aft_conv2d: w = gamma (weight - mean) / sqrt(var + 1e-5) + beta; else w = weight
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
  int64_t colors = 3;  // 1 or 3 values a pixel

  // classifier
  int64_t patch = 4;               // pixels on a side of what becomes one position
  int64_t classes = 10;            // 0: no head, the model gives features
  bool class_token = false;        // a learned position before the others, from which the class is read; else the mean
  bool position_embedding = true;  // a learned vector for each position
  double layer_scale = 0;          // where the factors begin that scale each branch; 0: there are none
  double norm_eps = 1e-5;          // of the layer norms; language models have the default
  double stochastic_depth = 0;     // training only: how likely the last layer's branches are left out of an example
  std::vector<double> mean = {0.5};       // of values in [0, 1], one or one a colour: what an image is freed of ...
  std::vector<double> deviation = {0.5};  // ... and divided by
  std::string resampling = "bicubic";     // how images are brought to size: "nearest", "bilinear", "bicubic"
  double crop = 1;                        // share of the shorter side that is seen
  std::vector<std::string> class_names;   // one a class, or none

  MixerConfig mixer;
};

/// Positions of the longest sequence, rows of the tables of positions: byte_lm `context`, pixel_lm one for every value
/// of the image, classifier one for every patch and one for the class token.
int64_t positions(const ModelConfig& config);

/// The config of the same classifier for images of side x side pixels: its tables of places are interpolated when the
/// weights are read. 0: as it is. Throws aft::Error for another model, and where the size does not fit the patches.
ModelConfig with_side(ModelConfig config, int64_t side);

/// Throws aft::Error naming the field, what was expected and what came.
void validate(const ModelConfig& config);

/// The model's own fields, and as an object "mixer" its name and own options.
std::string to_json(const ModelConfig& config);

/// Unknown keys and wrong types throw aft::Error. Also reads the form of model files of version 1, where "mixer" is a
/// name and the options of all mixers stand beside it.
ModelConfig model_config_from_json(std::string_view json);

}  // namespace aft

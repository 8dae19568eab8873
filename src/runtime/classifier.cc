#include "aft/runtime/classifier.h"

#include <algorithm>
#include <deque>
#include <string>

#include "aft/error.h"
#include "aft/runtime/model_file.h"
#include "config/architecture.h"
#include "runtime/linear.h"
#include "runtime/mixer/whole.h"

namespace aft::runtime {
namespace {

/// One layer; LayerScale's factors are in the weights of `output` and `down`.
struct Layer {
  Norm mixer_norm;
  Linear qkv;
  std::unique_ptr<WholeMixer> mixer;
  Linear output;
  Norm mlp_norm;
  Linear up;
  Linear down;
};

}  // namespace

struct Classifier::Parts {
  Parts(const ModelFile& file, const ModelConfig& config_, ThreadPool& pool) : config(config_) {
    const int64_t d = config.channels;
    for (const TensorPiece& piece : model_pieces(config)) {
      if (piece.name == "embedding.position.weight") position = keep(file.values(config, piece));
    }
    patch = linear(file, "embedding.patch", d, config.patch * config.patch * config.colors);
    if (config.class_token) class_token = keep(file.read("embedding.class"));
    for (int64_t i = 0; i < config.layers; ++i) {
      const std::string name = "blocks." + std::to_string(i) + ".";
      Layer layer;
      layer.mixer_norm = norm(file, name + "mixer_norm");
      layer.qkv = linear(file, name + "mixer.qkv", qkv_channels(config), d);
      layer.mixer = make_whole_mixer(config, file, name + "mixer.", pool);
      layer.output = branch_end(file, name + "mixer.output", name + "mixer_scale", d);
      layer.mlp_norm = norm(file, name + "mlp_norm");
      layer.up = linear(file, name + "mlp.up", config.mlp_channels, d);
      layer.down = branch_end(file, name + "mlp.down", name + "mlp_scale", config.mlp_channels);
      layers.push_back(std::move(layer));
    }
    last_norm = norm(file, "norm");
    if (config.classes > 0) head = linear(file, "head", config.classes, d);
  }

  /// Pixels to what the model reads, patch by patch: [patches, patch * patch * colors].
  [[nodiscard]] std::vector<float> patches(std::span<const uint8_t> image) const {
    std::vector<float> scale;
    std::vector<float> shift;
    for (int64_t c = 0; c < config.colors; ++c) {
      const auto of = [&](const std::vector<double>& list) {
        return list[list.size() == 1 ? 0 : static_cast<size_t>(c)];
      };
      scale.push_back(static_cast<float>(1 / (255 * of(config.deviation))));
      shift.push_back(static_cast<float>(of(config.mean) / of(config.deviation)));
    }
    const auto [rows, columns] = patch_grid(config);
    std::vector<float> out;
    out.reserve(image.size());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        for (int64_t y = row * config.patch; y < (row + 1) * config.patch; ++y) {
          const uint8_t* value = image.data() + (y * config.width + column * config.patch) * config.colors;
          for (int64_t x = 0; x < config.patch; ++x) {
            for (size_t c = 0; c < scale.size(); ++c) out.push_back(static_cast<float>(*value++) * scale[c] - shift[c]);
          }
        }
      }
    }
    return out;
  }

  /// The residual stream before the first layer: [T, d].
  [[nodiscard]] std::vector<float> embed(std::span<const uint8_t> image, ThreadPool& pool) const {
    const int64_t d = config.channels;
    const int64_t time = positions(config);
    const int64_t first = config.class_token ? 1 : 0;
    std::vector<float> x(static_cast<size_t>(time * d));
    apply(patch, patches(image).data(), time - first, Rows::kAsIsFastest, After::kNothing, x.data() + first * d, pool);
    if (config.class_token) std::copy_n(class_token, d, x.data());
    if (position != nullptr) {
      for (size_t i = 0; i < x.size(); ++i) x[i] += position[i];
    }
    return x;
  }

  ModelConfig config;
  const float* position = nullptr;  // [T, d]; null: none
  Linear patch;
  const float* class_token = nullptr;  // [d]
  std::vector<Layer> layers;
  Norm last_norm;
  Linear head;

 private:
  const float* keep(std::vector<float> values) { return tensors_.emplace_back(std::move(values)).data(); }

  Norm norm(const ModelFile& file, const std::string& name) {
    const float* const weight = keep(file.read(name + ".weight"));
    return {weight, keep(file.read(name + ".bias")), static_cast<float>(config.norm_eps)};
  }

  Linear linear(const ModelFile& file, const std::string& name, int64_t outputs, int64_t inputs) {
    const float* const weight = keep(file.read(name + ".weight"));
    return {outputs, inputs, weight, keep(file.read(name + ".bias"))};
  }

  /// The linear layer that ends a branch, times LayerScale's factors if there are any.
  Linear branch_end(const ModelFile& file, const std::string& name, const std::string& scale, int64_t inputs) {
    Linear layer = linear(file, name, config.channels, inputs);
    if (config.layer_scale == 0) return layer;
    std::vector<float>& bias = tensors_.back();
    std::vector<float>& weight = tensors_[tensors_.size() - 2];
    const std::vector<float> factors = file.read(scale);
    for (size_t row = 0; row < factors.size(); ++row) {
      bias[row] *= factors[row];
      const auto begin = weight.begin() + static_cast<int64_t>(row) * inputs;
      for (auto w = begin; w != begin + inputs; ++w) *w *= factors[row];
    }
    return layer;
  }

  std::deque<std::vector<float>> tensors_;  // a deque, so that what lies in it stays where it is
};

Classifier Classifier::load(const std::filesystem::path& path, ThreadPool& pool, int64_t side) {
  const ModelFile file(path);
  const std::string where = file.path().string();
  if (file.config().model != "classifier") {
    throw Error(where + ": expected a classifier, got a " + file.config().model);
  }
  require_whole_mixer(file.config(), where);
  const ModelConfig config = with_side(file.config(), side);
  file.check_fits(config);
  Classifier classifier;
  classifier.parts_ = std::make_shared<const Parts>(file, config, pool);
  return classifier;
}

const ModelConfig& Classifier::config() const { return parts_->config; }

std::vector<float> Classifier::classify(std::span<const uint8_t> image, ThreadPool& pool,
                                        const SeeAttention& see) const {
  const Parts& p = *parts_;
  const ModelConfig& c = p.config;
  if (static_cast<int64_t>(image.size()) != c.height * c.width * c.colors) {
    throw Error("image: expected " + std::to_string(c.height * c.width * c.colors) + " values, got " +
                std::to_string(image.size()));
  }
  const int64_t d = c.channels;
  const int64_t time = positions(c);
  constexpr Rows kHow = Rows::kAsIsFastest;
  std::vector<float> x = p.embed(image, pool);
  std::vector<float> normal(x.size());
  std::vector<float> mixed(x.size());
  std::vector<float> qkv(static_cast<size_t>(time * qkv_channels(c)));
  std::vector<float> hidden(static_cast<size_t>(time * c.mlp_channels));
  for (size_t i = 0; i < p.layers.size(); ++i) {
    const Layer& layer = p.layers[i];
    SeeRow see_row;
    if (see)
      see_row = [&](int64_t head, int64_t t, std::span<const float> w) { see(static_cast<int64_t>(i), head, t, w); };
    apply(layer.mixer_norm, x.data(), time, d, normal.data(), pool);
    apply(layer.qkv, normal.data(), time, kHow, After::kNothing, qkv.data(), pool);
    layer.mixer->forward(qkv.data(), mixed.data(), pool, see_row);
    apply(layer.output, mixed.data(), time, kHow, After::kAddToOld, x.data(), pool);
    apply(layer.mlp_norm, x.data(), time, d, normal.data(), pool);
    apply(layer.up, normal.data(), time, kHow, After::kGelu, hidden.data(), pool);
    apply(layer.down, hidden.data(), time, kHow, After::kAddToOld, x.data(), pool);
  }
  apply(p.last_norm, x.data(), time, d, normal.data(), pool);
  std::vector<float> pooled(normal.begin(), normal.begin() + d);
  if (!c.class_token) {
    for (int64_t i = 0; i < d; ++i) {
      double sum = 0;
      for (int64_t t = 0; t < time; ++t) sum += normal[static_cast<size_t>(t * d + i)];
      pooled[static_cast<size_t>(i)] = static_cast<float>(sum / static_cast<double>(time));
    }
  }
  if (c.classes == 0) return pooled;
  std::vector<float> logits(static_cast<size_t>(c.classes));
  apply(p.head, pooled.data(), 1, kHow, After::kNothing, logits.data(), pool);
  return logits;
}

}  // namespace aft::runtime

#pragma once

#include <torch/nn/module.h>
#include <torch/types.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "aft/config/model_config.h"

// A classifier in plain LibTorch operations over all pairs of positions, in the type of its weights: what the models
// are compared with.

namespace aft::plain {

using Weights = std::map<std::string, torch::Tensor>;

inline Weights weights_of(const torch::nn::Module& module) {
  Weights weights;
  for (const auto& item : module.named_parameters()) weights[item.key()] = item.value().detach().to(torch::kFloat64);
  return weights;
}

inline torch::Tensor linear(const Weights& w, const std::string& name, const torch::Tensor& x) {
  return torch::matmul(x, w.at(name + ".weight").t()) + w.at(name + ".bias");
}

inline torch::Tensor norm(const Weights& w, const std::string& name, const torch::Tensor& x, double eps) {
  const auto centred = x - x.mean(-1, true);
  return centred / (centred.pow(2).mean(-1, true) + eps).sqrt() * w.at(name + ".weight") + w.at(name + ".bias");
}

/// Patch by patch: the values of a patch row by row, its colours beside each other. [B, patches, numbers]
inline torch::Tensor patches(const torch::Tensor& images, int64_t side) {
  std::vector<torch::Tensor> list;
  for (int64_t row = 0; row < images.size(1); row += side) {
    for (int64_t column = 0; column < images.size(2); column += side) {
      list.push_back(images.narrow(1, row, side).narrow(2, column, side).flatten(1));
    }
  }
  return torch::stack(list, 1);
}

/// Softmax attention. [B, T, d] -> [B, T, d], before the output projection.
inline torch::Tensor attention(const Weights& w, const std::string& name, const torch::Tensor& x, int64_t heads) {
  const int64_t d = x.size(2);
  const auto qkv = linear(w, name + ".qkv", x);
  std::vector<torch::Tensor> out;
  for (int64_t h = 0; h < heads; ++h) {
    const auto part = [&](int64_t i) { return qkv.narrow(2, i * d + h * (d / heads), d / heads); };
    const auto scores = torch::matmul(part(0), part(1).transpose(1, 2)) / std::sqrt(static_cast<double>(d / heads));
    out.push_back(torch::matmul(torch::softmax(scores, 2), part(2)));
  }
  return torch::cat(out, 2);
}

/// AFT with any w [H, T, T], or [T, T]: y = gate(q) sum e^(k + w) v / sum e^(k + w), keys one a channel or one a head.
inline torch::Tensor aft(const Weights& w, const std::string& name, const torch::Tensor& x, const torch::Tensor& biases,
                         const std::string& gate, int64_t keys) {
  const int64_t d = x.size(2);
  const auto qkv = linear(w, name + ".qkv", x);
  const int64_t query = qkv.size(2) - keys - d;
  const auto k = qkv.narrow(2, query, keys).repeat_interleave(d / keys, 2);
  const auto v = qkv.narrow(2, query + keys, d);
  // [B, H, T, T', d / H] would do; with one w a channel there is less to say.
  const auto of_channel =
      biases.dim() == 2 ? biases.unsqueeze(0).expand({d, -1, -1}) : biases.repeat_interleave(d / biases.size(0), 0);
  const auto weight = (k.transpose(1, 2).unsqueeze(2) + of_channel.unsqueeze(0)).exp();  // [B, d, T, T']
  const auto mean = torch::matmul(weight, v.transpose(1, 2).unsqueeze(3)).squeeze(3) / weight.sum(3);
  const auto y = mean.transpose(1, 2);
  if (gate == "none") return y;
  const auto q = qkv.narrow(2, 0, d);
  return (gate == "relu" ? torch::relu(q) : torch::sigmoid(q)) * y;
}

/// w of an AFT-conv 2-D from its kernel [H, s, s], `outside` where source and target are further apart. [H, T, T]
inline torch::Tensor spread_kernel(const torch::Tensor& kernel, int64_t rows, int64_t columns, double outside) {
  const int64_t reach = kernel.size(1) / 2;
  auto out = torch::full({kernel.size(0), rows * columns, rows * columns}, outside, torch::kFloat64);
  for (int64_t t = 0; t < rows * columns; ++t) {
    for (int64_t s = 0; s < rows * columns; ++s) {
      const int64_t dy = s / columns - t / columns;
      const int64_t dx = s % columns - t % columns;
      if (std::abs(dy) > reach || std::abs(dx) > reach) continue;
      out.select(2, s).select(1, t).copy_(kernel.select(2, reach + dx).select(1, reach + dy));
    }
  }
  return out;
}

/// The mixer's output before the output projection.
inline torch::Tensor mixed(const ModelConfig& config, const Weights& w, const std::string& name,
                           const torch::Tensor& x) {
  const MixerConfig& mixer = config.mixer;
  const int64_t time = x.size(1);
  if (mixer.name == "attention") return attention(w, name, x, mixer.heads);
  if (mixer.name == "aft_simple") {
    return aft(w, name, x, torch::zeros({time, time}, torch::kFloat64), mixer.gate, x.size(2));
  }
  if (mixer.name == "aft_full") {
    return aft(w, name, x, torch::matmul(w.at(name + ".u"), w.at(name + ".v").t()), mixer.gate, x.size(2));
  }
  auto kernel = w.at(name + ".weight");  // aft_conv2d
  if (mixer.reparameterised) {
    const auto flat = kernel.flatten(1);
    const auto centred = flat - flat.mean(1, true);
    const auto scaled = centred / (centred.pow(2).mean(1, true) + 1e-5).sqrt() * w.at(name + ".gamma").unsqueeze(1);
    kernel = (scaled + w.at(name + ".beta").unsqueeze(1)).view_as(kernel);
  }
  const auto biases =
      spread_kernel(kernel, config.height / config.patch, config.width / config.patch, mixer.global ? 0 : -INFINITY);
  return aft(w, name, x, biases, mixer.gate, mixer.heads);
}

/// images f64 [B, height, width, colors] -> logits, or features where there is no head.
inline torch::Tensor classify(const ModelConfig& config, const Weights& w, const torch::Tensor& images) {
  auto x = linear(w, "embedding.patch", patches(images, config.patch));
  if (config.class_token) x = torch::cat({w.at("embedding.class").expand({x.size(0), 1, -1}), x}, 1);
  if (config.position_embedding) x = x + w.at("embedding.position.weight");
  for (int64_t i = 0; i < config.layers; ++i) {
    const std::string block = "blocks." + std::to_string(i) + ".";
    const auto scale = [&](const char* name) {
      return config.layer_scale > 0 ? w.at(block + name) : torch::ones({config.channels}, torch::kFloat64);
    };
    const auto h = mixed(config, w, block + "mixer", norm(w, block + "mixer_norm", x, config.norm_eps));
    x = x + linear(w, block + "mixer.output", h) * scale("mixer_scale");
    const auto up = linear(w, block + "mlp.up", norm(w, block + "mlp_norm", x, config.norm_eps));
    const auto lifted = up * 0.5 * (1 + torch::erf(up / std::sqrt(2.0)));
    x = x + linear(w, block + "mlp.down", lifted) * scale("mlp_scale");
  }
  x = norm(w, "norm", x, config.norm_eps);
  const auto pooled = config.class_token ? x.select(1, 0) : x.mean(1);
  return config.classes > 0 ? linear(w, "head", pooled) : pooled;
}

}  // namespace aft::plain

#include "naive_model.h"

#include <cmath>
#include <string>

namespace aft::test {
namespace {

using Row = std::vector<double>;
using Table = std::vector<Row>;

Row layer_norm(const Row& x, const std::vector<float>& weight, const std::vector<float>& bias) {
  double mean = 0;
  for (const double value : x) mean += value / static_cast<double>(x.size());
  double variance = 0;
  for (const double value : x) variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
  Row y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
  return y;
}

Row linear(const Row& x, const std::vector<float>& weight, const std::vector<float>* bias) {
  Row y(weight.size() / x.size());
  for (size_t o = 0; o < y.size(); ++o) {
    y[o] = bias == nullptr ? 0.0 : static_cast<double>((*bias)[o]);
    for (size_t i = 0; i < x.size(); ++i) y[o] += static_cast<double>(weight[o * x.size() + i]) * x[i];
  }
  return y;
}

double gelu(double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); }

/// y[t,c] = sigmoid(q[t,c]) sum_t' e^(k[t',c] + w[t,t']) v[t',c] / sum_t' e^(k[t',c] + w[t,t']), t' <= t.
Table aft(const ModelConfig& config, const Tensors& tensors, const std::string& name, const Table& qkv) {
  const auto d = static_cast<size_t>(config.channels);
  const auto width = static_cast<size_t>(config.mixer.factor_channels);
  const bool conv = config.mixer.name == "aft_conv1d";
  const size_t keys = conv ? static_cast<size_t>(config.mixer.heads) : d;
  Table y(qkv.size(), Row(d));
  for (size_t t = 0; t < qkv.size(); ++t) {
    for (size_t c = 0; c < d; ++c) {
      const size_t key = d + c / (d / keys);
      double numerator = 0;
      double denominator = 0;
      for (size_t s = 0; s <= t; ++s) {
        double w = 0;
        if (config.mixer.name == "aft_full" ||
            (config.mixer.name == "aft_local" && static_cast<int64_t>(t - s) < config.mixer.window)) {
          const std::vector<float>& u = tensors.at(name + ".u");
          const std::vector<float>& v = tensors.at(name + ".v");
          for (size_t i = 0; i < width; ++i) w += static_cast<double>(u[t * width + i]) * v[s * width + i];
        }
        if (conv && static_cast<int64_t>(t - s) < config.mixer.window) {
          const auto head = c / (d / keys);
          const auto span = static_cast<size_t>(config.mixer.window);
          Row kernel(span);
          for (size_t j = 0; j < span; ++j) kernel[j] = tensors.at(name + ".weight")[head * span + j];
          double mean = 0;
          for (const double value : kernel) mean += value / static_cast<double>(span);
          double variance = 0;
          for (const double value : kernel) variance += (value - mean) * (value - mean) / static_cast<double>(span);
          w = tensors.at(name + ".gamma")[head] * (kernel[span - 1 - (t - s)] - mean) / std::sqrt(variance + 1e-5) +
              tensors.at(name + ".beta")[head];
        }
        const double weight = std::exp(qkv[s][key] + w);
        numerator += weight * qkv[s][d + keys + c];
        denominator += weight;
      }
      y[t][c] = numerator / denominator / (1.0 + std::exp(-qkv[t][c]));
    }
  }
  return y;
}

Table attention(const ModelConfig& config, const Table& qkv) {
  const auto d = static_cast<size_t>(config.channels);
  const size_t width = d / static_cast<size_t>(config.mixer.heads);
  Table y(qkv.size(), Row(d));
  for (size_t t = 0; t < qkv.size(); ++t) {
    for (size_t head = 0; head < d; head += width) {
      Row weights(t + 1);
      double sum = 0;
      for (size_t s = 0; s <= t; ++s) {
        double score = 0;
        for (size_t c = head; c < head + width; ++c) score += qkv[t][c] * qkv[s][d + c];
        weights[s] = std::exp(score / std::sqrt(static_cast<double>(width)));
        sum += weights[s];
      }
      for (size_t s = 0; s <= t; ++s) {
        for (size_t c = head; c < head + width; ++c) y[t][c] += weights[s] / sum * qkv[s][2 * d + c];
      }
    }
  }
  return y;
}

}  // namespace

std::vector<double> naive_logits(const ModelConfig& config, const Tensors& tensors, std::span<const uint8_t> tokens) {
  const auto d = static_cast<size_t>(config.channels);
  const auto& token = tensors.at("embedding.token.weight");
  const auto& position = tensors.at("embedding.position.weight");
  std::vector<size_t> rows(tokens.begin(), tokens.end());  // of the table of tokens
  if (config.model == "pixel_lm") rows.insert(rows.begin(), 256);
  Table x(rows.size(), Row(d));
  for (size_t t = 0; t < rows.size(); ++t) {
    for (size_t c = 0; c < d; ++c) x[t][c] = static_cast<double>(token[rows[t] * d + c]) + position[t * d + c];
  }
  const auto add = [](Row& to, const Row& what) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += what[i];
  };
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string name = "blocks." + std::to_string(layer) + ".";
    const auto norm = [&](const std::string& which, const Row& row) {
      return layer_norm(row, tensors.at(name + which + ".weight"), tensors.at(name + which + ".bias"));
    };
    const auto project = [&](const std::string& which, const Row& row) {
      return linear(row, tensors.at(name + which + ".weight"), &tensors.at(name + which + ".bias"));
    };
    Table qkv;
    for (const Row& row : x) qkv.push_back(project("mixer.qkv", norm("mixer_norm", row)));
    const Table mixed =
        config.mixer.name == "attention" ? attention(config, qkv) : aft(config, tensors, name + "mixer", qkv);
    for (size_t t = 0; t < x.size(); ++t) {
      add(x[t], project("mixer.output", mixed[t]));
      Row hidden = project("mlp.up", norm("mlp_norm", x[t]));
      for (double& value : hidden) value = gelu(value);
      add(x[t], project("mlp.down", hidden));
    }
  }
  std::vector<double> logits;
  for (const Row& row : x) {
    const Row normal = layer_norm(row, tensors.at("norm.weight"), tensors.at("norm.bias"));
    const Row values = linear(normal, tensors.at("head.weight"), nullptr);
    logits.insert(logits.end(), values.begin(), values.end());
  }
  return logits;
}

}  // namespace aft::test

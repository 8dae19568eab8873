#pragma once

#include <torch/types.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

// The mixers that AFT is compared with, straight from their equations: loops over numbers, one sequence, f64.

namespace aft::plain {

using Rows = std::vector<std::vector<double>>;
using Parameters = std::map<std::string, torch::Tensor>;  // f64, contiguous

struct Setting {
  std::string mixer;  // "attention", "linear", "window", "linformer", "random", "dense", "mlp"
  bool causal = true;
  int64_t window = 4;
  int64_t positions = 16;
  int64_t rank = 5;
  int64_t hidden = 9;
  int64_t heads = 3;
  int64_t channels = 6;
};

inline double number(const torch::Tensor& table, const std::vector<int64_t>& index) {
  int64_t at = 0;
  for (size_t i = 0; i < index.size(); ++i) at = at * table.size(static_cast<int64_t>(i)) + index[i];
  return table.data_ptr<double>()[at];
}

inline Rows linear(const Parameters& p, const std::string& name, const Rows& x) {
  const auto& weight = p.at(name + ".weight");
  Rows y(x.size(), std::vector<double>(static_cast<size_t>(weight.size(0))));
  for (size_t t = 0; t < x.size(); ++t) {
    for (int64_t o = 0; o < weight.size(0); ++o) {
      double sum = number(p.at(name + ".bias"), {o});
      for (int64_t i = 0; i < weight.size(1); ++i) sum += number(weight, {o, i}) * x[t][static_cast<size_t>(i)];
      y[t][static_cast<size_t>(o)] = sum;
    }
  }
  return y;
}

inline Rows columns(const Rows& x, int64_t begin, int64_t count) {
  Rows y;
  for (const auto& row : x) y.emplace_back(row.begin() + begin, row.begin() + begin + count);
  return y;
}

/// y[t] = sum_s weight(t, s) v[s] / sum_s weight(t, s)
inline Rows average(size_t time, const Rows& v, const std::function<double(size_t t, size_t s)>& weight) {
  Rows y(time, std::vector<double>(v[0].size()));
  for (size_t t = 0; t < time; ++t) {
    double den = 0;
    for (size_t s = 0; s < v.size(); ++s) {
      const double w = weight(t, s);
      den += w;
      for (size_t c = 0; c < v[s].size(); ++c) y[t][c] += w * v[s][c];
    }
    for (auto& value : y[t]) value /= den;
  }
  return y;
}

inline double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

inline double phi(double x) { return x > 0 ? x + 1 : std::exp(x); }

/// [rank][T] of `table` times [T][dk]
inline Rows mixtures(const torch::Tensor& table, const Rows& x) {
  Rows y(static_cast<size_t>(table.size(0)), std::vector<double>(x[0].size()));
  for (size_t r = 0; r < y.size(); ++r) {
    for (size_t t = 0; t < x.size(); ++t) {
      const double factor = number(table, {static_cast<int64_t>(r), static_cast<int64_t>(t)});
      for (size_t c = 0; c < x[t].size(); ++c) y[r][c] += factor * x[t][c];
    }
  }
  return y;
}

/// The scores of the dense Synthesizer's head h: [T][positions].
inline Rows dense_scores(const Parameters& p, int64_t h, const Rows& x) {
  Parameters own;
  for (const auto& [name, table] : p) {
    if (name.starts_with("hidden.") || name.starts_with("scores.")) own[name] = table[h].contiguous();
  }
  Rows lifted = linear(own, "hidden", x);
  for (auto& row : lifted) {
    for (auto& value : row) value = value > 0 ? value : 0;
  }
  return linear(own, "scores", lifted);
}

inline Rows mlp_mixer(const Parameters& p, const Rows& x) {
  Rows y(x.size(), std::vector<double>(x[0].size()));
  for (size_t c = 0; c < x[0].size(); ++c) {
    Rows channel(1);
    for (const auto& row : x) channel[0].push_back(row[c]);
    Rows lifted = linear(p, "up", channel);
    for (auto& value : lifted[0]) value *= 0.5 * (1 + std::erf(value / std::sqrt(2.0)));
    const Rows mixed = linear(p, "down", lifted);
    for (size_t t = 0; t < x.size(); ++t) y[t][c] = mixed[0][t];
  }
  return y;
}

inline Rows forward(const Setting& at, const Parameters& p, const Rows& x) {
  if (at.mixer == "mlp") return mlp_mixer(p, x);
  const int64_t width = at.channels / at.heads;
  const bool has_qkv = p.count("qkv.weight") > 0;
  const Rows projected = linear(p, has_qkv ? "qkv" : "value", x);
  const auto visible = [&](size_t t, size_t s) {
    const auto back = static_cast<int64_t>(t) - static_cast<int64_t>(s);
    if (at.causal && back < 0) return false;
    return at.mixer != "window" || std::abs(back) < at.window;
  };
  Rows joined(x.size());
  for (int64_t h = 0; h < at.heads; ++h) {
    const Rows q = columns(projected, h * width, width);
    Rows k = has_qkv ? columns(projected, at.channels + h * width, width) : Rows();
    Rows v = columns(projected, (has_qkv ? 2 * at.channels : 0) + h * width, width);
    std::function<double(size_t, size_t)> weight;
    const auto of_softmax = [&](size_t t, size_t s) {
      return std::exp(dot(q[t], k[s]) / std::sqrt(static_cast<double>(width)));
    };
    Rows scores;
    if (at.mixer == "attention" || at.mixer == "window") {
      weight = [&](size_t t, size_t s) { return visible(t, s) ? of_softmax(t, s) : 0; };
    } else if (at.mixer == "linformer") {
      k = mixtures(p.at("e"), k);
      v = mixtures(p.at("f"), v);
      weight = of_softmax;
    } else if (at.mixer == "linear") {
      weight = [&](size_t t, size_t s) {
        double sum = 0;
        for (size_t c = 0; c < q[t].size(); ++c) sum += phi(q[t][c]) * phi(k[s][c]);
        return visible(t, s) ? sum : 0;
      };
    } else if (at.mixer == "random") {
      weight = [&, h](size_t t, size_t s) {
        return visible(t, s) ? std::exp(number(p.at("r"), {h, static_cast<int64_t>(t), static_cast<int64_t>(s)})) : 0;
      };
    } else if (at.mixer == "dense") {
      scores = dense_scores(p, h, columns(x, h * width, width));
      weight = [&](size_t t, size_t s) { return visible(t, s) ? std::exp(scores[t][s]) : 0; };
    } else {
      throw std::invalid_argument(at.mixer);
    }
    const Rows y = average(x.size(), v, weight);
    for (size_t t = 0; t < x.size(); ++t) joined[t].insert(joined[t].end(), y[t].begin(), y[t].end());
  }
  return linear(p, "output", joined);
}

/// x [B, T, d] f64 -> [B, T, d].
inline torch::Tensor forward(const Setting& at, const Parameters& p, const torch::Tensor& x) {
  const auto in = x.contiguous();
  auto out = torch::empty_like(in);
  for (int64_t b = 0; b < x.size(0); ++b) {
    Rows rows(static_cast<size_t>(x.size(1)), std::vector<double>(static_cast<size_t>(x.size(2))));
    const double* value = in.data_ptr<double>() + b * x.size(1) * x.size(2);
    for (auto& row : rows) {
      for (auto& each : row) each = *value++;
    }
    double* to = out.data_ptr<double>() + b * x.size(1) * x.size(2);
    for (const auto& row : forward(at, p, rows)) {
      for (const double each : row) *to++ = each;
    }
  }
  return out;
}

}  // namespace aft::plain

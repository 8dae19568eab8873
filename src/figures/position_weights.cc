#include "figures/position_weights.h"

#include <cmath>
#include <cstdlib>
#include <string>

#include "aft/error.h"
#include "aft/runtime/model_file.h"
#include "config/architecture.h"
#include "runtime/conv_kernels.h"

namespace aft {
namespace {

/// Kernels [H, ...], a head each.
void add_kernels(const runtime::ModelFile& file, int64_t layer, const std::string& mixer,
                 std::vector<PositionWeights>& list) {
  const ModelConfig& config = file.config();
  const std::vector<float> kernels = runtime::conv_kernels(file, mixer);
  const int64_t columns = config.mixer.window;
  const int64_t rows = config.mixer.name == "aft_conv2d" ? columns : 1;
  for (int64_t head = 0; head < config.mixer.heads; ++head) {
    const auto begin = kernels.begin() + head * rows * columns;
    list.push_back({layer, head, rows, columns, true, {begin, begin + rows * columns}});
  }
}

/// u v^T [T, T], of aft_local within its window.
void add_matrix(const runtime::ModelFile& file, int64_t layer, const std::string& mixer,
                std::vector<PositionWeights>& list) {
  const ModelConfig& config = file.config();
  const int64_t time = positions(config);
  const int64_t width = config.mixer.factor_channels;
  const std::vector<float> u = file.read(mixer + "u");
  const std::vector<float> v = file.read(mixer + "v");
  PositionWeights matrix = {layer, 0, time, time, false, std::vector<double>(static_cast<size_t>(time * time))};
  for (int64_t t = 0; t < time; ++t) {
    for (int64_t s = 0; s < time; ++s) {
      const bool local = config.mixer.name == "aft_local";
      if (local && (std::abs(t - s) >= config.mixer.window || (is_causal(config) && s > t))) continue;
      double w = 0;
      for (int64_t i = 0; i < width; ++i) {
        w += static_cast<double>(u[static_cast<size_t>(t * width + i)]) * v[static_cast<size_t>(s * width + i)];
      }
      matrix.w[static_cast<size_t>(t * time + s)] = w;
    }
  }
  list.push_back(std::move(matrix));
}

}  // namespace

std::vector<PositionWeights> position_weights(const std::filesystem::path& model) {
  const runtime::ModelFile file(model);
  const std::string& mixer = file.config().mixer.name;
  const bool kernels = mixer.starts_with("aft_conv");
  if (!kernels && mixer != "aft_local" && mixer != "aft_full") {
    throw Error(file.path().string() + ": expected a model with position biases (aft_conv2d, aft_conv1d, aft_local, " +
                "aft_full), got one of " + mixer);
  }
  constexpr int64_t kMostPositions = 4096;  // of a matrix in memory
  if (!kernels && positions(file.config()) > kMostPositions) {
    throw Error(file.path().string() + ": expected at most " + std::to_string(kMostPositions) +
                " positions for matrices of all pairs, got " + std::to_string(positions(file.config())));
  }
  std::vector<PositionWeights> list;
  for (int64_t layer = 0; layer < file.config().layers; ++layer) {
    const std::string name = "blocks." + std::to_string(layer) + ".mixer.";
    if (kernels) {
      add_kernels(file, layer, name, list);
    } else {
      add_matrix(file, layer, name, list);
    }
  }
  return list;
}

std::vector<double> pair_weights(const PositionWeights& weights, const ModelConfig& config) {
  const auto [rows, columns] = patch_grid(config);
  const int64_t first = config.class_token ? 1 : 0;
  const int64_t time = rows * columns;
  std::vector<double> pairs(static_cast<size_t>(time * time));
  const int64_t reach_y = weights.rows / 2;
  const int64_t reach_x = weights.columns / 2;
  for (int64_t t = 0; t < time; ++t) {
    double sum = 0;
    for (int64_t s = 0; s < time; ++s) {
      double w = 0;
      bool counts = true;
      if (!weights.is_kernel) {
        w = weights.w[static_cast<size_t>((first + t) * weights.columns + first + s)];
      } else {
        // Along time for a 1-D kernel, over the grid for a 2-D one.
        const bool flat = weights.rows == 1;
        const int64_t y = flat ? 0 : s / columns - t / columns;
        const int64_t x = flat ? s - t : s % columns - t % columns;
        const bool inside = std::abs(y) <= reach_y && std::abs(x) <= reach_x;
        if (inside) w = weights.w[static_cast<size_t>((reach_y + y) * weights.columns + reach_x + x)];
        counts = inside || config.mixer.global;
      }
      const double weight = counts ? std::exp(w) : 0;
      pairs[static_cast<size_t>(t * time + s)] = weight;
      sum += weight;
    }
    for (int64_t s = 0; s < time; ++s) pairs[static_cast<size_t>(t * time + s)] /= sum;
  }
  return pairs;
}

}  // namespace aft

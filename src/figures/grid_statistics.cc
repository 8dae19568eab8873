#include "figures/grid_statistics.h"

#include <string>

#include "aft/error.h"

namespace aft {
namespace {

void require_square(std::span<const double> weights, GridSize grid) {
  const int64_t time = grid[0] * grid[1];
  if (static_cast<int64_t>(weights.size()) == time * time) return;
  throw Error("weights: expected one for every pair of " + std::to_string(time) + " places, got " +
              std::to_string(weights.size()));
}

}  // namespace

std::vector<double> relative_map(std::span<const double> weights, GridSize grid) {
  require_square(weights, grid);
  const auto [rows, columns] = grid;
  const int64_t time = rows * columns;
  const int64_t width = 2 * columns - 1;
  std::vector<double> map(static_cast<size_t>((2 * rows - 1) * width));
  for (int64_t t = 0; t < time; ++t) {
    for (int64_t s = 0; s < time; ++s) {
      const int64_t y = rows - 1 + s / columns - t / columns;
      const int64_t x = columns - 1 + s % columns - t % columns;
      map[static_cast<size_t>(y * width + x)] += weights[static_cast<size_t>(t * time + s)];
    }
  }
  for (int64_t y = 0; y < 2 * rows - 1; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      const int64_t pairs = (rows - std::abs(y - rows + 1)) * (columns - std::abs(x - columns + 1));
      map[static_cast<size_t>(y * width + x)] /= static_cast<double>(pairs);
    }
  }
  return map;
}

double share_within(std::span<const double> weights, GridSize grid, double radius) {
  require_square(weights, grid);
  const int64_t columns = grid[1];
  const int64_t time = grid[0] * columns;
  double sum = 0;
  int64_t targets = 0;
  for (int64_t t = 0; t < time; ++t) {
    double near = 0;
    double all = 0;
    for (int64_t s = 0; s < time; ++s) {
      const auto dy = static_cast<double>(s / columns - t / columns);
      const auto dx = static_cast<double>(s % columns - t % columns);
      const double weight = weights[static_cast<size_t>(t * time + s)];
      all += weight;
      if (dy * dy + dx * dx <= radius * radius) near += weight;
    }
    if (all == 0) continue;
    sum += near / all;
    ++targets;
  }
  return targets > 0 ? sum / static_cast<double>(targets) : 0;
}

double uniform_share_within(GridSize grid, double radius) {
  const auto time = static_cast<size_t>(grid[0] * grid[1]);
  return share_within(std::vector<double>(time * time, 1.0), grid, radius);
}

}  // namespace aft

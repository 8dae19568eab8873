#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "aft/ops/grid.h"

// The one list of cases of the grid operator.

namespace aft::ops::test {

struct GridCase {
  std::string input = "normal";  // class of input, as for the windowed operator (hard_inputs)
  int64_t batch = 1;
  int64_t height = 1;
  int64_t width = 1;
  int64_t channels = 1;
  int64_t heads = 1;
  bool key_per_head = false;
  int64_t kernel = 1;
  Gate gate = Gate::kSigmoid;
  bool masked = false;  // a key padding mask; it hides the whole of the last batch row
  uint64_t seed = 0;
};

inline GridShape shape_of(const GridCase& c) {
  return {c.batch, c.height, c.width, c.channels, c.heads, c.key_per_head ? c.heads : c.channels, c.kernel, c.gate};
}

inline std::string describe(const GridCase& c) {
  const char* gate = c.gate == Gate::kSigmoid ? "sigmoid" : c.gate == Gate::kRelu ? "relu" : "none";
  return "conv2d input=" + c.input + " B=" + std::to_string(c.batch) + " grid=" + std::to_string(c.height) + "x" +
         std::to_string(c.width) + " d=" + std::to_string(c.channels) + " H=" + std::to_string(c.heads) +
         (c.key_per_head ? " key-per-head" : "") + " s=" + std::to_string(c.kernel) + " gate=" + gate +
         (c.masked ? " masked" : "") + " seed=" + std::to_string(c.seed);
}

/// Every grid with every kernel; heads, widths, keys, gates and masks take turns.
inline std::vector<GridCase> grid_cases() {
  constexpr int64_t kGrids[][2] = {{1, 1},  {1, 2},   {1, 37}, {29, 1}, {3, 4},
                                   {7, 13}, {14, 14}, {0, 5},  {4, 0},  {18, 5}};
  std::vector<GridCase> cases;
  uint64_t n = 0;
  for (const auto& grid : kGrids) {
    for (const int64_t kernel : {1, 3, 7, 11, 25, 31}) {
      GridCase c;
      c.height = grid[0], c.width = grid[1], c.kernel = kernel;
      c.seed = ++n;
      // The dense reference costs T^2 d: large grids are narrow.
      const bool large = grid[0] * grid[1] > 60;
      c.channels = large ? (n % 2 == 0 ? 6 : 3) : (n % 2 == 0 ? 51 : 21);
      c.heads = n % 3 == 0 ? 1 : n % 3 == 1 ? 3 : c.channels;
      c.key_per_head = n % 4 < 2 && c.heads < c.channels;
      c.batch = large ? 1 + static_cast<int64_t>(n % 5 == 1) : 2 + static_cast<int64_t>(n % 2);
      c.gate = n % 5 == 2 ? Gate::kRelu : n % 5 == 4 ? Gate::kNone : Gate::kSigmoid;
      c.masked = n % 4 == 2 && c.batch > 1;
      cases.push_back(c);
    }
  }
  // Widths past a panel and past a vector; heads that straddle them; a kernel that covers part of a long grid.
  const auto add = [&](int64_t height, int64_t width, int64_t channels, int64_t heads, bool key_per_head,
                       int64_t kernel) {
    GridCase c;
    c.batch = 2, c.height = height, c.width = width, c.channels = channels, c.heads = heads;
    c.key_per_head = key_per_head, c.kernel = kernel, c.masked = kernel == 5, c.seed = 500 + cases.size();
    cases.push_back(c);
  };
  add(4, 5, 131, 131, false, 3);
  add(4, 5, 132, 4, true, 5);
  add(5, 4, 130, 65, true, 5);
  add(3, 6, 96, 1, true, 3);
  add(2, 70, 5, 5, false, 9);
  add(70, 2, 5, 1, false, 9);
  add(9, 41, 2, 1, false, 73);
  return cases;
}

/// Hard numbers: many small images rather than few large ones.
inline std::vector<GridCase> hard_grid_cases(const std::string& input) {
  constexpr int64_t kGrids[][2] = {{1, 1}, {1, 9}, {5, 1}, {4, 5}, {7, 6}, {14, 14}};
  std::vector<GridCase> cases;
  uint64_t n = 0;
  for (const auto& grid : kGrids) {
    for (const int64_t kernel : {1, 3, 5, 9, 11, 31}) {
      GridCase c;
      c.input = input;
      c.height = grid[0], c.width = grid[1], c.kernel = kernel;
      c.seed = 2000 + ++n;
      const bool large = grid[0] * grid[1] > 60;
      c.batch = large ? 1 : 5;
      c.channels = large ? 6 : 12;
      c.heads = n % 3 == 0 ? 3 : n % 3 == 1 ? 1 : c.channels;
      c.key_per_head = n % 5 == 3 && c.heads < c.channels;
      c.masked = n % 6 == 4 && c.batch > 1;
      c.gate = n % 7 == 0 ? Gate::kNone : Gate::kSigmoid;
      cases.push_back(c);
    }
  }
  return cases;
}

}  // namespace aft::ops::test

#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

// What weights between the places of a grid say about distance. Places lie row by row; weights [T, T] have a row for
// each target and a column for each source, T = rows x columns.

namespace aft {

/// Rows and columns of a grid.
using GridSize = std::array<int64_t, 2>;

/// The mean weight at each offset, [2 rows - 1, 2 columns - 1]: entry (rows - 1 + dy, columns - 1 + dx) is the mean
/// over all pairs whose source lies dy rows below and dx columns right of the target (Zhai et al. 2021, Figure 1).
std::vector<double> relative_map(std::span<const double> weights, GridSize grid);

/// The share of the weights of a target that lies within a Euclidean distance of `radius` places, averaged over
/// targets. Rows need not sum to 1; one that sums to 0 is left out.
double share_within(std::span<const double> weights, GridSize grid, double radius);

/// What share_within() gives for equal weights.
double uniform_share_within(GridSize grid, double radius);

}  // namespace aft

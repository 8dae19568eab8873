#pragma once

#include <algorithm>
#include <cstdint>

#include "aft/ops/grid.h"

// How the grid operator is cut into tasks: by shape and element type alone, never by threads.

namespace aft::ops::grid {

/// Targets of a grid row computed together in registers.
constexpr int64_t kTargets = 4;

/// The part of the kernel that can meet the grid: |dy| <= y, |dx| <= x.
struct GridReach {
  int64_t y = 0, x = 0;
  constexpr int64_t rows() const { return 2 * y + 1; }
  constexpr int64_t columns() const { return 2 * x + 1; }
  constexpr int64_t size() const { return rows() * columns(); }
};

inline GridReach grid_reach(const GridShape& s) {
  const int64_t reach = (s.kernel - 1) / 2;
  return {std::clamp<int64_t>(s.height - 1, 0, reach), std::clamp<int64_t>(s.width - 1, 0, reach)};
}

/// Batch rows [first, last), channels [begin, end).
struct GridTask {
  int64_t first, last, begin, end;

  /// (row, channel) pairs.
  int64_t pairs(const GridShape& s) const { return (last - first) * s.time() * (end - begin); }
};

/// T is the type of the sums. Channels go by panels of 128 bytes, two lines of memory, and whole heads where a head
/// shares its key. Batch rows go by chunks, for each of which every channel has its own sum of the kernel's gradient,
/// worth a twentieth of the chunk's q, k and v.
template <typename T>
class GridPlan {
 public:
  explicit GridPlan(const GridShape& s) : shape_(s) {
    constexpr int64_t kLeast = 128 / static_cast<int64_t>(sizeof(T));
    const int64_t head_width = std::max<int64_t>(1, s.channels / s.heads);
    panel_ = s.key_channels == s.channels ? kLeast : std::max<int64_t>(1, kLeast / head_width) * head_width;
    const int64_t time = std::max<int64_t>(1, s.time());
    chunk_ = (7 * grid_reach(s).size() + time - 1) / time;
  }
  int64_t chunks() const { return ceil_div(shape_.batch, chunk_); }
  int64_t tasks() const { return chunks() * ceil_div(shape_.channels, panel_); }
  int64_t chunk_of(int64_t task) const { return task / ceil_div(shape_.channels, panel_); }
  /// Neighbouring panels next to each other: threads then read neighbouring lines.
  GridTask task(int64_t i) const {
    const int64_t first = chunk_of(i) * chunk_;
    const int64_t begin = i % ceil_div(shape_.channels, panel_) * panel_;
    return {first, std::min(first + chunk_, shape_.batch), begin, std::min(begin + panel_, shape_.channels)};
  }

 private:
  static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
  GridShape shape_;
  int64_t panel_ = 1, chunk_ = 1;
};

}  // namespace aft::ops::grid

#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace aft {

/// A matrix to be drawn as a picture, a square of colour a number; row 0 is above.
struct Panel {
  std::string title;
  int64_t rows = 0;
  int64_t columns = 0;
  std::vector<double> values;  // [rows, columns]
};

enum class Colours {
  kFromZero,    // from 0, dark, to the panel's largest, light
  kAroundZero,  // 0 is white, below it blue, above it red; the same distance on both sides
};

/// Draws panels beside each other, `across` in a row, each in a scale of its own, into a PNG file by gnuplot. Throws
/// aft::Error if there are none, or one is not rows x columns, and as draw_by_gnuplot().
void draw_panels(const std::vector<Panel>& panels, int64_t across, const std::string& title, Colours colours,
                 const std::filesystem::path& png);

}  // namespace aft

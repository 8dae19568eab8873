#include "figures/panels.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include "aft/error.h"
#include "figures/gnuplot.h"

namespace aft {

void draw_panels(const std::vector<Panel>& panels, int64_t across, const std::string& title, Colours colours,
                 const std::filesystem::path& png) {
  constexpr int64_t kAbove = 40;  // pixels
  constexpr int64_t kLetter = 8;  // of a title, about
  if (panels.empty() || across < 1) throw Error("figure: expected at least one panel, got none");
  int64_t side = std::max<int64_t>(150, kLetter * std::ssize(title) / across);  // of a panel
  for (const Panel& panel : panels) side = std::max(side, kLetter * std::ssize(panel.title));
  const auto count = static_cast<int64_t>(panels.size());
  const int64_t down = (count + across - 1) / across;
  std::ostringstream script;
  script.precision(7);
  script << "set multiplot layout " << down << "," << across << " title " << gnuplot_text(title)
         << " margins 0.01,0.99,0.01,"
         << 1 - static_cast<double>(kAbove + 24) / static_cast<double>(kAbove + side * down) << " spacing "
         << 8.0 / static_cast<double>(side * across) << "," << 24.0 / static_cast<double>(side * down)
         << "\nunset key\nunset tics\nunset colorbox\nset border lw 0.5\n";
  script << (colours == Colours::kFromZero
                 ? "set palette defined (0 '#440154', 1 '#3b528b', 2 '#21918c', 3 '#5ec962', 4 '#fde725')\n"
                 : "set palette defined (-1 '#053061', -0.5 '#4393c3', 0 '#ffffff', 0.5 '#d6604d', 1 '#67001f')\n");
  for (int64_t i = 0; i < count; ++i) {
    const Panel& panel = panels[static_cast<size_t>(i)];
    if (static_cast<int64_t>(panel.values.size()) != panel.rows * panel.columns || panel.values.empty()) {
      throw Error("figure: expected " + std::to_string(panel.rows * panel.columns) + " numbers in a panel, got " +
                  std::to_string(panel.values.size()));
    }
    double most = 0;
    for (const double value : panel.values) most = std::max(most, std::abs(value));
    if (most == 0) most = 1;  // an empty range is an error of gnuplot's
    // gnuplot smooths what it enlarges: a number is drawn as a square of them, so that it stays one.
    const int64_t fold = std::max<int64_t>(2, side / std::max(panel.rows, panel.columns));
    script << "$p" << i << " << EOD\n";
    for (int64_t row = 0; row < fold * panel.rows; ++row) {
      for (int64_t column = 0; column < fold * panel.columns; ++column) {
        const int64_t at = row / fold * panel.columns + column / fold;
        script << (column > 0 ? " " : "") << panel.values[static_cast<size_t>(at)];
      }
      script << '\n';
    }
    script << "EOD\nset title " << gnuplot_text(panel.title)
           << " offset 0,-0.8\nset xrange [-0.5:" << static_cast<double>(fold * panel.columns) - 0.5
           << "]\nset yrange [" << static_cast<double>(fold * panel.rows) - 0.5 << ":-0.5]\nset cbrange ["
           << (colours == Colours::kFromZero ? 0 : -most) << ":" << most << "]\nplot $p" << i << " matrix with image\n";
  }
  script << "unset multiplot\n";
  draw_by_gnuplot(script.str(), {side * across, kAbove + side * down}, png);
}

}  // namespace aft

#pragma once

#include <CLI/CLI.hpp>

namespace aft::app {

// Each adds its command, which runs when it was parsed.
void add_plot(CLI::App& app);
void add_figure(CLI::App& app);
void add_import(CLI::App& app);

/// The figures of what classifiers learned about distance, for add_figure().
void add_grid_figures(CLI::App& figure);

}  // namespace aft::app

#pragma once

#include <CLI/CLI.hpp>

namespace aft::app {

// Each adds its command, which runs when it was parsed.
void add_plot(CLI::App& app);
void add_figure(CLI::App& app);

}  // namespace aft::app

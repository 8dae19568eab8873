#pragma once

#include <CLI/CLI.hpp>

namespace aft::app {

// Each adds its command, which runs when it was parsed.
void add_info(CLI::App& app);
void add_generate(CLI::App& app);
void add_sample(CLI::App& app);
void add_classify(CLI::App& app);
void add_eval(CLI::App& app);
void add_bench(CLI::App& app);

}  // namespace aft::app

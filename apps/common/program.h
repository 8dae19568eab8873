#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace aft::app {

/// The main() of a program: parses the command line, runs `command` (for what the callbacks of `app` have not done) and
/// checks that all output arrived. Every error becomes one line on standard error and an exit code of exit_codes.h.
/// A file size limit shows as a failed write, like a full disk.
int run_program(CLI::App& app, int argc, char** argv, const std::function<int()>& command);

}  // namespace aft::app

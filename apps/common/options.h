#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "aft/runtime/sampler.h"

// Options and arguments of both programs. A value reaches the program as it was typed, or is refused with the name of
// its option as typed: CLI11's own conversions read 010 as eight, '' as zero and [a] as a list.

namespace aft::app {

CLI::Option* add_text(CLI::App& command, const std::string& name, std::string& value, const std::string& help);

/// An argument given once or more often, or an option that may be repeated.
CLI::Option* add_texts(CLI::App& command, const std::string& name, std::vector<std::string>& values,
                       const std::string& help);

/// One of `choices`.
CLI::Option* add_choice(CLI::App& command, const std::string& name, std::string& value,
                        const std::vector<std::string>& choices, const std::string& help);

/// A whole number in decimal digits, from `least` to `most`.
CLI::Option* add_integer(CLI::App& command, const std::string& name, int64_t& value, int64_t least, int64_t most,
                         const std::string& help);
CLI::Option* add_integer(CLI::App& command, const std::string& name, uint64_t& value, const std::string& help);

/// --threads, of both programs.
CLI::Option* add_threads(CLI::App& command, int64_t& threads);

/// A decimal number that f32 holds, from `least` (or, if `open`, above it) to `most`.
struct Interval {
  float least = 0;
  float most = std::numeric_limits<float>::max();
  bool open = false;
};
CLI::Option* add_number(CLI::App& command, const std::string& name, float& value, const Interval& interval,
                        const std::string& help);

/// --temperature, --top-p, --top-k and --seed. `token`: what is drawn; `seed_help`: what the seed decides.
void add_sampler(CLI::App& command, runtime::SamplerOptions& sampler, const std::string& token,
                 const std::string& seed_help);

/// Parses the command line. Throws aft::Error for an unknown command or option, which proposes the nearest one, and for
/// arguments that are too many; CLI::ParseError for the rest, help included.
void parse(CLI::App& app, int argc, char** argv);

}  // namespace aft::app

#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>

namespace aft {

/// Whether the program gnuplot is on PATH.
bool gnuplot_exists();

/// The text as gnuplot reads it between double quotes; control characters, which would end the command, become "?".
std::string gnuplot_text(const std::string& text);

/// Runs gnuplot's commands, which plot one picture of size [width, height] in pixels, and writes it, whole or not at
/// all. Throws aft::Error if gnuplot is missing, aft::SystemError if it fails.
void draw_by_gnuplot(const std::string& commands, std::array<int64_t, 2> size, const std::filesystem::path& png);

}  // namespace aft

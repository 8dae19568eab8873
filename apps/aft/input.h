#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <vector>

namespace aft::app {

/// All bytes of a file, or of standard input for "-"; .xz is decoded. Throws aft::Error.
std::vector<uint8_t> read_text(const std::filesystem::path& path);

/// Standard input, piece by piece as it comes: `take` is given each.
void read_standard_input(const std::function<void(std::span<const uint8_t>)>& take);

/// Whether standard input is a pipe or a file, so that it has an end and somebody meant it for us.
bool standard_input_is_piped();

}  // namespace aft::app

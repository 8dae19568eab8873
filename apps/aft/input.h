#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace aft::app {

/// All bytes of a file; a name that ends in .xz is decoded. Throws aft::Error.
std::vector<uint8_t> read_text(const std::filesystem::path& path);

/// All bytes of standard input.
std::vector<uint8_t> read_standard_input();

/// Whether standard input is a pipe or a file, so that it has an end and somebody meant it for us.
bool standard_input_is_piped();

}  // namespace aft::app

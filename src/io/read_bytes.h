#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace aft {

/// Appends what the open descriptor `file` still holds to `out`, .xz (one or several streams, checksums verified)
/// decoded. `name`: of the file, for packing_of() and errors. Throws aft::Error.
void append_bytes(int file, const std::filesystem::path& name, std::vector<uint8_t>& out);

}  // namespace aft

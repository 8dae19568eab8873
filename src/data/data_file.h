#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

// Files of data sets: plain, or packed as .gz or .xz.

namespace aft {

/// `name` in `folder`: as it is, or else packed as name.gz, or else as name.xz; nothing if none of them is there. What
/// is there but cannot be read, a dangling link too, is found.
std::optional<std::filesystem::path> find_data_file(const std::filesystem::path& folder, const std::string& name);

/// find_data_file(), or aft::Error. `format`: what the folder should hold, in words.
std::filesystem::path require_data_file(const std::filesystem::path& folder, const std::string& name,
                                        const std::string& format);

/// All that the open descriptor `file` holds, unpacked, checksums verified: gzip (one or several members) if `name`
/// ends in .gz, else as append_bytes() says. Throws aft::Error naming `name`.
std::vector<uint8_t> read_data_file(int file, const std::filesystem::path& name);

}  // namespace aft

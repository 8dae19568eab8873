#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace aft {

/// Both append what the open descriptor `file` still holds to `out` and return an empty string, or what went wrong.
std::string append_plain(int file, std::vector<uint8_t>& out);
std::string append_xz(int file, std::vector<uint8_t>& out);  // one or several .xz streams, checksums verified

}  // namespace aft

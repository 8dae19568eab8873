#pragma once

#include <cstddef>
#include <filesystem>
#include <vector>

namespace aft {

struct FilePart {
  const void* data = nullptr;
  size_t bytes = 0;
};

/// write_file_atomically() for a file given in parts.
void write_parts_atomically(const std::filesystem::path& path, const std::vector<FilePart>& parts);

}  // namespace aft

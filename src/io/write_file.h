#pragma once

#include <cstddef>
#include <filesystem>
#include <vector>

namespace aft {

/// Writes any bytes under the promise of write_safetensors() (aft/io/safetensors.h): whole, or not at all.
void write_file_atomically(const std::filesystem::path& path, const void* data, size_t bytes);

struct FilePart {
  const void* data = nullptr;
  size_t bytes = 0;
};

/// The same for a file given in parts.
void write_parts_atomically(const std::filesystem::path& path, const std::vector<FilePart>& parts);

}  // namespace aft

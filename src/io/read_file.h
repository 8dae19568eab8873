#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "io/file_descriptor.h"

namespace aft {

/// Opens a file to read. Throws aft::Error naming it.
FileDescriptor open_to_read(const std::filesystem::path& path);

/// All bytes of the file. Throws aft::Error, naming it, if it cannot be read or has more than `most`.
std::vector<uint8_t> read_file(const std::filesystem::path& path, size_t most);

/// Reads into `block` what comes next, at least one byte; 0 at the end. Throws aft::Error, naming `name`.
size_t read_some(int file, const std::string& name, std::span<uint8_t> block);

/// Reads the `bytes` bytes from `offset` on, fewer only where the file ends. Returns how many, or -1 with errno, as
/// ::pread does: what either means for the file is the caller's to say.
ssize_t read_at(int file, uint64_t offset, size_t bytes, void* to);

}  // namespace aft

#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace aft {

enum class Packing { kPlain, kXz };

/// How the bytes of a file are packed, by its name and its first kPackingBytes bytes (or all, if it has fewer): .xz is
/// what begins like it, whatever its name. What is compressed in another way, or is not what its name says, throws
/// aft::Error with the remedy. Any other bytes are plain.
Packing packing_of(const std::filesystem::path& name, std::span<const uint8_t> head);
constexpr size_t kPackingBytes = 8;

/// Appends what the open descriptor `file` still holds to `out`, .xz (one or several streams, checksums verified)
/// decoded. `name`: of the file, for packing_of() and errors. Throws aft::Error.
void append_bytes(int file, const std::filesystem::path& name, std::vector<uint8_t>& out);

/// Reads into `block` what comes next, at least one byte; 0 at the end. Throws aft::Error.
size_t read_some(int file, const std::string& name, std::span<uint8_t> block);

}  // namespace aft

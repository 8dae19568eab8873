#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace aft {

enum class Packing { kPlain, kXz };

/// How the bytes of a file are packed, by its name and its first kPackingBytes bytes (or all, if it has fewer): .xz is
/// what begins like it, whatever its name. What is compressed in another way, or is not what its name says, throws
/// aft::Error with the remedy. Any other bytes are plain.
Packing packing_of(const std::filesystem::path& name, std::span<const uint8_t> head);
constexpr size_t kPackingBytes = 8;

}  // namespace aft

#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace aft {

/// One tensor to be written: dense, row-major, little-endian.
struct TensorView {
  std::string dtype;  // safetensors' names: "F32", "F64", "I64", "U8", ...
  std::vector<int64_t> shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;
};

/// One tensor of a file, laid out in the same way.
struct TensorEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  uint64_t offset = 0;  // of its first byte in the file
  size_t bytes = 0;
};

/// A safetensors file, open for reading. Opening checks the header for length, JSON, types, shapes, overflow, overlaps
/// and holes before anything is used; a truncated, corrupted or foreign file throws aft::Error. Nothing is mapped: a
/// file that shrinks while it is read throws too.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  [[nodiscard]] const std::map<std::string, TensorEntry>& tensors() const;
  [[nodiscard]] const std::map<std::string, std::string>& metadata() const;

  /// Reads `bytes` of a tensor of this file, from its byte `begin` on. Several threads may read at once.
  void read(const TensorEntry& tensor, size_t begin, size_t bytes, void* to) const;
  /// All of it.
  void read(const TensorEntry& tensor, void* to) const { read(tensor, 0, tensor.bytes, to); }

 private:
  struct Contents;
  std::unique_ptr<Contents> contents_;
};

/// Writes to a temporary name in the same folder, syncs file and folder, renames: a reader sees the old file or the
/// whole new one, with the old permissions. A failed write (a full disk) throws aft::SystemError, removes the temporary
/// and leaves the old file. Symbolic links are followed; what is no regular file (a FIFO, a device, /dev/stdout) is
/// written to as it is; a folder throws aft::Error.
void write_safetensors(const std::filesystem::path& path, const std::map<std::string, TensorView>& tensors,
                       const std::map<std::string, std::string>& metadata);

}  // namespace aft

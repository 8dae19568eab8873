#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

// Byte data for the trainer: any file or folder, plain or .xz, split into train, valid and test, cut into windows.

namespace aft {

/// Where the bytes come from: either `path` with `split`, or one file or folder for each split.
struct DataConfig {
  std::string path;  // a file, or a folder read in sorted order; names ending in .xz decoded
  std::vector<double> split = {0.9, 0.05, 0.05};  // fractions of `path` for train, valid, test, in this order; sum 1
  std::string train;                              // instead of path: the training bytes
  std::string valid;                              // may stay empty: no validation
  std::string test;                               // may stay empty
};

/// Throws aft::Error naming the key, what was expected and what came. Does not touch the files.
void validate(const DataConfig& config);

/// Read-only bytes, shared by everything that copies it. A single plain file is memory-mapped (it must not shrink while
/// in use); .xz and folders are decoded or read once into memory.
class Bytes {
 public:
  Bytes() = default;

  /// `path`: a file, or a folder whose regular files are joined in order of their relative path (names that begin with
  /// a dot are skipped). Throws aft::Error for a missing, unreadable or corrupt file.
  static Bytes load(const std::filesystem::path& path);

  [[nodiscard]] std::span<const uint8_t> view() const { return view_; }

 private:
  std::shared_ptr<const void> owner_;
  std::span<const uint8_t> view_;
};

/// The three parts of a data set; valid and test may be empty.
struct DataSplits {
  std::span<const uint8_t> train;
  std::span<const uint8_t> valid;
  std::span<const uint8_t> test;
  std::vector<Bytes> owners;  // keep the spans alive
};

/// Throws aft::Error if the configuration is wrong, a file cannot be read, or a split that was asked for is empty.
DataSplits load_splits(const DataConfig& config);

/// Training windows: `context` inputs and, one byte later, `context` targets, so a window spans context + 1 bytes and
/// shares its last byte with the next one. The last window is moved back so that it is whole. One epoch visits every
/// window once, in an order that depends on seed and epoch alone: position n of the run is a pure function, so resuming
/// needs no more than n.
class WindowOrder {
 public:
  /// `bytes`: length of the training split. Throws aft::Error if it holds less than one window.
  WindowOrder(int64_t bytes, int64_t context, uint64_t seed);

  /// Windows in an epoch.
  [[nodiscard]] int64_t windows() const { return windows_; }

  /// First byte of the `position`-th window of the run, position >= 0 counted over all epochs.
  [[nodiscard]] int64_t start(int64_t position) const;

 private:
  int64_t bytes_;
  int64_t context_;
  int64_t windows_;
  uint64_t seed_;
};

/// A checksum that tells one training split from another.
uint64_t checksum(std::span<const uint8_t> bytes);

}  // namespace aft

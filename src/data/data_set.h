#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

// What a trainer reads: numbered examples in three splits, each a pure function of (split, index, draw).

namespace aft {

enum class Split { kTrain, kValid, kTest };

/// "train", "valid", "test".
const char* name_of(Split split);

/// What an example shows. Training may mix two examples into one: data/mixing.h.
struct Label {
  int64_t first = -1;   // -1: the set has none
  int64_t second = -1;  // -1: not mixed
  float share = 1;      // of `first` in the loss, in [0, 1]; the rest is the share of `second`
  bool operator==(const Label&) const = default;
};

/// Examples of bytes with labels. What read() gives depends on its arguments alone, so any number of threads, in any
/// order, read the same; const methods are safe from several threads at once. EpochOrder says which example is whose
/// turn, and gives the draw.
class DataSet {
 public:
  virtual ~DataSet() = default;

  /// Examples of the split; 0: the set has no such split.
  [[nodiscard]] virtual int64_t size(Split split) const = 0;

  /// Bytes of example `index`, 0 <= index < size(split). All of train have as many; in valid and test the last may have
  /// fewer.
  [[nodiscard]] virtual int64_t bytes(Split split, int64_t index) const = 0;

  /// Writes the example into `out`, uint8 [bytes(split, index)], and returns its label. `draw` seeds the random
  /// numbers of the augmentation; without it the example is given as it is. Throws aft::Error for an index or an `out`
  /// of the wrong size, and, naming the file, if a file can no longer be read.
  virtual Label read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const = 0;

  /// What is wrong with each example for which read() has given another so far, naming its file, in the order in which
  /// that was found; empty for sets that never do so.
  [[nodiscard]] virtual std::vector<std::string> skipped() const { return {}; }

  /// The names of the classes that labels stand for, one a label; none where the set does not say.
  [[nodiscard]] virtual std::span<const std::string> class_names() const { return {}; }

  /// CRC-64/XZ of all that the split holds, labels included, whatever the augmentation: tells one set from another.
  /// Of a set in many files it is of their names and sizes.
  [[nodiscard]] virtual uint64_t checksum(Split split) const = 0;

 protected:
  /// Throws aft::Error unless `index` is one of an example of the split.
  void require_index(Split split, int64_t index) const;
  /// The same, and unless `room` is the example's bytes().
  void require_room(Split split, int64_t index, size_t room) const;
};

}  // namespace aft

#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "data/data.h"
#include "data/data_set.h"
#include "data/windows.h"

namespace aft {

/// Bytes of text as examples without labels or augmentation. Train is cut into Windows: context + 1 bytes each, inputs
/// and targets. Valid and test are cut into [i context, (i + 1) context), each byte in one example, predicted from
/// those before it in the same; the last ends where the text does, and may hold one byte, in which nothing can be
/// predicted.
class TextData : public DataSet {
 public:
  /// Throws aft::Error if train is not empty and holds less than one window, or context < 1.
  TextData(DataSplits splits, int64_t context);

  [[nodiscard]] int64_t size(Split split) const override;
  [[nodiscard]] int64_t bytes(Split split, int64_t index) const override;
  Label read(Split split, int64_t index, std::optional<uint64_t> draw, std::span<uint8_t> out) const override;
  [[nodiscard]] uint64_t checksum(Split split) const override;

 private:
  [[nodiscard]] const Bytes& text(Split split) const;

  DataSplits splits_;
  int64_t context_;
  Windows train_;
};

}  // namespace aft

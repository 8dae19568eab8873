#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "data/data_set.h"

namespace aft {

/// Bytes and label of one example.
using Example = std::pair<std::vector<uint8_t>, Label>;

inline Example example(const DataSet& set, Split split, int64_t index, std::optional<uint64_t> draw = {}) {
  Example read;
  read.first.resize(static_cast<size_t>(set.bytes(split, index)));
  read.second = set.read(split, index, draw, read.first);
  return read;
}

}  // namespace aft

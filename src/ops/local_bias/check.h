#pragma once

#include <string>

#include "aft/error.h"
#include "aft/ops/local_bias.h"

namespace aft::ops {

/// Throws aft::Error on sizes that make no sense.
inline void check_local_bias_shape(const LocalBiasShape& s) {
  const auto require = [](const char* name, int64_t value, int64_t least) {
    if (value >= least) return;
    throw Error("local_bias: " + std::string(name) + ": expected at least " + std::to_string(least) + ", got " +
                std::to_string(value));
  };
  require("heads", s.heads, 1);
  require("rows", s.rows, 0);
  require("width", s.width, 0);
  require("left", s.left, 0);
  require("right", s.right, 0);
}

/// Throws aft::Error if an array that holds `size` > 0 elements is null.
inline void check_local_bias_array(const char* name, const void* data, int64_t size) {
  if (data != nullptr || size == 0) return;
  throw Error("local_bias: " + std::string(name) + ": expected an array of " + std::to_string(size) +
              " elements, got null");
}

/// Rows of one task: a fixed number, so that the split never depends on the threads. Every result element is summed in
/// an order that does not depend on the split at all.
constexpr int64_t kLocalBiasTaskRows = 128;

}  // namespace aft::ops

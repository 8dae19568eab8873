#pragma once

#include <string>

#include "aft/error.h"
#include "aft/ops/local_bias.h"
#include "ops/common/require.h"

namespace aft::ops::local_bias {

/// Throws aft::Error on sizes that make no sense.
inline void check_shape(const LocalBiasShape& s) {
  require(s.heads >= 1, "local_bias: heads: expected at least 1" + got(s.heads));
  require(s.rows >= 0, "local_bias: rows: expected at least 0" + got(s.rows));
  require(s.width >= 0, "local_bias: width: expected at least 0" + got(s.width));
  require_reach(s.left, "local_bias: left");
  require_reach(s.right, "local_bias: right");
}

/// Throws aft::Error if an array that holds `size` > 0 elements is null.
inline void check_array(const char* name, const void* data, int64_t size) {
  if (data != nullptr || size == 0) return;
  throw Error("local_bias: " + std::string(name) + ": expected an array of " + std::to_string(size) +
              " elements, got null");
}

template <typename T>
void check_sizes(const LocalBiasForward<T>& p) {
  const LocalBiasShape& s = p.in.shape;
  check_shape(s);
  check_array("u", p.in.u, s.heads * s.rows * s.width);
  check_array("v", p.in.v, s.heads * s.rows * s.width);
  check_array("band", p.band, s.heads * s.rows * s.columns());
}

/// The factor whose gradient is not wanted is all that the other's needs.
template <typename T>
void check_sizes(const LocalBiasBackward<T>& p) {
  const LocalBiasShape& s = p.in.shape;
  check_shape(s);
  if (p.grad_v != nullptr) check_array("u", p.in.u, s.heads * s.rows * s.width);
  if (p.grad_u != nullptr) check_array("v", p.in.v, s.heads * s.rows * s.width);
  check_array("grad_band", p.grad_band, s.heads * s.rows * s.columns());
}

/// Rows of one task: a fixed number, so that the split never depends on the threads. Every result element is summed in
/// an order that does not depend on the split at all.
constexpr int64_t kTaskRows = 128;

}  // namespace aft::ops::local_bias

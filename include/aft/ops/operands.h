#pragma once

#include <cstdint>
#include <type_traits>

// What every operator takes: element types, rows of a tensor, the key padding mask, the gate.

namespace aft::ops {

/// bfloat16 and IEEE binary16 as they lie in memory. Arithmetic is in float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

/// The type that sums, states, weights and whatever is saved for the backward are kept in, for tensors of E: double for
/// double, else float.
template <typename E>
using Accumulate = std::conditional_t<std::is_same_v<std::remove_const_t<E>, BFloat16> ||
                                          std::is_same_v<std::remove_const_t<E>, Float16>,
                                      float, std::remove_const_t<E>>;

/// How far a window may reach to one side: far beyond any sequence, and safe to add up.
inline constexpr int64_t kLongestReach = int64_t{1} << 40;

enum class Gate : int32_t {
  kSigmoid,  // Eq. 2
  kRelu,     // the first version of the paper
  kNone,     // y = N/D, q absent: the paper's ablation without query
};

/// A [B, T, width] tensor seen through strides: element (b, t, c) is data[b*batch_stride + t*time_stride + c].
/// Rows of one tensor may lie inside another (q, k and v as views of one qkv tensor).
template <typename E>
struct Rows {
  E* data = nullptr;
  int64_t batch_stride = 0;
  int64_t time_stride = 0;
};

/// Key padding mask [B, T]: a source whose element is false is absent, as if its key were -inf, and gets no gradient;
/// data null: all are seen.
struct KeyMask {
  const bool* data = nullptr;
  int64_t batch_stride = 0;
};

}  // namespace aft::ops

#pragma once

#include <cstdint>

namespace aft::ops::local_bias {

/// out[i] = sum of coefficient(i, p) partners[p] over i - before <= p <= i + after, 0 <= p < count, in ascending p.
/// Rows of `width`. The coefficients are a band [count, span] read along rows or along diagonals: no coefficient
/// outside the sum is touched, so that a partner reaches the rows that see it and no others, whatever it holds.
template <typename T>
struct BandedProduct {
  T* out = nullptr;
  const T* partners = nullptr;
  const T* coefficients = nullptr;
  int64_t out_stride = 0;      // of the coefficients, per i
  int64_t partner_stride = 0;  // of the coefficients, per p
  int64_t before = 0;
  int64_t after = 0;
  int64_t count = 0;
  int64_t width = 0;

  T coefficient(int64_t i, int64_t p) const { return coefficients[i * out_stride + p * partner_stride]; }
};

}  // namespace aft::ops::local_bias

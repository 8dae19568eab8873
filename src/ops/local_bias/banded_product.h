#pragma once

#include <cstdint>

#include "aft/ops/local_bias.h"

namespace aft::ops::local_bias {

/// out[i] = sum of coefficient(i, p) partners[p] over begin(i) <= p < end(i), in ascending p. Rows of `width`. The
/// coefficients are a band [count, span] read along rows or along diagonals: no coefficient outside the sum is touched,
/// so that a partner reaches the rows that see it and no others, whatever it holds.
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

  constexpr T coefficient(int64_t i, int64_t p) const { return coefficients[i * out_stride + p * partner_stride]; }
  constexpr int64_t begin(int64_t i) const { return i < before ? 0 : i - before; }
  constexpr int64_t end(int64_t i) const { return count - i - 1 < after ? count : i + after + 1; }
};

/// grad_u of a head: grad_band read along its rows.
template <typename T>
constexpr BandedProduct<T> product_of_u(const LocalBiasBackward<T>& p, int64_t head) {
  const LocalBiasShape& s = p.in.shape;
  const int64_t first = head * s.rows, span = s.columns();
  // Entry (t, t') of the band lies at t * span + t' - t from its centre.
  return {p.grad_u + first * s.width,
          p.in.v + first * s.width,
          p.grad_band + first * span + s.left,
          span - 1,
          1,
          s.left,
          s.right,
          s.rows,
          s.width};
}

/// grad_v of a head: grad_band read along its diagonals.
template <typename T>
constexpr BandedProduct<T> product_of_v(const LocalBiasBackward<T>& p, int64_t head) {
  const LocalBiasShape& s = p.in.shape;
  const int64_t first = head * s.rows, span = s.columns();
  return {p.grad_v + first * s.width,
          p.in.u + first * s.width,
          p.grad_band + first * span + s.left,
          1,
          span - 1,
          s.right,
          s.left,
          s.rows,
          s.width};
}

}  // namespace aft::ops::local_bias

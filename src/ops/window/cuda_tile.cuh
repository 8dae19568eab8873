#pragma once

// Running sums over a tile of rows under one maximum, that of the tile's keys: the exponentials of a tile do not wait
// for each other, and a scale moves once a tile.

#include "ops/common/cuda/exp.cuh"

namespace aft::ops::window {

constexpr int kTile = 8;  // rows

/// Tiles of the rows [begin, end).
inline __device__ int tile_count(int64_t begin, int64_t end) {
  return begin < end ? static_cast<int>((end - begin + kTile - 1) / kTile) : 0;
}

/// A row of a tile is kept if its D under the tile's maximum is at least this: so little of its range is lost that
/// values need no scale of their own.
template <typename T>
constexpr T kTileCertificate = T(0x1p-20);

/// The sums of one channel after every row of a tile, under the maximum of the last.
template <typename T>
struct SummedTile {
  T weight[kTile];           // e^k 2^-max, 0 of an absent source
  T den[kTile], num[kTile];  // under max
  bool finite;               // false: a key is beyond kKeyLimit, or something is infinite or NaN; nothing here holds

  /// Whether no row has lost of its sums what its own maximum would have kept: then neither have later ones.
  __device__ bool certified() const { return finite && den[0] >= kTileCertificate<T>; }
};

/// Adds a tile's sources to `sum`.
template <typename T>
__device__ SummedTile<T> add_tile(const T (&key)[kTile], const T (&value)[kTile], cuda::RunningSum<T>& sum) {
  using F = FloatFormat<T>;
  SummedTile<T> rows;
  T largest = key[0], seen[kTile];
  bool plain = true;
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    plain = plain && fabs(key[r]) <= kKeyLimit<T>;
    largest = fmax(largest, key[r]);
    seen[r] = value[r];
  }
  rows.finite = true;
  if (!plain) {
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      rows.finite = rows.finite && key[r] <= kKeyLimit<T>;
      if (cuda::is_absent(key[r])) seen[r] = 0;  // its value may be anything
    }
  }
  sum.rescale(fmax(sum.max, fma(largest, kLog2E<T>, F::kMagic) - F::kMagic));
  T den = 0, num = 0;
#pragma unroll
  for (int r = 0; r < kTile; ++r) {
    rows.weight[r] = cuda::exp_under(key[r], sum.max);
    den += rows.weight[r];
    num = fma(rows.weight[r], seen[r], num);
    rows.den[r] = sum.den.sum + den;
    rows.num[r] = sum.num.sum + num;
  }
  rows.finite = rows.finite && fabs(rows.num[kTile - 1]) < INFINITY;
  sum.den.add(den, T(1));
  sum.num.add(num, T(1));
  return rows;
}

}  // namespace aft::ops::window

// The dense operator's inner product: a packed tile of weights, block of rows by block of rows, times [n][2 vectors].
// Included by kernels inside foreach_target.

#if defined(AFT_OPS_FULL_DENSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_DENSE_INL_H_
#undef AFT_OPS_FULL_DENSE_INL_H_
#else
#define AFT_OPS_FULL_DENSE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/vector_view.h"
#include "ops/full/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using namespace ops::HWY_NAMESPACE;  // what the families share

// Rows of a register block: with two vectors each, as many sums as the registers hold.
#if HWY_TARGET <= HWY_AVX3
constexpr int64_t kRowBlock = 12;
#elif HWY_TARGET <= HWY_AVX2
constexpr int64_t kRowBlock = 6;
#else
constexpr int64_t kRowBlock = 4;
#endif
static_assert(kChunk % kRowBlock == 0 && kRowBlock % 2 == 0);

inline int64_t whole_row_blocks(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock * kRowBlock; }

// Elements between two pairs of rows of a packed tile.
constexpr int64_t kPairStride = 2 * kChunk;
constexpr int64_t kTileSize = kChunk * kChunk;

// [n][2 vectors] of entries or sums, or of whatever a packed tile is multiplied by.
template <class D>
using Pairs = VectorView<hn::TFromD<D>, 2, hn::MaxLanes(D())>;

// A packed tile, [rows / 2][kChunk][2]: element k of a row stands beside that of the next row, as Multiply reads them.
template <typename T>
struct Tile {
  T* data = nullptr;

  T* at(int64_t row, int64_t k) const { return data + row / 2 * kPairStride + 2 * k + row % 2; }
  // Of an even row and the next: pairs of elements.
  T* pairs(int64_t row) const { return at(row, 0); }
};

// Entries summed without a break. Equal summands are rounded the same way at every step: a long sum of them drifts by a
// part of n ulp (tens at n = 192), sums of short sums do not.
constexpr int64_t kSegment = 32;

// end(sum), sum[r] = sum_k a[r,k] b[k], r in a block of rows of a packed tile, b [n][2 vectors]. `part`
// [kRowBlock][2 vectors] is overwritten where n is more than a segment.
template <class D, class End, typename T = hn::TFromD<D>>
HWY_INLINE void MultiplyThen(D d, const T* a, const T* b, int64_t n, T* part, const End& end) {
  using V = hn::Vec<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  for (int64_t left = n;; left -= kSegment) {
    V sum[kRowBlock][2];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRowBlock; ++r) sum[r][0] = sum[r][1] = hn::Zero(d);
    for (int64_t k = std::min(kSegment, left); k > 0; --k, a += 2, b += 2 * kLanes) {
      const V b0 = hn::Load(d, b);
      const V b1 = hn::Load(d, b + kLanes);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRowBlock; ++r) {
        const V weight = hn::Set(d, a[r / 2 * kPairStride + r % 2]);
        sum[r][0] = hn::MulAdd(weight, b0, sum[r][0]);
        sum[r][1] = hn::MulAdd(weight, b1, sum[r][1]);
      }
    }
    if (left < n) {
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRowBlock; ++r) {
        sum[r][0] = hn::Add(sum[r][0], hn::Load(d, part + r * 2 * kLanes));
        sum[r][1] = hn::Add(sum[r][1], hn::Load(d, part + r * 2 * kLanes + kLanes));
      }
    }
    if (left <= kSegment) {
      end(sum);
      return;
    }
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRowBlock; ++r) {
      hn::Store(sum[r][0], d, part + r * 2 * kLanes);
      hn::Store(sum[r][1], d, part + r * 2 * kLanes + kLanes);
    }
  }
}

// out[r] = sum_k a[r,k] b[k]. out [kRowBlock][2 vectors].
template <class D, typename T = hn::TFromD<D>>
HWY_NOINLINE void Multiply(D d, const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, int64_t n, T* HWY_RESTRICT out) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  MultiplyThen(d, a, b, n, out, [&](const auto& sum) HWY_ATTR {
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRowBlock; ++r) {
      hn::Store(sum[r][0], d, out + r * 2 * kLanes);
      hn::Store(sum[r][1], d, out + r * 2 * kLanes + kLanes);
    }
  });
}

// to = to keep + take sum_k a[r,k] b[k]. scales: keep, take, [2 vectors] each.
template <class D, typename T = hn::TFromD<D>>
HWY_NOINLINE void MultiplyOnto(D d, const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, int64_t n,
                               const T* HWY_RESTRICT scales, T* HWY_RESTRICT part, T* HWY_RESTRICT to) {
  using V = hn::Vec<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  MultiplyThen(d, a, b, n, part, [&](const auto& sum) HWY_ATTR {
    const V keep0 = hn::Load(d, scales);
    const V keep1 = hn::Load(d, scales + kLanes);
    const V take0 = hn::Load(d, scales + 2 * kLanes);
    const V take1 = hn::Load(d, scales + 3 * kLanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRowBlock; ++r) {
      T* at = to + r * 2 * kLanes;
      hn::Store(hn::MulAdd(hn::Load(d, at), keep0, hn::Mul(sum[r][0], take0)), d, at);
      hn::Store(hn::MulAdd(hn::Load(d, at + kLanes), keep1, hn::Mul(sum[r][1], take1)), d, at + kLanes);
    }
  });
}

// A block of rows on the diagonal: out[r] = at[r] keep + sum_k a[r,k] b[k] + sum_(j <= r) a[r,n+j] e[j], b [n][2
// vectors] ending where `at` begins, e[j] = from[j stride] take, which replaces at[j]. scales: keep, take, [2 vectors]
// each.
template <class D, typename T = hn::TFromD<D>>
HWY_NOINLINE void MultiplyDiagonal(D d, const T* HWY_RESTRICT a, int64_t n, T* at, const T* HWY_RESTRICT from,
                                   int64_t stride, const T* HWY_RESTRICT scales, T* HWY_RESTRICT out) {
  using V = hn::Vec<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  MultiplyThen(d, a, at - n * 2 * kLanes, n, out, [&](auto& sum) HWY_ATTR {
    const V keep0 = hn::Load(d, scales);
    const V keep1 = hn::Load(d, scales + kLanes);
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRowBlock; ++r) {
      sum[r][0] = hn::MulAdd(hn::Load(d, at + r * 2 * kLanes), keep0, sum[r][0]);
      sum[r][1] = hn::MulAdd(hn::Load(d, at + r * 2 * kLanes + kLanes), keep1, sum[r][1]);
    }
    const V take0 = hn::Load(d, scales + 2 * kLanes);
    const V take1 = hn::Load(d, scales + 3 * kLanes);
    const T* weights = a + 2 * n;
#pragma GCC unroll 16
    for (int64_t j = 0; j < kRowBlock; ++j) {
      const V b0 = hn::Mul(hn::Load(d, from + j * stride), take0);
      const V b1 = hn::Mul(hn::Load(d, from + j * stride + kLanes), take1);
      hn::Store(b0, d, at + j * 2 * kLanes);
      hn::Store(b1, d, at + j * 2 * kLanes + kLanes);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRowBlock; ++r) {
        if (r < j) continue;
        const V weight = hn::Set(d, weights[r / 2 * kPairStride + r % 2 + 2 * j]);
        sum[r][0] = hn::MulAdd(weight, b0, sum[r][0]);
        sum[r][1] = hn::MulAdd(weight, b1, sum[r][1]);
      }
      hn::Store(sum[j][0], d, out + j * 2 * kLanes);
      hn::Store(sum[j][1], d, out + j * 2 * kLanes + kLanes);
    }
  });
}

// Rows of a packed tile times b [n][2 vectors], block by block: each(row, its sum0, its sum1).
template <class D, class Each, typename T = hn::TFromD<D>>
HWY_INLINE void MultiplyRows(D d, Tile<T> tile, Range rows, Pairs<D> b, int64_t n, Pairs<D> block, const Each& each) {
  for (int64_t begin = rows.begin / kRowBlock * kRowBlock; begin < rows.end; begin += kRowBlock) {
    Multiply(d, tile.pairs(begin), b.data, n, block.data);
    for (int64_t row = std::max(begin, rows.begin); row < std::min(begin + kRowBlock, rows.end); ++row) {
      each(row, hn::Load(d, block.at(row - begin, 0)), hn::Load(d, block.at(row - begin, 1)));
    }
  }
}

// x 2^n for any integer n; 0 where the result would leave the normal numbers by far.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaleBy(D d, V x, V n) {
  using T = hn::TFromD<D>;
  const V most = hn::Set(d, 2 * FloatFormat<T>::kBias);
  const V clamped = hn::Min(hn::Max(n, hn::Neg(most)), most);
  const V half = hn::Floor(hn::Mul(clamped, hn::Set(d, T(0.5))));
  return hn::Mul(hn::Mul(x, Pow2(d, half)), Pow2(d, hn::Sub(clamped, half)));
}

// Largest, NaN passed over.
template <class V>
HWY_INLINE V Larger(V n, V max) {
  return hn::IfThenElse(hn::Gt(n, max), n, max);
}

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

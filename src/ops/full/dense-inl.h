// The dense operator's inner parts: the product of a tile of weights with a chunk of entries, and the walk along the
// diagonal of a causal operator. Included by kernels inside foreach_target.
//
// An entry is what one position gives the sums: two vectors of channels with an exponent each, x0 2^n0 and x1 2^n1.
// Forward it is a source's (e^k, e^k v); backward a target's (g / D, g N / D^2). Sums are
//   C0[i] = sum_j w~[i,j] x0[j] 2^n0[j],   C1[i] likewise,
// over the entries that i sees: those before it, or, backwards, those after it. w~ = e^w 2^-W, W the largest exponent
// of its target's weights.

#if defined(AFT_OPS_FULL_DENSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_DENSE_INL_H_
#undef AFT_OPS_FULL_DENSE_INL_H_
#else
#define AFT_OPS_FULL_DENSE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/full/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Rows of a register block: with two vectors each, as many sums as the registers hold.
#if HWY_TARGET <= HWY_AVX3
constexpr int64_t kRowBlock = 12;
#elif HWY_TARGET <= HWY_AVX2
constexpr int64_t kRowBlock = 6;
#else
constexpr int64_t kRowBlock = 4;
#endif
static_assert(kChunk % kRowBlock == 0 && kRowBlock % 2 == 0);

// Elements between two pairs of rows of a packed tile, which is [rows / 2][kChunk][2].
constexpr int64_t kPairStride = 2 * kChunk;
constexpr int64_t kTileSize = kChunk * kChunk;

// Entries summed without a break. Equal summands are rounded the same way at every step: a long sum of them drifts by a
// part of n ulp (40 at n = 192), sums of short sums do not.
constexpr int64_t kSegment = 32;

// out[r] = sum_k a[r,k] b[k], r in a block of rows of a packed tile, b [n][2 vectors]. out [kRowBlock][2 vectors].
template <class D, typename T = hn::TFromD<D>>
HWY_NOINLINE void Multiply(D d, const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, int64_t n, T* HWY_RESTRICT out) {
  using V = hn::Vec<D>;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  for (int64_t begin = 0; begin == 0 || begin < n; begin += kSegment) {
    V sum[kRowBlock][2];
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRowBlock; ++r) sum[r][0] = sum[r][1] = hn::Zero(d);
    for (int64_t k = std::min(kSegment, n - begin); k > 0; --k, a += 2, b += 2 * kLanes) {
      const V b0 = hn::Load(d, b);
      const V b1 = hn::Load(d, b + kLanes);
#pragma GCC unroll 16
      for (int64_t r = 0; r < kRowBlock; ++r) {
        const V weight = hn::Set(d, a[r / 2 * kPairStride + r % 2]);
        sum[r][0] = hn::MulAdd(weight, b0, sum[r][0]);
        sum[r][1] = hn::MulAdd(weight, b1, sum[r][1]);
      }
    }
#pragma GCC unroll 16
    for (int64_t r = 0; r < kRowBlock; ++r) {
      T* to = out + r * 2 * kLanes;
      if (begin > 0) {
        sum[r][0] = hn::Add(sum[r][0], hn::Load(d, to));
        sum[r][1] = hn::Add(sum[r][1], hn::Load(d, to + kLanes));
      }
      hn::Store(sum[r][0], d, to);
      hn::Store(sum[r][1], d, to + kLanes);
    }
  }
}

// How much further than needed an exponent moves along the diagonal, so that it moves rarely.
template <typename T>
constexpr T kHeadroom = T(8);

// x 2^n for any integer n; 0 where the result would leave the normal numbers by far.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaleBy(D d, V x, V n) {
  using T = hn::TFromD<D>;
  const V most = hn::Set(d, 2 * FloatFormat<T>::kBias);
  const V clamped = hn::Min(hn::Max(n, hn::Neg(most)), most);
  const V half = hn::Floor(hn::Mul(clamped, hn::Set(d, T(0.5))));
  return hn::Mul(hn::Mul(x, Pow2(d, half)), Pow2(d, hn::Sub(clamped, half)));
}

template <class D, class V = hn::Vec<D>>
struct Entry {
  V x0, x1, n0, n1;
};

// Largest, NaN passed over.
template <class V>
HWY_INLINE V Larger(V n, V max) {
  return hn::IfThenElse(hn::Gt(n, max), n, max);
}

// Sums of one column over one chunk of rows, [kChunk][2 vectors], and their exponents, [2 vectors], with those at the
// start of the walk behind them.
template <class D>
struct Sums {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t kLanes = hn::MaxLanes(D());
  static constexpr int64_t kSize = kChunk * 2 * kLanes;
  static constexpr int64_t kExponents = 4 * kLanes;

  D d;
  T* sums;
  T* exponents;

  void clear(int64_t first_row, int64_t last_row) const {
    const V floor = hn::Set(d, kExponentFloor<T>);
    hn::Store(floor, d, exponents);
    hn::Store(floor, d, exponents + kLanes);
    std::fill(sums + first_row * 2 * kLanes, sums + last_row * 2 * kLanes, T(0));
  }

  // Adds a packed tile times `n` entries under the exponents e0, e1; rows in whole blocks.
  void add(const T* tile, int64_t first_row, int64_t last_row, const T* entries, int64_t n, V e0, V e1,
           T* block) const {
    const V old0 = hn::Load(d, exponents);
    const V old1 = hn::Load(d, exponents + kLanes);
    const V new0 = hn::Max(old0, e0);
    const V new1 = hn::Max(old1, e1);
    hn::Store(new0, d, exponents);
    hn::Store(new1, d, exponents + kLanes);
    const V keep0 = Pow2(d, hn::Sub(old0, new0));
    const V keep1 = Pow2(d, hn::Sub(old1, new1));
    const V take0 = Pow2(d, hn::Sub(e0, new0));
    const V take1 = Pow2(d, hn::Sub(e1, new1));
    for (int64_t row = first_row; row < last_row; row += kRowBlock) {
      Multiply(d, tile + row / 2 * kPairStride, entries, n, block);
      T* at = sums + row * 2 * kLanes;
      for (int64_t r = 0; r < kRowBlock; ++r, at += 2 * kLanes) {
        const T* from = block + r * 2 * kLanes;
        hn::Store(hn::MulAdd(hn::Load(d, at), keep0, hn::Mul(hn::Load(d, from), take0)), d, at);
        hn::Store(hn::MulAdd(hn::Load(d, at + kLanes), keep1, hn::Mul(hn::Load(d, from + kLanes), take1)), d,
                  at + kLanes);
      }
    }
  }

  // Along the diagonal: row o sees the entries up to and including o, and its exponents hang on those alone. Walks the
  // block of rows at `at`, after start_walk() and the blocks before it; rows [first, last) end here: finish(o, c0, c1,
  // n0, n1). take(o) gives the entry of o in [0, last), which takes the place of the row's sums.
  template <class Take, class Finish>
  void walk(const T* tile, int64_t at, int64_t first, int64_t last, T* block, const Take& take,
            const Finish& finish) const {
    V e0 = hn::Load(d, exponents);
    V e1 = hn::Load(d, exponents + kLanes);
    const bool ends = at + kRowBlock > first;
    const T* weights = tile + at / 2 * kPairStride;
    if (ends) {
      begin_block(weights, at, block, Pow2(d, hn::Sub(hn::Load(d, exponents + 2 * kLanes), e0)),
                  Pow2(d, hn::Sub(hn::Load(d, exponents + 3 * kLanes), e1)));
    }
    const int64_t rows = std::min(kRowBlock, last - at);
    for (int64_t r = 0; r < rows; ++r) {
      const Entry<D> x = take(at + r);
      const auto above0 = hn::Gt(x.n0, e0);
      const auto above1 = hn::Gt(x.n1, e1);
      if (HWY_UNLIKELY(!hn::AllFalse(d, hn::Or(above0, above1)))) {
        const V headroom = hn::Set(d, kHeadroom<T>);
        const V new0 = hn::IfThenElse(above0, hn::Add(x.n0, headroom), e0);
        const V new1 = hn::IfThenElse(above1, hn::Add(x.n1, headroom), e1);
        const V down0 = Pow2(d, hn::Sub(e0, new0));
        const V down1 = Pow2(d, hn::Sub(e1, new1));
        scale(sums, at + r, down0, down1);
        if (ends) scale(block, kRowBlock, down0, down1);
        e0 = new0;
        e1 = new1;
      }
      T* entry = sums + (at + r) * 2 * kLanes;
      hn::Store(hn::Mul(x.x0, Pow2(d, hn::Sub(x.n0, e0))), d, entry);
      hn::Store(hn::Mul(x.x1, Pow2(d, hn::Sub(x.n1, e1))), d, entry + kLanes);
      if (at + r < first) continue;
      V c0 = hn::Load(d, block + r * 2 * kLanes);
      V c1 = hn::Load(d, block + r * 2 * kLanes + kLanes);
      const T* weight = weights + r / 2 * kPairStride + 2 * at + r % 2;
      const T* from = sums + at * 2 * kLanes;
      for (int64_t j = 0; j <= r; ++j, weight += 2, from += 2 * kLanes) {
        const V w = hn::Set(d, *weight);
        c0 = hn::MulAdd(w, hn::Load(d, from), c0);
        c1 = hn::MulAdd(w, hn::Load(d, from + kLanes), c1);
      }
      finish(at + r, c0, c1, e0, e1);
    }
    hn::Store(e0, d, exponents);
    hn::Store(e1, d, exponents + kLanes);
  }

  void start_walk() const {
    hn::Store(hn::Load(d, exponents), d, exponents + 2 * kLanes);
    hn::Store(hn::Load(d, exponents + kLanes), d, exponents + 3 * kLanes);
  }

 private:
  void begin_block(const T* weights, int64_t at, T* block, V keep0, V keep1) const {
    Multiply(d, weights, sums, at, block);
    const T* from = sums + at * 2 * kLanes;
    for (int64_t r = 0; r < kRowBlock; ++r, from += 2 * kLanes) {
      T* to = block + r * 2 * kLanes;
      hn::Store(hn::MulAdd(hn::Load(d, from), keep0, hn::Load(d, to)), d, to);
      hn::Store(hn::MulAdd(hn::Load(d, from + kLanes), keep1, hn::Load(d, to + kLanes)), d, to + kLanes);
    }
  }

  void scale(T* at, int64_t n, V by0, V by1) const {
    for (int64_t i = 0; i < n; ++i, at += 2 * kLanes) {
      hn::Store(hn::Mul(hn::Load(d, at), by0), d, at);
      hn::Store(hn::Mul(hn::Load(d, at + kLanes), by1), d, at + kLanes);
    }
  }
};

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

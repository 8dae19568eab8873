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

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
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

// Elements between two pairs of rows of a packed tile, which is [rows / 2][kChunk][2].
constexpr int64_t kPairStride = 2 * kChunk;
constexpr int64_t kTileSize = kChunk * kChunk;

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

// What is kept of a packed chunk of entries, in elements: the largest exponents, which it is stored under, and the
// smallest, [2 vectors] each.
template <class D>
constexpr int64_t kEntryScale = 4 * hn::MaxLanes(D());

// Packed entries that a block of rows on the diagonal takes, `stride` apart, and their chunk's scale. null: none.
template <typename T>
struct PackedEntries {
  const T* data = nullptr;
  int64_t stride = 0;
  const T* scale = nullptr;
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

  // Adds a packed tile times `n` entries of the given scale; rows in whole blocks. `next`, from where as many will
  // be read after these, is fetched meanwhile.
  void add(const T* tile, int64_t first_row, int64_t last_row, const T* entries, int64_t n, const T* scale,
           const T* next, T* block) const {
    HWY_ALIGN T scales[4 * kLanes];
    for (int64_t i = 0; i < 2 * kLanes; i += kLanes) {
      const V old = hn::Load(d, exponents + i);
      const V e = hn::Load(d, scale + i);
      const V now = hn::IfThenElse(hn::Gt(e, old), hn::Add(e, hn::Set(d, kHeadroom<T>)), old);
      hn::Store(now, d, exponents + i);
      hn::Store(Pow2(d, hn::Sub(old, now)), d, scales + i);
      hn::Store(Pow2(d, hn::Sub(e, now)), d, scales + 2 * kLanes + i);
    }
    const int64_t per_block = (n * kRowBlock + last_row - first_row - 1) / (last_row - first_row) * 2 * kLanes;
    for (int64_t row = first_row; row < last_row; row += kRowBlock, next += per_block) {
      for (int64_t i = 0; i < per_block; i += kLanes) hwy::Prefetch(next + i);
      MultiplyOnto(d, tile + row / 2 * kPairStride, entries, n, scales, block, sums + row * 2 * kLanes);
    }
  }

  // Along the diagonal: row o sees the entries up to and including o, and its exponents depend on those alone. Walks
  // the block of rows at `at`, after start_walk() and the blocks before it; rows [first, last) end here: finish(o, n,
  // sums, e0, e1) for n rows of sums [n][2 vectors] that share exponents. The entries, which take the place of the
  // rows' sums, come from `packed` if no exponent moves and none of them lost a bit: then that is what take(o), the
  // entry of o in [0, last), gives one by one.
  template <class Take, class Finish>
  void walk(const T* tile, int64_t at, int64_t first, int64_t last, T* block, const PackedEntries<T>& packed,
            const Take& take, const Finish& finish) const {
    const T* weights = tile + at / 2 * kPairStride;
    if (at + kRowBlock > first && HWY_LIKELY(fits(packed))) {
      HWY_ALIGN T scales[4 * kLanes];
      for (int64_t i = 0; i < 2 * kLanes; i += kLanes) {
        const V e = hn::Load(d, exponents + i);
        hn::Store(Pow2(d, hn::Sub(hn::Load(d, exponents + 2 * kLanes + i), e)), d, scales + i);
        hn::Store(Pow2(d, hn::Sub(hn::Load(d, packed.scale + i), e)), d, scales + 2 * kLanes + i);
      }
      MultiplyDiagonal(d, weights, at, sums + at * 2 * kLanes, packed.data, packed.stride, scales, block);
      const int64_t begin = std::max(at, first);
      const int64_t end = std::min(at + kRowBlock, last);
      if (begin < end) {
        finish(begin, end - begin, block + (begin - at) * 2 * kLanes, hn::Load(d, exponents),
               hn::Load(d, exponents + kLanes));
      }
      return;
    }
    walk_by_row(weights, at, first, last, block, take, finish);
  }

  void start_walk() const {
    hn::Store(hn::Load(d, exponents), d, exponents + 2 * kLanes);
    hn::Store(hn::Load(d, exponents + kLanes), d, exponents + 3 * kLanes);
  }

 private:
  bool fits(const PackedEntries<T>& packed) const {
    if (packed.data == nullptr) return false;
    // Half way to where a power of two is rounded to 0.
    const V lowest = hn::Set(d, -FloatFormat<T>::kBias / 2);
    for (int64_t i = 0; i < 2 * kLanes; i += kLanes) {
      const V own = hn::Load(d, exponents + i);
      const V most = hn::Load(d, packed.scale + i);
      const V least = hn::Load(d, packed.scale + 2 * kLanes + i);
      if (!hn::AllTrue(d, hn::And(hn::Le(most, own), hn::Ge(hn::Sub(least, own), lowest)))) return false;
    }
    return true;
  }

  // The walk of a block whose exponents may move.
  template <class Take, class Finish>
  HWY_NOINLINE void walk_by_row(const T* weights, int64_t at, int64_t first, int64_t last, T* block, const Take& take,
                                const Finish& finish) const {
    V e0 = hn::Load(d, exponents);
    V e1 = hn::Load(d, exponents + kLanes);
    const bool ends = at + kRowBlock > first;
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
      T* out = block + r * 2 * kLanes;
      V c0 = hn::Load(d, out);
      V c1 = hn::Load(d, out + kLanes);
      const T* weight = weights + r / 2 * kPairStride + 2 * at + r % 2;
      const T* from = sums + at * 2 * kLanes;
      for (int64_t j = 0; j <= r; ++j, weight += 2, from += 2 * kLanes) {
        const V w = hn::Set(d, *weight);
        c0 = hn::MulAdd(w, hn::Load(d, from), c0);
        c1 = hn::MulAdd(w, hn::Load(d, from + kLanes), c1);
      }
      hn::Store(c0, d, out);
      hn::Store(c1, d, out + kLanes);
      finish(at + r, 1, out, e0, e1);
    }
    hn::Store(e0, d, exponents);
    hn::Store(e1, d, exponents + kLanes);
  }

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

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

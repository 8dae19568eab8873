// Backward with a band: what targets leave for their sources and for the band's gradient. Included by kernels inside
// foreach_target.

#if defined(AFT_OPS_WINDOW_BAND_TARGETS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_WINDOW_BAND_TARGETS_INL_H_
#undef AFT_OPS_WINDOW_BAND_TARGETS_INL_H_
#else
#define AFT_OPS_WINDOW_BAND_TARGETS_INL_H_
#endif

#include <bit>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/common/exp-inl.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/window/plan.h"
#include "ops/window/stripe-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

// a and b of the targets, each normalised so that a row is worth a 2^exponent (2^W more with the window's weights w~),
// for as long as a source may see them.
template <class D>
class TargetRing {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  // Holds the last `targets` targets.
  TargetRing(int64_t vectors, int64_t targets, Scratch& scratch)
      : size(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(targets)))), rows(vectors * size, scratch) {}

  struct Row {
    V a, b, exponent;
  };
  Row load(int64_t j, int64_t t) const {
    const T* at = row(j, t);
    return {hn::Load(d, at), hn::Load(d, at + lanes), hn::Load(d, at + 2 * lanes)};
  }
  HWY_INLINE void store(int64_t j, int64_t t, const Row& target) const {
    T* at = row(j, t);
    hn::Store(target.a, d, at);
    hn::Store(target.b, d, at + lanes);
    hn::Store(target.exponent, d, at + 2 * lanes);
  }

  // Adds a target to the sums of b and a of those outside windows; w is the exponent W of its weights.
  void add(RunningSum<V>& sum, int64_t j, int64_t t, T w) const {
    const Row target = load(j, t);
    AddTerm(d, sum, hn::Sub(target.exponent, hn::Set(d, w)), target.b, target.a);
  }

  // The kRows targets from `begin` on, added to each other first (see Stripe::pass_out).
  HWY_INLINE void add_block(RunningSum<V>& sum, int64_t j, int64_t begin, const T* w) const {
    V exponent[kRows];
    V max = sum.max;
    for (int64_t r = 0; r < kRows; ++r) {
      exponent[r] = hn::Sub(hn::Load(d, row(j, begin + r) + 2 * lanes), hn::Set(d, w[r]));
      max = hn::Max(exponent[r], max);
    }
    if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Eq(max, sum.max)))) Rescale(d, sum, max);
    V a = hn::Zero(d), b = a;
    for (int64_t r = 0; r < kRows; ++r) {
      const T* from = row(j, begin + r);
      const V scale = Pow2(d, hn::Sub(exponent[r], max));
      a = hn::MulAdd(hn::Load(d, from), scale, a);
      b = hn::MulAdd(hn::Load(d, from + lanes), scale, b);
    }
    const V one = hn::Set(d, T(1));
    AddCompensated(a, one, sum.num, sum.num_low);
    AddCompensated(b, one, sum.den, sum.den_low);
  }

 private:
  static constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));

  T* row(int64_t j, int64_t t) const { return rows.at(j * size + (t & (size - 1))); }

  D d;
  int64_t size;                  // a power of two
  VectorView<T, 3, lanes> rows;  // [vectors][size]: a, b, exponent of target t at t % size
};

// A pair's part of a source's sums, from the p and n of its weight and the target's a and b.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void AddPair(D d, V p, V n, V a, V b, V& sum_a, V& sum_b) {
  const V scale = hn::Mul(p, Pow2(d, hn::Min(n, hn::Set(d, kPairExponentLimit<hn::TFromD<D>>))));
  sum_a = hn::MulAdd(scale, a, sum_a);
  sum_b = hn::MulAdd(scale, b, sum_b);
}

// a' = a 2^(exponent + M) and b' of the targets that a chunk's sources see, for the vectors of a panel.
template <class D>
class ScaledTargets {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  ScaledTargets(int64_t vectors, int64_t targets, Scratch& scratch)
      : rows(vectors, targets, scratch), out_of_range(scratch.take<bool>(vectors)) {}

  T* at(int64_t j, int64_t t) const { return rows.at(j, t); }
  // Vector j is out of range: the chunk is done exactly.
  bool exact(int64_t j) const { return out_of_range[j - rows.first_row]; }

  // From the targets `seen`, of which those of the chunk come first, in the vectors `panel` under the chunk's scale.
  // Returns how many of the chunk's (row, channel) pairs are out of range.
  template <typename E>
  HWY_NOINLINE int64_t fill(const TargetRing<D>& targets, const Stripe<D, E>& s, Range seen, Range of_chunk,
                            Range panel) {
    rows.first_row = panel.begin;
    rows.first_column = seen.begin;
    const V limit = hn::Set(d, kRangeLimit<T>);
    int64_t pairs = 0;
    for (int64_t j = panel.begin; j < panel.end; ++j) {
      const V m = hn::Load(d, s.scale.at(j));
      V peak = hn::Neg(limit);
      T* to = rows.at(j, seen.begin);
      for (int64_t t = seen.begin; t < seen.end; ++t, to += 2 * lanes) {
        const auto target = targets.load(j, t);
        const V exponent = hn::Add(target.exponent, m);
        peak = hn::Max(exponent, peak);
        const V scale = Pow2(d, hn::Min(exponent, limit));
        hn::Store(hn::Mul(target.a, scale), d, to);
        hn::Store(hn::Mul(target.b, scale), d, to + lanes);
      }
      // The band's gradient takes a' 2^X: it must not overflow either.
      const V x = hn::Load(d, s.scale.at(j, 1));
      const auto beyond = hn::Gt(hn::Add(peak, hn::Max(x, hn::Zero(d))), limit);
      const bool exact = s.redo && !hn::AllFalse(d, beyond);
      out_of_range[j - panel.begin] = exact;
      if (exact) pairs += of_chunk.size() * static_cast<int64_t>(hn::CountTrue(d, beyond));
    }
    return pairs;
  }

 private:
  static constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));

  D d;
  VectorMatrix<T, 2, lanes> rows;  // [panel][targets]: a', b'
  bool* out_of_range;              // [panel]
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

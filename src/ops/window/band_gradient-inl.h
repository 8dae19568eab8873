// Backward with a band: dw[t,t'] = e^w sum_c e^k (v a[t] - b[t]), from the targets under the chunk's scale. Included by
// kernels inside foreach_target.

#if defined(AFT_OPS_WINDOW_BAND_GRADIENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_WINDOW_BAND_GRADIENT_INL_H_
#undef AFT_OPS_WINDOW_BAND_GRADIENT_INL_H_
#else
#define AFT_OPS_WINDOW_BAND_GRADIENT_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/common/scratch.h"
#include "ops/window/backward.h"
#include "ops/window/band_targets-inl.h"
#include "ops/window/stripe-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

// The sums of the lanes of four vectors, by transposing: a third of the instructions of four separate sums.
template <class D, class V = hn::Vec<D>, typename T = hn::TFromD<D>>
HWY_INLINE void SumLanesOf4(D d, V v0, V v1, V v2, V v3, T* sums) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (sizeof(T) == 4) {
    const hn::Repartition<double, D> dd;
    // Blocks of four lanes: [v0 v1 v0 v1] of lanes 0 + 2 and 1 + 3, then [v0 v1 v2 v3].
    const V v01 = hn::Add(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1));
    const V v23 = hn::Add(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3));
    const auto low = hn::InterleaveLower(dd, hn::BitCast(dd, v01), hn::BitCast(dd, v23));
    const auto high = hn::InterleaveUpper(dd, hn::BitCast(dd, v01), hn::BitCast(dd, v23));
    HWY_ALIGN T lanes[HWY_MAX_BYTES / sizeof(T)];
    hn::Store(hn::Add(hn::BitCast(d, low), hn::BitCast(d, high)), d, lanes);
    const hn::FixedTag<T, 4> d4;
    auto total = hn::Load(d4, lanes);
    for (size_t i = 4; i < hn::Lanes(d); i += 4) total = hn::Add(total, hn::Load(d4, lanes + i));
    hn::StoreU(total, d4, sums);
    return;
  }
#endif
  sums[0] = hn::GetLane(hn::SumOfLanes(d, v0));
  sums[1] = hn::GetLane(hn::SumOfLanes(d, v1));
  sums[2] = hn::GetLane(hn::SumOfLanes(d, v2));
  sums[3] = hn::GetLane(hn::SumOfLanes(d, v3));
}

// Summed over the channels of a panel; panels are added up by the caller.
template <class D, typename E>
class BandGradient {
  using Targets = BandTargets<D, E>;
  using T = typename Targets::T;
  using V = typename Targets::V;

 public:
  BandGradient(const BandPart<T>& band_part, bool one_row) : part(band_part), shares_row(one_row) {}

  bool wanted() const { return part.sums != nullptr; }

  static size_t bytes(const Targets& of) {
    return Room::padded<T>(of.panel_vectors * kRows * 2 * of.lanes) +
           Room::padded<T>(of.shape.left + 1 + of.shape.right);
  }
  void take(const Targets& of, Room& scratch) {
    rows = scratch.take<T>(of.panel_vectors * kRows * 2 * of.lanes);
    chunk_sums = scratch.take<T>(of.shape.left + 1 + of.shape.right);
  }

  // dw of the chunk [begin, end), for the panel at hand.
  void add_chunk(const Targets& of, const Stripe<D, E>& s, int64_t begin, int64_t end) const {
    if (shares_row) std::fill_n(chunk_sums, s.weights.span, T(0));
    add_targets(of, s, begin, end);
    if (shares_row) add_chunk_sums(of, s.weights.span);
  }

 private:
  const BandPart<T>& part;
  bool shares_row;  // all targets: one row of weights
  D d;
  T* rows = nullptr;        // [panel][kRows][2][lanes]: a' 2^X, b' of a block of targets
  T* chunk_sums = nullptr;  // [J]: the chunk's part of the gradient of a shared row

  // The targets [begin, end).
  void add_targets(const Targets& of, const Stripe<D, E>& s, int64_t begin, int64_t end) const {
    const int64_t lanes = of.lanes;
    for (int64_t tb = begin; tb < end; tb += kRows) {
      const int64_t count = std::min(kRows, end - tb);
      for (int64_t j = of.first; j < of.last; ++j) {
        const V x = Pow2(d, hn::Load(d, s.scale + j * 2 * lanes + lanes));
        const T* from = of.scaled_row(j, tb - begin);
        T* to = rows + (j - of.first) * kRows * 2 * lanes;
        for (int64_t r = 0; r < kRows; ++r, from += 2 * lanes, to += 2 * lanes) {
          const bool used = r < count && !of.exact[j - of.first];
          hn::Store(used ? hn::Mul(hn::Load(d, from), x) : hn::Zero(d), d, to);
          hn::Store(used ? hn::Load(d, from + lanes) : hn::Zero(d), d, to + lanes);
        }
      }
      const int64_t low = std::max(s.first_source, tb - of.shape.left);
      const int64_t high = std::min(of.shape.time, tb + count + of.shape.right);
      for (int64_t source = low; source < high; source += kRows) add_pairs(of, s, tb, count, begin, source, high);
      for (int64_t j = of.first; j < of.last; ++j) {
        if (of.exact[j - of.first]) add_exact(of, s, j, tb, count, begin);
      }
    }
  }

  // Row t of the panel's gradient; where all positions share a row, the chunk's part of it.
  T* row(const Targets& of, const Stripe<D, E>& s, int64_t t) const {
    if (shares_row) return chunk_sums;
    return part.sums + (of.first / of.panel_vectors * part.rows + t - part.first_chunk * of.chunk) * s.weights.span;
  }

  // Chunk by chunk: one long sum over all positions would lose more to rounding.
  void add_chunk_sums(const Targets& of, int64_t span) const {
    T* to = part.sums + of.first / of.panel_vectors * span;
    for (int64_t i = 0; i < span; ++i) to[i] += chunk_sums[i];
  }

  // dw of targets tb .. tb + count - 1 against the kRows sources from `source` on, of which those before `high` count.
  HWY_INLINE void add_pairs(const Targets& of, const Stripe<D, E>& s, int64_t tb, int64_t count, int64_t begin,
                            int64_t source, int64_t high) const {
    const int64_t lanes = of.lanes;
    V sum[kRows][kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < kRows; ++i) sum[r][i] = hn::Zero(d);
    }
    for (int64_t j = of.first; j < of.last; ++j) {
      const T* x = s.slot(j, source);
      const T* g = rows + (j - of.first) * kRows * 2 * lanes;
      for (int64_t r = 0; r < kRows; ++r) {
        const V a = hn::Load(d, g + r * 2 * lanes);
        const V b = hn::Load(d, g + r * 2 * lanes + lanes);
        for (int64_t i = 0; i < kRows; ++i) {
          sum[r][i] = hn::MulAdd(hn::Load(d, x + i * 2 * lanes + lanes), a, sum[r][i]);
          sum[r][i] = hn::NegMulAdd(hn::Load(d, x + i * 2 * lanes), b, sum[r][i]);
        }
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      T total[kRows];
      SumLanesOf4(d, sum[r][0], sum[r][1], sum[r][2], sum[r][3], total);
      const int64_t at = source - tb - r + of.shape.left;
      const T* HWY_RESTRICT w = s.weights.at(tb + r - begin, 0);
      T* HWY_RESTRICT to = row(of, s, tb + r);
      if (HWY_LIKELY(at >= 0 && at + kRows <= s.weights.span && source + kRows <= high)) {
        for (int64_t i = 0; i < kRows; ++i) to[at + i] += w[at + i] * total[i];
      } else {
        const int64_t from = std::max<int64_t>(0, -at);
        const int64_t until = std::min({kRows, s.weights.span - at, high - source});
        for (int64_t i = from; i < until; ++i) to[at + i] += w[at + i] * total[i];
      }
    }
  }

  // The same with every pair from its p and n.
  HWY_NOINLINE void add_exact(const Targets& of, const Stripe<D, E>& s, int64_t j, int64_t tb, int64_t count,
                              int64_t begin) const {
    const int64_t lanes = of.lanes;
    for (int64_t t = tb; t < tb + count; ++t) {
      const T* from = of.target_row(j, t);
      const V a = hn::Load(d, from);
      const V b = hn::Load(d, from + lanes);
      const V exponent = hn::Sub(hn::Load(d, from + 2 * lanes), hn::Set(d, s.weights.exponent[t - begin]));
      const int64_t low = std::max(s.first_source, t - of.shape.left);
      const int64_t high = std::min(of.shape.time, t + 1 + of.shape.right);
      for (int64_t source = low; source < high; ++source) {
        const int64_t at = source - t + of.shape.left;
        const V key = s.source_key(source, j);
        const V value = MaskAbsent(d, key, s.source_value(source, j));
        const SplitExp<V> e = Split(d, key);
        const SplitExp<V> w = Split(d, hn::Set(d, s.band[t * s.band_stride + at]));
        V sum_a = hn::Zero(d), sum_b = sum_a;
        of.add_pair(hn::Mul(e.p, w.p), hn::Add(hn::Add(e.n, w.n), exponent), a, b, sum_a, sum_b);
        const V terms = hn::MulSub(value, sum_a, sum_b);
        row(of, s, t)[at] += hn::GetLane(hn::SumOfLanes(d, terms));
      }
    }
  }
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

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
#include "ops/common/vector_view.h"
#include "ops/window/band_plan.h"
#include "ops/window/band_task-inl.h"
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

// Of one chunk, panel by panel: each is summed over its channels; the panels are added up by the caller.
template <class D, typename E>
class BandGradient {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));

 public:
  // Adds to `sums`.
  BandGradient(const BandChunk<D, E>& chunk, const BandSums<T>& sums, Scratch& scratch)
      : of(chunk),
        out(sums),
        rows(of.task.panel_vectors, kRows, scratch),
        chunk_row(scratch.take<T>(sums.shares_row ? sums.span : 0)) {}

  // dw of the chunk's targets, summed over the channels of the panel.
  void add(Range panel) {
    rows.first_row = panel.begin;
    const int64_t index = panel.begin / of.task.panel_vectors;
    if (!out.shares_row) {
      add_targets(panel, index);
      return;
    }
    // Chunk by chunk: one long sum over all positions would lose more to rounding.
    std::fill_n(chunk_row, out.span, T(0));
    add_targets(panel, index);
    T* to = out.row(index, 0);
    for (int64_t i = 0; i < out.span; ++i) to[i] += chunk_row[i];
  }

 private:
  const BandChunk<D, E>& of;
  const BandSums<T> out;
  D d;
  VectorMatrix<T, 2, lanes> rows;  // [panel][kRows]: a' 2^X, b' of a block of targets
  T* chunk_row;                    // [J]: the chunk's part of the gradient of a row that all targets share

  // Target t's row of a panel's gradient.
  T* row(int64_t panel_index, int64_t t) const {
    return out.shares_row ? chunk_row : out.row(panel_index, t - out.first_target);
  }

  void add_targets(Range panel, int64_t panel_index) {
    const Stripe<D, E>& s = of.stripe;
    const Range targets = of.chunk.targets;
    for (int64_t tb = targets.begin; tb < targets.end; tb += kRows) {
      const Range block = {tb, std::min(tb + kRows, targets.end)};
      rows.first_column = tb;
      for (int64_t j = panel.begin; j < panel.end; ++j) {
        const V x = Pow2(d, hn::Load(d, s.scale.at(j, 1)));
        const T* from = of.scaled.at(j, tb);
        T* to = rows.at(j, tb);
        for (int64_t t = tb; t < tb + kRows; ++t, from += 2 * lanes, to += 2 * lanes) {
          const bool used = t < block.end && !of.scaled.exact(j);
          hn::Store(used ? hn::Mul(hn::Load(d, from), x) : hn::Zero(d), d, to);
          hn::Store(used ? hn::Load(d, from + lanes) : hn::Zero(d), d, to + lanes);
        }
      }
      const int64_t low = std::max(s.first_source, tb - s.shape.left);
      const int64_t high = std::min(s.shape.time, block.end + s.shape.right);
      for (int64_t source = low; source < high; source += kRows) {
        add_pairs(panel, panel_index, block, {source, std::min(source + kRows, high)});
      }
      for (int64_t j = panel.begin; j < panel.end; ++j) {
        if (of.scaled.exact(j)) add_exact(j, panel_index, block);
      }
    }
  }

  // A block of targets against a block of sources.
  HWY_INLINE void add_pairs(Range panel, int64_t panel_index, Range targets, Range sources) const {
    const Stripe<D, E>& s = of.stripe;
    V sum[kRows][kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < kRows; ++i) sum[r][i] = hn::Zero(d);
    }
    for (int64_t j = panel.begin; j < panel.end; ++j) {
      const T* x = s.window.at(j, sources.begin);
      const T* g = rows.at(j, targets.begin);
      for (int64_t r = 0; r < kRows; ++r) {
        const V a = hn::Load(d, g + r * 2 * lanes);
        const V b = hn::Load(d, g + r * 2 * lanes + lanes);
        for (int64_t i = 0; i < kRows; ++i) {
          sum[r][i] = hn::MulAdd(hn::Load(d, x + i * 2 * lanes + lanes), a, sum[r][i]);
          sum[r][i] = hn::NegMulAdd(hn::Load(d, x + i * 2 * lanes), b, sum[r][i]);
        }
      }
    }
    for (int64_t r = 0; r < targets.size(); ++r) {
      const int64_t t = targets.begin + r;
      T total[kRows];
      SumLanesOf4(d, sum[r][0], sum[r][1], sum[r][2], sum[r][3], total);
      const int64_t at = sources.begin - t + s.shape.left;
      const T* HWY_RESTRICT w = s.weights.row(t);
      T* HWY_RESTRICT to = row(panel_index, t);
      if (HWY_LIKELY(at >= 0 && at + kRows <= s.span && sources.size() == kRows)) {
        for (int64_t i = 0; i < kRows; ++i) to[at + i] += w[at + i] * total[i];
      } else {
        const int64_t from = std::max<int64_t>(0, -at);
        const int64_t until = std::min(s.span - at, sources.size());
        for (int64_t i = from; i < until; ++i) to[at + i] += w[at + i] * total[i];
      }
    }
  }

  // A block of targets with every pair from its p and n.
  HWY_NOINLINE void add_exact(int64_t j, int64_t panel_index, Range targets) const {
    const Stripe<D, E>& s = of.stripe;
    for (int64_t t = targets.begin; t < targets.end; ++t) {
      const auto target = of.task.targets.load(j, t);
      const V exponent = hn::Sub(target.exponent, hn::Set(d, *s.weights.exponent(t)));
      const int64_t low = std::max(s.first_source, t - s.shape.left);
      const int64_t high = std::min(s.shape.time, t + 1 + s.shape.right);
      for (int64_t source = low; source < high; ++source) {
        const int64_t at = source - t + s.shape.left;
        const V key = s.source_key(source, j);
        const V value = MaskAbsent(d, key, s.source_value(source, j));
        const SplitExp<V> e = Split(d, key);
        const SplitExp<V> w = Split(d, hn::Set(d, s.band[t * s.band_stride + at]));
        V sum_a = hn::Zero(d), sum_b = sum_a;
        AddPair(d, hn::Mul(e.p, w.p), hn::Add(hn::Add(e.n, w.n), exponent), target.a, target.b, sum_a, sum_b);
        const V terms = hn::MulSub(value, sum_a, sum_b);
        row(panel_index, t)[at] += hn::GetLane(hn::SumOfLanes(d, terms));
      }
    }
  }
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

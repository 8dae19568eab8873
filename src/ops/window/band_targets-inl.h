// Backward with a band: what targets leave behind for their sources and for the band's gradient. Included by kernels
// inside foreach_target.

#if defined(AFT_OPS_WINDOW_BAND_TARGETS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_WINDOW_BAND_TARGETS_INL_H_
#undef AFT_OPS_WINDOW_BAND_TARGETS_INL_H_
#else
#define AFT_OPS_WINDOW_BAND_TARGETS_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>

#include "aft/ops/window.h"
#include "hwy/highway.h"
#include "ops/common/scratch.h"
#include "ops/window/backward-inl.h"
#include "ops/window/stripe-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

// Targets leave a, b and an exponent, kept for as long as a source may see them; of a panel at a time, what a chunk's
// sources see is brought to the chunk's scale (cpu_backward_band.cc).
template <class D, typename E>
class BandTargets : public BackwardTask<D, E> {
  using Base = BackwardTask<D, E>;

 public:
  using Base::chunk, Base::d, Base::has_final, Base::lanes, Base::shape, Base::vectors;
  using typename Base::T;
  using typename Base::V;

  BandTargets(const WindowBackward<E>& params, const WindowTask& window_task) : Base(params, window_task) {
    panel_vectors = std::min(vectors, kPanelChannels<E> / lanes);
    reach = shape.causal ? shape.left : std::min(shape.left, shape.time);
    lag = whole_blocks(std::min(shape.right, shape.time));
    rows_capacity = reach + chunk + lag + kRows;
    ring = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows_capacity)));
  }

  size_t kept_bytes() const { return Room::padded<T>(vectors * ring * 3 * lanes); }
  size_t chunk_bytes() const {
    return Room::padded<T>(panel_vectors * rows_capacity * 2 * lanes) + Room::padded<bool>(panel_vectors);
  }
  void take(Room& kept, Room& for_chunk) {
    target = kept.take<T>(vectors * ring * 3 * lanes);
    scaled = for_chunk.take<T>(panel_vectors * rows_capacity * 2 * lanes);
    exact = for_chunk.take<bool>(panel_vectors);
  }

  int64_t panel_vectors = 0;
  int64_t first = 0, last = 0;  // vectors of the panel at hand
  int64_t reach = 0;            // how far windows reach to earlier sources
  int64_t lag = 0;              // how far, in whole blocks, they reach to later ones
  int64_t rows_capacity = 0;    // targets that the sources of a chunk see; sources that its targets see
  T* target = nullptr;          // [vectors][ring][3][lanes]: a, b, exponent of target t at t % ring
  T* scaled = nullptr;          // [panel][rows_capacity][2][lanes]: a', b'
  bool* exact = nullptr;        // [panel]: out of range in this chunk

  // One more than the sequence has where the final state has a gradient: see leave_final.
  int64_t target_end() const { return shape.time + (has_final ? 1 : 0); }
  T* target_row(int64_t j, int64_t t) const { return target + (j * ring + (t & (ring - 1))) * 3 * lanes; }
  T* scaled_row(int64_t j, int64_t i) const { return scaled + ((j - first) * rows_capacity + i) * 2 * lanes; }

  // What a target's row leaves behind: a, b and their exponent (times 2^W, which the window's weights w~ lack), and dq.
  HWY_INLINE void leave_row(int64_t t, int64_t j, const RowSums<V>& row, T w, bool writes_query) const {
    const TargetGrad<V> grad = Base::target_grad(t, j, row.den, row.num, row.value_scale);
    const auto empty = hn::Eq(row.den, hn::Zero(d));
    const V den_exponent = ExponentOf(d, row.den);
    const V normal = Pow2(d, den_exponent);
    const V exponent = hn::Sub(hn::Set(d, w), hn::Add(row.exponent, den_exponent));
    T* to = target_row(j, t);
    hn::Store(hn::Mul(grad.a, normal), d, to);
    hn::Store(hn::Mul(grad.b, normal), d, to + lanes);
    hn::Store(hn::IfThenElse(empty, hn::Set(d, kExponentFloor<T>), exponent), d, to + 2 * lanes);
    if (writes_query) Base::write_query(t, j, grad.query);
  }

  // The virtual target at T: what the gradient of the final sums, whose maximum is `max`, asks of every source before
  // the ring.
  void leave_final(const Stripe<D, E>& s, int64_t j, V max) const {
    const TargetGrad<V> grad = Base::final_grad(s, j);
    const auto seen = hn::Gt(max, hn::Set(d, kExponentFloor<T>));
    T* to = target_row(j, shape.time);
    hn::Store(hn::IfThenElseZero(seen, grad.a), d, to);
    hn::Store(hn::IfThenElseZero(seen, grad.b), d, to + lanes);
    hn::Store(hn::IfThenElse(seen, hn::Neg(max), hn::Set(d, kExponentFloor<T>)), d, to + 2 * lanes);
  }

  // a' and b' of the chunk's rows and of the later ones its sources see; which vectors are out of range.
  void scale_targets(Stripe<D, E>& s, int64_t begin, int64_t end) const {
    const V limit = hn::Set(d, kRangeLimit<T>);
    const int64_t rows = std::min(rows_capacity, target_end() - begin);
    for (int64_t j = first; j < last; ++j) {
      const V m = hn::Load(d, s.scale + j * 2 * lanes);
      V peak = hn::Neg(limit);
      T* to = scaled_row(j, 0);
      for (int64_t i = 0; i < rows; ++i, to += 2 * lanes) {
        const T* from = target_row(j, begin + i);
        const V exponent = hn::Add(hn::Load(d, from + 2 * lanes), m);
        peak = hn::Max(exponent, peak);
        const V scale = Pow2(d, hn::Min(exponent, limit));
        hn::Store(hn::Mul(hn::Load(d, from), scale), d, to);
        hn::Store(hn::Mul(hn::Load(d, from + lanes), scale), d, to + lanes);
      }
      // The band's gradient takes a' 2^X: it must not overflow either.
      const V x = hn::Load(d, s.scale + j * 2 * lanes + lanes);
      const auto beyond = hn::Gt(hn::Add(peak, hn::Max(x, hn::Zero(d))), limit);
      exact[j - first] = s.redo && !hn::AllFalse(d, beyond);
      if (exact[j - first]) s.redone += (end - begin) * static_cast<int64_t>(hn::CountTrue(d, beyond));
    }
  }

  // w: the exponent W of the target's weights.
  void add_target(RunningSum<V>& sum, int64_t j, int64_t t, T w) const {
    const T* from = target_row(j, t);
    AddTerm(d, sum, hn::Sub(hn::Load(d, from + 2 * lanes), hn::Set(d, w)), hn::Load(d, from + lanes),
            hn::Load(d, from));
  }

  // The targets [begin, begin + kRows), added to each other first (see Stripe::pass_out).
  void add_targets(RunningSum<V>& sum, int64_t j, int64_t begin, const T* w) const {
    V exponent[kRows];
    V max = sum.max;
    for (int64_t r = 0; r < kRows; ++r) {
      exponent[r] = hn::Sub(hn::Load(d, target_row(j, begin + r) + 2 * lanes), hn::Set(d, w[r]));
      max = hn::Max(exponent[r], max);
    }
    if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Eq(max, sum.max)))) Rescale(d, sum, max);
    V a = hn::Zero(d), b = a;
    for (int64_t r = 0; r < kRows; ++r) {
      const T* from = target_row(j, begin + r);
      const V scale = Pow2(d, hn::Sub(exponent[r], max));
      a = hn::MulAdd(hn::Load(d, from), scale, a);
      b = hn::MulAdd(hn::Load(d, from + lanes), scale, b);
    }
    const V one = hn::Set(d, T(1));
    AddCompensated(a, one, sum.num, sum.num_low);
    AddCompensated(b, one, sum.den, sum.den_low);
  }

  // A pair's part of a source's sums, from the p and n of its weight and the target's a and b.
  void add_pair(V p_pair, V n, V a, V b, V& sum_a, V& sum_b) const {
    const V scale = hn::Mul(p_pair, Pow2(d, hn::Min(n, hn::Set(d, kPairExponentLimit<T>))));
    sum_a = hn::MulAdd(scale, a, sum_a);
    sum_b = hn::MulAdd(scale, b, sum_b);
  }

 private:
  int64_t ring = 0;
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

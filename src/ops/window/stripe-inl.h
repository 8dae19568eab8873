// The channels of a task with a window, walked in blocks of kRows targets.
// Forward and backward (which recomputes the forward) share it. Included by kernels inside foreach_target.
//
// Fast path: K = e^k 2^-M and KV = K v 2^-X are formed once per source, M being an exponent at or above that of every
// key seen so far; w~ = e^w 2^-W once per pair, W the row's largest exponent (at least 0). Then a row is
//   D = 2^(M + W) (sum w~ K + 2^-W outside),   N likewise with KV,
// multiply-adds alone. A term is lost below 2^-126; if the row's D is at least kCertificate in that scale, what was
// lost is below 2^-66 of it. Rows that fail are redone exactly from p and n of every pair (Channels::exact_row).
//
// Causality: M and X move only when a source exceeds them (then by kHeadroom more, so that it is rare), and the stored
// K, KV are rescaled by an exact power of two. A row's scale depends on the sources it may see, and each row adds its
// sources in the same order on both paths, so a future key leaves earlier rows bitwise alone.

#if defined(AFT_OPS_WINDOW_STRIPE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_WINDOW_STRIPE_INL_H_
#undef AFT_OPS_WINDOW_STRIPE_INL_H_
#else
#define AFT_OPS_WINDOW_STRIPE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "aft/ops/window.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/redo.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/window/channels-inl.h"
#include "ops/window/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Weights as a block walks them: that of its row r and the walk's step i is at[r * row + i * step].
template <typename T>
struct WeightWalk {
  const T* at;
  int64_t row, step;
};

// Weights of the targets of a chunk. The rows of a block see windows that are shifted against each other; so that a
// block can walk the union of them, each row is padded by what lies next to its window: 2^-W, or 0 for a future source.
template <typename T>
class Weights {
 public:
  Weights(const WindowShape& s, int64_t rows, Scratch& scratch)
      : left(s.left),
        span(s.left + 1 + s.right),
        padded(scratch.take<T>(rows * stride())),
        exponents(scratch.take<T>(rows)),
        outsides(scratch.take<T>(rows)) {}

  // The row of target t, [J]: w~ = e^w 2^-W; 0 where the source does not exist. kPad more on either side.
  T* row(int64_t t) const { return padded + (t - first) * stride() + kPad; }
  // Of a target and a source at most kPad beyond its window.
  T* at(int64_t t, int64_t source) const { return row(t) + (source - t + left); }
  T* exponent(int64_t t) const { return exponents + t - first; }  // W
  T* outside(int64_t t) const { return outsides + t - first; }    // 2^-W
  // From a target to the next, on the same source.
  int64_t next_target() const { return stride() - 1; }

  // From a pair on: a block of targets over sources, or a block of sources over targets.
  WeightWalk<T> targets_over_sources(int64_t t, int64_t source) const { return {at(t, source), next_target(), 1}; }
  WeightWalk<T> sources_over_targets(int64_t t, int64_t source) const { return {at(t, source), 1, next_target()}; }

  // Target t's weights are those of the one before.
  void repeat(int64_t t) const {
    std::copy_n(row(t - 1) - kPad, stride(), row(t) - kPad);
    *exponent(t) = *exponent(t - 1);
    *outside(t) = *outside(t - 1);
  }

  static constexpr int64_t kPad = kRows - 1;
  int64_t left = 0;
  int64_t span = 0;   // J = left + 1 + right
  int64_t first = 0;  // target of row 0

 private:
  int64_t stride() const { return span + 2 * kPad; }

  T* padded = nullptr;     // [rows][kPad + J + kPad]
  T* exponents = nullptr;  // [rows]
  T* outsides = nullptr;   // [rows]
};

template <class D, typename E>
class Stripe : public Channels<D, E> {
  using Base = Channels<D, E>;

 public:
  using Base::band, Base::band_stride, Base::d, Base::first_source, Base::initial_sums, Base::lanes, Base::load_sums,
      Base::own_key, Base::own_value, Base::shape, Base::source_key, Base::source_value, Base::sources, Base::span,
      Base::store_sums, Base::sums_at, Base::vectors;
  using typename Base::T;
  using typename Base::V;

  VectorMatrix<T, 2, lanes> window;         // [vectors of a panel or all][sources]: K, KV
  VectorView<T, 2, lanes> scale;            // [vectors]: M, X
  VectorMatrix<T, kSumParts, lanes> after;  // not causal: [blocks][vectors as in the window], sources after its windows
  Weights<T> weights;
  bool redo = redo_enabled();
  int64_t redone = 0;  // pairs so far

  // What a stripe takes from its scratch.
  struct Sizes {
    int64_t window_vectors = 0;  // vectors whose window is held at a time
    int64_t window_rows = 0;
    int64_t weight_rows = 0;
    int64_t blocks = 0;  // not causal: blocks of targets
  };

  Stripe(const WindowShape& s, const WindowTask& t, const WindowInputs<E>& in, const Sizes& sizes, Scratch& scratch)
      : Base(s, t, in, scratch),
        window(sizes.window_vectors, sizes.window_rows, scratch),
        scale(vectors, scratch),
        after(sizes.blocks, sizes.window_vectors, scratch),
        weights(s, sizes.weight_rows, scratch) {}

  // The window begins with this source, and with this vector.
  void place(int64_t source, int64_t vector) {
    window.first_column = source;
    window.first_row = after.first_column = vector;
  }

  // M and X before the first source of the window: those of the running sums, with headroom.
  void start_scale(int64_t j, const RunningSum<V>& s) const {
    const V floor = hn::Set(d, kExponentFloor<T>);
    const V headroom = hn::Set(d, kHeadroom<T>);
    hn::Store(hn::IfThenElse(hn::Gt(s.max, floor), hn::Add(s.max, headroom), floor), d, scale.at(j));
    const V exponent = hn::Min(ExponentOf(d, s.num), hn::Set(d, kValueExponentLimit<T>));
    hn::Store(hn::Max(hn::Set(d, kLeastValueExponent<T>), hn::Add(exponent, headroom)), d, scale.at(j, 1));
  }

  // Weights of the targets of a chunk and, in the backward, of the later ones that its sources see. Targets past the
  // last are the virtual one that the final sums are: it sees the sources before the ring, with weight 1.
  void prepare_targets(Range targets) {
    weights.first = targets.begin;
    after.first_row = targets.begin / kRows;
    bool repeats = false;  // all positions share a row, and the one before was whole
    for (int64_t t = targets.begin; t < targets.end; ++t) {
      T* to = weights.row(t);
      // Sources that exist: first <= t - left + j < T.
      const int64_t low = t < shape.time ? std::max<int64_t>(0, first_source - (t - shape.left)) : span;
      const int64_t high = std::max(low, std::min(span, shape.time - (t - shape.left)));
      const bool whole = low == 0 && high == span;
      if (whole && repeats) {
        weights.repeat(t);
        continue;
      }
      repeats = whole && band_stride == 0;
      const T* from = band + std::min(t, shape.time - 1) * band_stride;
      V max = hn::Zero(d);
      for (int64_t j = low; j < high; j += lanes) {
        const int64_t n = std::min(lanes, high - j);
        max = hn::Max(some(Split(d, LoadSome(d, from + j, n)).n, n), max);
      }
      const V w = hn::MaxOfLanes(d, max);
      const T outside = hn::GetLane(Pow2(d, hn::Neg(w)));
      std::fill(to - Weights<T>::kPad, to, outside);
      std::fill(to, to + low, T(0));
      for (int64_t j = low; j < high; j += lanes) {
        const int64_t n = std::min(lanes, high - j);
        const SplitExp<V> e = Split(d, LoadSome(d, from + j, n));
        StoreSome(hn::Mul(e.p, Pow2(d, hn::Sub(e.n, w))), d, to + j, n);
      }
      std::fill(to + high, to + span, T(0));
      std::fill(to + span, to + span + Weights<T>::kPad, shape.causal ? T(0) : outside);
      *weights.exponent(t) = hn::GetLane(w);
      *weights.outside(t) = outside;
    }
  }

  // M, and 2^-X, 2^X, 2^(X + 1).
  struct Scales {
    V m, to_x, from_x, bound;
  };
  Scales load_scales(int64_t j) const {
    const V x = hn::Load(d, scale.at(j, 1));
    const V from_x = Pow2(d, x);
    return {hn::Load(d, scale.at(j)), Pow2(d, hn::Neg(x)), from_x, hn::Add(from_x, from_x)};
  }

  // Stores K and KV of source s under the scales.
  void store_source(int64_t j, int64_t s, const SplitExp<V>& e, V value, const Scales& scales) const {
    const V k = hn::Mul(e.p, Pow2(d, hn::Sub(e.n, scales.m)));
    T* to = window.at(j, s);
    hn::Store(k, d, to);
    hn::Store(hn::Mul(k, hn::Mul(value, scales.to_x)), d, to + lanes);
  }

  bool exceeds(const Scales& scales, V n, V value) const {
    return !hn::AllFalse(d, hn::Or(hn::Gt(n, scales.m), hn::Ge(hn::Abs(value), scales.bound)));
  }

  // Raises M and X where a source (n, value) exceeds them and rescales what is stored of the sources `stored`.
  void raise_scale(int64_t j, V n, V value, Range stored) const {
    const V m0 = hn::Load(d, scale.at(j));
    const V x0 = hn::Load(d, scale.at(j, 1));
    const V headroom = hn::Set(d, kHeadroom<T>);
    const V m1 = hn::IfThenElse(hn::Gt(n, m0), hn::Add(n, headroom), m0);
    const V exponent = hn::Min(ExponentOf(d, value), hn::Set(d, kValueExponentLimit<T>));
    const V x1 = hn::IfThenElse(hn::Gt(exponent, x0), hn::Add(exponent, headroom), x0);
    const V k_scale = Pow2(d, hn::Sub(m0, m1));
    const V v_scale = Pow2(d, hn::Sub(x0, x1));
    hn::Store(m1, d, scale.at(j));
    hn::Store(x1, d, scale.at(j, 1));
    for (int64_t s = stored.begin; s < stored.end; ++s) {
      T* to = window.at(j, s);
      hn::Store(hn::Mul(hn::Load(d, to), k_scale), d, to);
      hn::Store(hn::Mul(hn::Mul(hn::Load(d, to + lanes), k_scale), v_scale), d, to + lanes);
    }
  }

  // Stores sources after raising the scales to them.
  void preload(int64_t j, Range taken) const {
    for (int64_t s = taken.begin; s < std::min<int64_t>(0, taken.end); ++s) take_source(j, s, taken.begin);
    for (int64_t s = std::max<int64_t>(0, taken.begin); s < taken.end; s += kRows) {
      const int64_t rows = std::min(kRows, taken.end - s);
      if (HWY_LIKELY(rows == kRows ? take_sources<kRows>(j, s, kRows) : take_sources<0>(j, s, rows))) continue;
      for (int64_t r = 0; r < rows; ++r) take_source(j, s + r, taken.begin);
    }
  }

  // Not causal: how far a row's window reaches into the sequence, and the first source after the windows of chunk
  // `index`.
  int64_t reach_left() const { return std::min(shape.left, shape.time); }
  int64_t after_chunk(int64_t index) const {
    return std::min(shape.time, (index + 1) * chunk_rows(shape) + std::min(shape.right, shape.time));
  }

  // Not causal, of the whole sequence: M and X, and the sums of the sources after the windows of every chunk.
  struct Whole {
    Whole(int64_t chunks, int64_t vectors, Scratch& scratch)
        : scale(vectors, scratch), sources_after(chunks, vectors, scratch) {}

    VectorView<T, 2, lanes> scale;                         // [vectors]
    VectorMatrix<T, kBoundaryParts, lanes> sources_after;  // [chunks][vectors]
  };

  // Not causal, before the chunks. One pass over the rows, last to first; in pieces of a chunk, so that the sums stay
  // in registers and memory sees whole rows.
  void scan_whole(const Whole& whole) const {
    const V floor = hn::Set(d, kExponentFloor<T>);
    for (int64_t j = 0; j < vectors; ++j) {
      store_sums(StartSum(d, floor), sums_at(j));
      hn::Store(floor, d, whole.scale.at(j));
      hn::Store(hn::Set(d, kLeastValueExponent<T>), d, whole.scale.at(j, 1));
    }
    int64_t next = shape.time;
    for (int64_t index = (shape.time - 1) / chunk_rows(shape); index >= -1; --index) {
      // The windows of the first chunk are summed by no one: only the scale looks at them.
      const int64_t until = index < 0 ? 0 : after_chunk(index);
      for (int64_t j = 0; j < vectors; ++j) {
        V m = hn::Load(d, whole.scale.at(j));
        V x = hn::Load(d, whole.scale.at(j, 1));
        RunningSum<V> sum = load_sums(sums_at(j));
        for (int64_t s = next - 1; s >= until; --s) {
          const V key = own_key(s, j);
          const V value = MaskAbsent(d, key, own_value(s, j));
          const SplitExp<V> e = Split(d, key);
          m = hn::Max(e.n, m);
          x = hn::Max(hn::Min(ExponentOf(d, value), hn::Set(d, kValueExponentLimit<T>)), x);
          if (index >= 0) AddTerm(d, sum, e.n, e.p, hn::Mul(e.p, value));
        }
        hn::Store(m, d, whole.scale.at(j));
        hn::Store(x, d, whole.scale.at(j, 1));
        store_sums(sum, sums_at(j));
        if (index >= 0) Base::store_boundary(sum, whole.sources_after.at(index, j));
      }
      next = until;
    }
  }

  // Not causal: stores sources under the whole sequence's scale, and the sums after the window of each block of chunk
  // `index`.
  void enter_chunk(int64_t j, int64_t index, Range taken, const Whole& whole) const {
    hn::Store(hn::Load(d, whole.scale.at(j)), d, scale.at(j));
    hn::Store(hn::Load(d, whole.scale.at(j, 1)), d, scale.at(j, 1));
    const Scales scales = load_scales(j);
    for (int64_t s = taken.begin; s < taken.end; ++s) {
      const V key = own_key(s, j);
      store_source(j, s, Split(d, key), MaskAbsent(d, key, own_value(s, j)), scales);
    }
    RunningSum<V> sum = Base::load_boundary(whole.sources_after.at(index, j));
    const int64_t begin = index * chunk_rows(shape);
    const int64_t end = std::min(begin + chunk_rows(shape), shape.time);
    int64_t next = after_chunk(index);
    for (int64_t tb = begin + (end - begin - 1) / kRows * kRows; tb >= begin; tb -= kRows) {
      while (next > tb + kRows + shape.right) {
        --next;
        AddSource(d, sum, own_key(next, j), own_value(next, j));
      }
      store_sums(sum, after.at(tb / kRows, j));
    }
  }

  // Moves the sources `kept` to the front of the window.
  void move_window(Range kept) {
    for (int64_t j = 0; j < vectors; ++j) {
      std::copy(window.at(j, kept.begin), window.at(j, kept.end), window.at(j, window.first_column));
    }
    window.first_column = kept.begin;
  }

  // Causal: the rows of a block of targets in vector j, their sources stored on the way. Where one raises the scale,
  // what is stored from source `kept` on follows.
  HWY_INLINE void causal_block(int64_t j, Range block, int64_t kept, RowSums<V>* row) {
    const int64_t rows = block.size();
    const int64_t begin = std::max(first_source, block.begin - shape.left);
    HWY_ALIGN T window_sums[2 * kRows * HWY_MAX_BYTES / sizeof(T)];
    if (HWY_LIKELY(rows == kRows ? take_sources<kRows>(j, block.begin, kRows)
                                 : take_sources<0>(j, block.begin, rows))) {
      causal_sums(j, block.begin, begin, window_sums);
      finish(j, block.begin, block, window_sums, nullptr, row);
    } else {
      causal_rows(j, block, begin, kept, row);
    }
    pass_out(j, block.begin - shape.left, rows);
  }

  // Stores K and KV of the block's own sources, unless one exceeds the scale: then nothing, and false. kCount = kRows
  // is the whole block, so that it can be unrolled. The parts of a block are not inlined into each other: together GCC
  // spills what their loops need.
  template <int64_t kCount>
  HWY_NOINLINE bool take_sources(int64_t j, int64_t tb, int64_t count) const {
    const int64_t rows = kCount == 0 ? count : kCount;
    SplitExp<V> e[kRows];
    V key[kRows], value[kRows];
    for (int64_t r = 0; r < rows; ++r) {
      key[r] = own_key(tb + r, j);
      value[r] = own_value(tb + r, j);
    }
    const Scales scales = load_scales(j);
    V n_max = scales.m;
    V value_max = hn::Zero(d);
    for (int64_t r = 0; r < rows; ++r) {
      value[r] = MaskAbsent(d, key[r], value[r]);
      e[r] = Split(d, key[r]);
      n_max = hn::Max(e[r].n, n_max);  // in this order NaN is passed over
      value_max = hn::Max(hn::Abs(value[r]), value_max);
    }
    if (HWY_UNLIKELY(exceeds(scales, n_max, value_max))) return false;
    for (int64_t r = 0; r < rows; ++r) store_source(j, tb + r, e[r], value[r], scales);
    for (int64_t r = rows; r < kRows; ++r) clear_source(j, tb + r);
    return true;
  }

  // Stores source s after raising the scales to it; what is stored from `begin` on is rescaled.
  HWY_NOINLINE void take_source(int64_t j, int64_t s, int64_t begin) const {
    const V key = source_key(s, j);
    const V value = MaskAbsent(d, key, source_value(s, j));
    const SplitExp<V> e = Split(d, key);
    if (exceeds(load_scales(j), e.n, value)) raise_scale(j, e.n, value, {begin, s});
    store_source(j, s, e, value, load_scales(j));
  }

  // Where a source raises the scale: row by row, so that no row feels a later one.
  HWY_NOINLINE void causal_rows(int64_t j, Range block, int64_t begin, int64_t kept, RowSums<V>* row) {
    HWY_ALIGN T window_sums[size_t{2} * HWY_MAX_BYTES / sizeof(T)];
    for (int64_t t = block.begin; t < block.end; ++t, ++row) {
      take_source(j, t, std::min(begin, kept));
      accumulate_row(weights.at(t, begin), window.at(j, begin), t + 1 - begin, window_sums);
      finish(j, block.begin, {t, t + 1}, window_sums, nullptr, row);
    }
  }

  // D and N of a block's rows over the sources from `begin` on, [kRows][2][lanes].
  HWY_NOINLINE void causal_sums(int64_t j, int64_t tb, int64_t begin, T* HWY_RESTRICT block) const {
    V den[kRows], num[kRows];
    accumulate(weights.targets_over_sources(tb, begin), window.at(j, begin), tb - begin, den, num);
    // The block's own sources: source m is seen by the rows r >= m, and must not touch the others even as 0 * NaN.
    const T* w = weights.at(tb, tb);
    const T* x = window.at(j, tb);
    for (int64_t m = 0; m < kRows; ++m, ++w, x += 2 * lanes) {
      const V k = hn::Load(d, x);
      const V kv = hn::Load(d, x + lanes);
      for (int64_t r = m; r < kRows; ++r) {
        const V weight = hn::Set(d, w[r * weights.next_target()]);
        den[r] = hn::MulAdd(weight, k, den[r]);
        num[r] = hn::MulAdd(weight, kv, num[r]);
      }
    }
    store_rows(den, num, block);
  }

  void store_rows(const V* den, const V* num, T* block) const {
    for (int64_t r = 0; r < kRows; ++r) {
      hn::Store(den[r], d, block + 2 * r * lanes);
      hn::Store(num[r], d, block + (2 * r + 1) * lanes);
    }
  }

  // Adds the sources [begin, begin + rows) that leave the window to the sums outside. Their K, which the window still
  // holds, serves if it has lost nothing and none raises the maximum. Added to each other first, in a relative error of
  // 2 ulp at most: the compensation then keeps the whole sum to that.
  HWY_NOINLINE void pass_out(int64_t j, int64_t begin, int64_t rows) const {
    T* sum_at = sums_at(j);
    RunningSum<V> sum = load_sums(sum_at);
    if (HWY_LIKELY(rows == kRows && begin >= first_source)) {
      const V m = hn::Load(d, scale.at(j));
      const T* x = window.at(j, begin);
      const V k0 = hn::Load(d, x), k1 = hn::Load(d, x + 2 * lanes);
      const V k2 = hn::Load(d, x + 4 * lanes), k3 = hn::Load(d, x + 6 * lanes);
      const V least = hn::Min(hn::Min(k0, k1), hn::Min(k2, k3));
      const V greatest = hn::Max(hn::Max(k0, k1), hn::Max(k2, k3));
      // p 2^n < 1.4 2^max: p being at least 2^-1/2, n is at most max.
      const V limit = hn::Mul(hn::Set(d, T(1.4)), Pow2(d, hn::Sub(sum.max, m)));
      if (HWY_LIKELY(hn::AllTrue(d, hn::And(hn::Ge(least, hn::Set(d, T(0x1p-40))), hn::Lt(greatest, limit))))) {
        const V v0 = source_value(begin, j), v1 = source_value(begin + 1, j);
        const V v2 = source_value(begin + 2, j), v3 = source_value(begin + 3, j);
        const V den = hn::Add(hn::Add(k0, k1), hn::Add(k2, k3));
        const V num = hn::Add(hn::MulAdd(k0, v0, hn::Mul(k1, v1)), hn::MulAdd(k2, v2, hn::Mul(k3, v3)));
        const V to_max = Pow2(d, hn::Sub(m, sum.max));
        AddCompensated(den, to_max, sum.den, sum.den_low);
        AddCompensated(num, to_max, sum.num, sum.num_low);
        store_sums(sum, sum_at);
        return;
      }
    }
    for (int64_t s = std::max(begin, first_source); s < begin + rows; ++s) {
      AddSource(d, sum, source_key(s, j), source_value(s, j));
    }
    store_sums(sum, sum_at);
  }

  // The same without `causal`: every source of the block's union is stored already.
  HWY_INLINE void whole_block(int64_t j, Range block, RowSums<V>* row) {
    const int64_t begin = std::max<int64_t>(0, block.begin - shape.left);
    const int64_t end = std::min(shape.time, block.begin + kRows + shape.right);
    HWY_ALIGN T window_sums[2 * kRows * HWY_MAX_BYTES / sizeof(T)];
    V den[kRows], num[kRows];
    accumulate(weights.targets_over_sources(block.begin, begin), window.at(j, begin), end - begin, den, num);
    store_rows(den, num, window_sums);
    finish(j, block.begin, block, window_sums, after.at(block.begin / kRows, j), row);
    pass_out(j, block.begin - shape.left, block.size());
  }

  void clear_source(int64_t j, int64_t s) const {
    hn::Store(hn::Zero(d), d, window.at(j, s));
    hn::Store(hn::Zero(d), d, window.at(j, s) + lanes);
  }

  // den[r] = sum_i w(r, i) x[i][0], num[r] = sum_i w(r, i) x[i][1], i ascending to n, for the kRows rows of a block.
  HWY_INLINE void accumulate(const WeightWalk<T>& weight, const T* HWY_RESTRICT x, int64_t n, V* den, V* num) const {
    const T* HWY_RESTRICT w = weight.at;
    const int64_t step = weight.step;
    V d0 = hn::Zero(d), d1 = d0, d2 = d0, d3 = d0;
    V n0 = d0, n1 = d0, n2 = d0, n3 = d0;
    const T* HWY_RESTRICT w1 = w + weight.row;
    const T* HWY_RESTRICT w2 = w1 + weight.row;
    const T* HWY_RESTRICT w3 = w2 + weight.row;
    for (int64_t i = 0, at = 0; i < n; ++i, at += step, x += 2 * lanes) {
      const V k = hn::Load(d, x);
      const V kv = hn::Load(d, x + lanes);
      const V weight0 = hn::Set(d, w[at]);
      d0 = hn::MulAdd(weight0, k, d0);
      n0 = hn::MulAdd(weight0, kv, n0);
      const V weight1 = hn::Set(d, w1[at]);
      d1 = hn::MulAdd(weight1, k, d1);
      n1 = hn::MulAdd(weight1, kv, n1);
      const V weight2 = hn::Set(d, w2[at]);
      d2 = hn::MulAdd(weight2, k, d2);
      n2 = hn::MulAdd(weight2, kv, n2);
      const V weight3 = hn::Set(d, w3[at]);
      d3 = hn::MulAdd(weight3, k, d3);
      n3 = hn::MulAdd(weight3, kv, n3);
    }
    den[0] = d0, den[1] = d1, den[2] = d2, den[3] = d3;
    num[0] = n0, num[1] = n1, num[2] = n2, num[3] = n3;
  }

  // One row of a block: the same sums in the same order. out [2][lanes].
  void accumulate_row(const T* HWY_RESTRICT w, const T* HWY_RESTRICT x, int64_t n, T* HWY_RESTRICT out) const {
    V d0 = hn::Zero(d), n0 = d0;
    for (int64_t i = 0; i < n; ++i, x += 2 * lanes) {
      const V w0 = hn::Set(d, w[i]);
      d0 = hn::MulAdd(w0, hn::Load(d, x), d0);
      n0 = hn::MulAdd(w0, hn::Load(d, x + lanes), n0);
    }
    hn::Store(d0, d, out);
    hn::Store(n0, d, out + lanes);
  }

 private:
  static V some(V v, int64_t n) {
    const D tag;
    return n >= static_cast<int64_t>(hn::Lanes(tag)) ? v
                                                     : hn::IfThenElseZero(hn::FirstN(tag, static_cast<size_t>(n)), v);
  }

  // What lies outside the block's union, under M and X.
  struct Outside {
    V den, num;
  };
  Outside scale_outside(const RunningSum<V>& s, const Scales& scales) const {
    const V scaled = Pow2(d, hn::Sub(s.max, scales.m));
    return {hn::Mul(s.den, scaled), hn::Mul(hn::Mul(s.num, scales.to_x), scaled)};
  }

  // Ends the rows of `targets`, of a block that begins at tb, from [n][2][lanes] over the window: adds what lies
  // outside, checks the certificate and redoes the rows that fail. The rows of a whole block go side by side: one alone
  // is a chain of waits.
  HWY_INLINE void finish(int64_t j, int64_t tb, Range targets, const T* window_sums, const T* later_at,
                         RowSums<V>* row) {
    const Scales scales = load_scales(j);
    Outside beyond = scale_outside(load_sums(sums_at(j)), scales);
    if (later_at != nullptr) {
      const Outside later = scale_outside(load_sums(later_at), scales);
      beyond = {hn::Add(beyond.den, later.den), hn::Add(beyond.num, later.num)};
    }
    const V certificate = hn::Set(d, kCertificate<T>);
    auto failed = hn::Lt(certificate, certificate);  // NaN passes: redone it would be NaN again
    const T* exponent = weights.exponent(targets.begin);
    const T* outside = weights.outside(targets.begin);
    const auto add = [&](int64_t i) HWY_ATTR {
      const V weight = hn::Set(d, outside[i]);
      row[i] = {hn::MulAdd(beyond.den, weight, hn::Load(d, window_sums + 2 * i * lanes)),
                hn::MulAdd(beyond.num, weight, hn::Load(d, window_sums + (2 * i + 1) * lanes)),
                hn::Add(scales.m, hn::Set(d, exponent[i])), scales.from_x};
      failed = hn::Or(failed, hn::Lt(row[i].den, certificate));
    };
    const int64_t n = targets.size();
    if (HWY_LIKELY(n == kRows)) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; ++i) add(i);
    } else {
      for (int64_t i = 0; i < n; ++i) add(i);
    }
    if (HWY_UNLIKELY(!hn::AllFalse(d, failed)) && redo) {
      for (int64_t i = 0; i < n; ++i) redo_row(j, tb, targets.begin + i, later_at, row[i]);
    }
  }

  // Where the row fails, from all its pairs.
  HWY_NOINLINE void redo_row(int64_t j, int64_t tb, int64_t t, const T* later_at, RowSums<V>& row) {
    const auto failed = hn::Lt(row.den, hn::Set(d, kCertificate<T>));
    if (hn::AllFalse(d, failed)) return;
    redone += static_cast<int64_t>(hn::CountTrue(d, failed));
    const RunningSum<V> outside = load_sums(sums_at(j));
    const RunningSum<V> later = later_at == nullptr ? outside : load_sums(later_at);
    const RowSums<V> right = Base::exact_row(j, tb, t, outside, later_at == nullptr ? nullptr : &later);
    row.den = hn::IfThenElse(failed, right.den, row.den);
    row.num = hn::IfThenElse(failed, right.num, row.num);
    row.exponent = hn::IfThenElse(failed, right.exponent, row.exponent);
    row.value_scale = hn::IfThenElse(failed, right.value_scale, row.value_scale);
  }
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

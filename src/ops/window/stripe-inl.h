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
#include <limits>

#include "aft/ops/window.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/scratch.h"
#include "ops/window/channels-inl.h"
#include "ops/window/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Weights of the rows of a chunk. The rows of a block see windows that are shifted against each other; so that a block
// can walk the union of them, each row is padded by what lies next to its window: 2^-W, or 0 for a future source.
template <typename T>
struct Weights {
  static constexpr int64_t kPad = kRows - 1;

  int64_t span = 0;       // J = left + 1 + right
  T* padded = nullptr;    // [rows][kPad + J + kPad]: w~ = e^w 2^-W; 0 where the source does not exist
  T* exponent = nullptr;  // [rows]: W
  T* outside = nullptr;   // [rows]: 2^-W

  static int64_t stride_of(int64_t span) { return span + 2 * kPad; }
  int64_t stride() const { return stride_of(span); }
  // Weight j of row i, j in [-kPad, J + kPad). A step to the next row and one source back stays on the same source.
  T* at(int64_t i, int64_t j) const { return padded + i * stride() + kPad + j; }
  int64_t next_row() const { return stride() - 1; }
};

template <class D, typename E>
class Stripe : public Channels<D, E> {
  using Base = Channels<D, E>;

 public:
  using Base::band, Base::band_stride, Base::d, Base::first_source, Base::initial_sums, Base::lanes, Base::load_sums,
      Base::own_key, Base::own_value, Base::shape, Base::source_key, Base::source_value, Base::sources, Base::span,
      Base::store_sums, Base::sums, Base::vectors;
  using typename Base::T;
  using typename Base::V;

  int64_t capacity = 0;
  int64_t base = 0;          // source in slot 0 of the window buffer
  int64_t first_vector = 0;  // vector in row 0 of the window buffer
  int64_t window_vectors = 0;
  T* window = nullptr;  // [vectors of a panel or all][capacity][2][lanes]: K, KV
  T* scale = nullptr;   // [vectors][2][lanes]: M, X
  T* after = nullptr;   // not causal: [blocks][panel][kSumParts][lanes], sources after each block's window
  Weights<T> weights;
  int64_t keep_from = std::numeric_limits<int64_t>::max();  // the backward wants K and KV of its whole chunk rescaled
  bool redo = true;
  int64_t redone = 0;

  // What a stripe takes from its scratch.
  struct Sizes {
    int64_t window_vectors = 0;  // vectors whose window is held at a time
    int64_t window_rows = 0;
    int64_t weight_rows = 0;
    int64_t blocks = 0;  // not causal: blocks of targets
  };

  static size_t bytes(const WindowShape& s, const WindowTask& t, const Sizes& room) {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
    const int64_t vectors = (t.end - t.begin + lanes - 1) / lanes;
    return Base::bytes(s, t) + Room::padded<T>(room.window_vectors * room.window_rows * 2 * lanes) +
           Room::padded<T>(vectors * 2 * lanes) +
           Room::padded<T>(room.blocks * room.window_vectors * kSumParts * lanes) +
           Room::padded<T>(room.weight_rows * Weights<T>::stride_of(s.left + 1 + s.right)) +
           2 * Room::padded<T>(room.weight_rows);
  }

  template <class Memory>
  Stripe(const WindowShape& s, const WindowTask& t, const WindowInputs<E>& in, const Sizes& room, Memory& scratch)
      : Base(s, t, in, scratch), capacity(room.window_rows), window_vectors(room.window_vectors) {
    window = scratch.template take<T>(window_vectors * capacity * 2 * lanes);
    scale = scratch.template take<T>(vectors * 2 * lanes);
    after = scratch.template take<T>(room.blocks * window_vectors * kSumParts * lanes);
    weights.span = Base::span;
    weights.padded = scratch.template take<T>(room.weight_rows * weights.stride());
    weights.exponent = scratch.template take<T>(room.weight_rows);
    weights.outside = scratch.template take<T>(room.weight_rows);
  }

  T* slot(int64_t j, int64_t source) const {
    return window + ((j - first_vector) * capacity + source - base) * 2 * lanes;
  }

  T* after_row(int64_t block, int64_t j) const {
    return after + (block * window_vectors + j - first_vector) * kSumParts * lanes;
  }

  // M and X before the first source of the window: those of the running sums, with headroom.
  void start_scale(int64_t j, const RunningSum<V>& s) const {
    T* at = scale + j * 2 * lanes;
    const V floor = hn::Set(d, kExponentFloor<T>);
    const V headroom = hn::Set(d, kHeadroom<T>);
    hn::Store(hn::IfThenElse(hn::Gt(s.max, floor), hn::Add(s.max, headroom), floor), d, at);
    const V exponent = hn::Min(ExponentOf(d, s.num), hn::Set(d, kValueExponentLimit<T>));
    hn::Store(hn::Max(hn::Set(d, kLeastValueExponent<T>), hn::Add(exponent, headroom)), d, at + lanes);
  }

  // Weights of local rows [begin, end); row i of the arrays is local row begin + i. Rows past the last are the virtual
  // target that the final sums are: it sees the sources before the ring, with weight 1.
  void prepare_rows(int64_t begin, int64_t end) {
    bool repeats = false;  // all positions share a row, and the one before was whole
    for (int64_t t = begin; t < end; ++t) {
      T* to = weights.at(t - begin, 0);
      // Sources that exist: first <= t - left + j < T.
      const int64_t low = t < shape.time ? std::max<int64_t>(0, first_source - (t - shape.left)) : span;
      const int64_t high = std::max(low, std::min(span, shape.time - (t - shape.left)));
      const bool whole = low == 0 && high == span;
      if (whole && repeats) {
        const T* before = weights.at(t - begin - 1, -Weights<T>::kPad);
        std::copy(before, before + weights.stride(), to - Weights<T>::kPad);
        weights.exponent[t - begin] = weights.exponent[t - begin - 1];
        weights.outside[t - begin] = weights.outside[t - begin - 1];
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
      weights.exponent[t - begin] = hn::GetLane(w);
      weights.outside[t - begin] = outside;
    }
  }

  // M, and 2^-X, 2^X, 2^(X + 1).
  struct Scales {
    V m, to_x, from_x, bound;
  };
  Scales load_scales(int64_t j) const {
    const T* at = scale + j * 2 * lanes;
    const V from_x = Pow2(d, hn::Load(d, at + lanes));
    return {hn::Load(d, at), Pow2(d, hn::Neg(hn::Load(d, at + lanes))), from_x, hn::Add(from_x, from_x)};
  }

  // Stores K and KV of source s under the scales.
  void store_source(int64_t j, int64_t s, const SplitExp<V>& e, V value, const Scales& scales) const {
    const V k = hn::Mul(e.p, Pow2(d, hn::Sub(e.n, scales.m)));
    T* to = slot(j, s);
    hn::Store(k, d, to);
    hn::Store(hn::Mul(k, hn::Mul(value, scales.to_x)), d, to + lanes);
  }

  bool exceeds(const Scales& scales, V n, V value) const {
    return !hn::AllFalse(d, hn::Or(hn::Gt(n, scales.m), hn::Ge(hn::Abs(value), scales.bound)));
  }

  // Raises M and X where source (n, value) exceeds them and rescales what is stored of the sources [begin, end).
  void raise_scale(int64_t j, V n, V value, int64_t begin, int64_t end) const {
    T* at = scale + j * 2 * lanes;
    const V m0 = hn::Load(d, at);
    const V x0 = hn::Load(d, at + lanes);
    const V headroom = hn::Set(d, kHeadroom<T>);
    const V m1 = hn::IfThenElse(hn::Gt(n, m0), hn::Add(n, headroom), m0);
    const V exponent = hn::Min(ExponentOf(d, value), hn::Set(d, kValueExponentLimit<T>));
    const V x1 = hn::IfThenElse(hn::Gt(exponent, x0), hn::Add(exponent, headroom), x0);
    const V k_scale = Pow2(d, hn::Sub(m0, m1));
    const V v_scale = Pow2(d, hn::Sub(x0, x1));
    hn::Store(m1, d, at);
    hn::Store(x1, d, at + lanes);
    for (int64_t s = begin; s < end; ++s) {
      T* to = slot(j, s);
      hn::Store(hn::Mul(hn::Load(d, to), k_scale), d, to);
      hn::Store(hn::Mul(hn::Mul(hn::Load(d, to + lanes), k_scale), v_scale), d, to + lanes);
    }
  }

  // Stores the sources [begin, end) after raising the scales to them.
  void preload(int64_t j, int64_t begin, int64_t end) const {
    for (int64_t s = begin; s < std::min<int64_t>(0, end); ++s) take_source(j, s, begin);
    for (int64_t s = std::max<int64_t>(0, begin); s < end; s += kRows) {
      const int64_t rows = std::min(kRows, end - s);
      if (HWY_LIKELY(rows == kRows ? take_sources<kRows>(j, s, kRows) : take_sources<0>(j, s, rows))) continue;
      for (int64_t r = 0; r < rows; ++r) take_source(j, s + r, begin);
    }
  }

  // Not causal: how far a row's window reaches into the sequence, and the first source after the windows of chunk
  // `index`.
  int64_t reach_left() const { return std::min(shape.left, shape.time); }
  int64_t after_chunk(int64_t index) const {
    return std::min(shape.time, (index + 1) * chunk_rows(shape) + std::min(shape.right, shape.time));
  }

  // Not causal, before the chunks: one scale for the whole sequence, and in `ends`, a boundary a chunk, the sums of the
  // sources after its windows. One pass over the rows, last to first; in pieces of a chunk, so that the sums stay in
  // registers and memory sees whole rows.
  void scan_whole(T* ends) const {
    const V floor = hn::Set(d, kExponentFloor<T>);
    for (int64_t j = 0; j < vectors; ++j) {
      store_sums(StartSum(d, floor), sums + j * kSumParts * lanes);
      hn::Store(floor, d, scale + j * 2 * lanes);
      hn::Store(hn::Set(d, kLeastValueExponent<T>), d, scale + j * 2 * lanes + lanes);
    }
    int64_t next = shape.time;
    for (int64_t index = (shape.time - 1) / chunk_rows(shape); index >= -1; --index) {
      // The windows of the first chunk are summed by no one: only the scale looks at them.
      const int64_t until = index < 0 ? 0 : after_chunk(index);
      for (int64_t j = 0; j < vectors; ++j) {
        T* at = scale + j * 2 * lanes;
        V m = hn::Load(d, at);
        V x = hn::Load(d, at + lanes);
        RunningSum<V> sum = load_sums(sums + j * kSumParts * lanes);
        for (int64_t s = next - 1; s >= until; --s) {
          const V key = own_key(s, j);
          const V value = MaskAbsent(d, key, own_value(s, j));
          const SplitExp<V> e = Split(d, key);
          m = hn::Max(e.n, m);
          x = hn::Max(hn::Min(ExponentOf(d, value), hn::Set(d, kValueExponentLimit<T>)), x);
          if (index >= 0) AddTerm(d, sum, e.n, e.p, hn::Mul(e.p, value));
        }
        hn::Store(m, d, at);
        hn::Store(x, d, at + lanes);
        store_sums(sum, sums + j * kSumParts * lanes);
        if (index >= 0) Base::store_boundary(sum, Base::boundary_row(ends, index, j));
      }
      next = until;
    }
  }

  // Not causal: stores the sources [from, to), and the sums after the window of each block of chunk `index`.
  void enter_chunk(int64_t j, int64_t index, int64_t from, int64_t to, T* ends) const {
    const Scales scales = load_scales(j);
    for (int64_t s = from; s < to; ++s) {
      const V key = own_key(s, j);
      store_source(j, s, Split(d, key), MaskAbsent(d, key, own_value(s, j)), scales);
    }
    RunningSum<V> sum = Base::load_boundary(Base::boundary_row(ends, index, j));
    const int64_t begin = index * chunk_rows(shape);
    int64_t next = after_chunk(index);
    for (int64_t block = (std::min(chunk_rows(shape), shape.time - begin) - 1) / kRows; block >= 0; --block) {
      while (next > begin + (block + 1) * kRows + shape.right) {
        --next;
        AddSource(d, sum, own_key(next, j), own_value(next, j));
      }
      store_sums(sum, after_row(block, j));
    }
  }

  // Moves the sources [begin, end) to the front of the buffers.
  void move_window(int64_t begin, int64_t end) {
    for (int64_t j = 0; j < vectors; ++j) {
      const T* from = slot(j, begin);
      std::copy(from, from + (end - begin) * 2 * lanes, slot(j, base));
    }
    base = begin;
  }

  // Causal block of targets tb .. tb + rows - 1 in vector j, their sources stored on the way. emit(r, n, row sums) is
  // called for rows [r, r + n) of it, in order.
  template <class Emit>
  void causal_block(int64_t j, int64_t tb, int64_t rows, int64_t prepared, const Emit& emit) {
    T* sum_at = sums + j * kSumParts * lanes;
    const int64_t begin = std::max(first_source, tb - shape.left);
    HWY_ALIGN T block[2 * kRows * HWY_MAX_BYTES / sizeof(T)];
    if (HWY_LIKELY(rows == kRows ? take_sources<kRows>(j, tb, kRows) : take_sources<0>(j, tb, rows))) {
      causal_sums(j, tb, begin, prepared, block);
      finish(j, tb, 0, rows, prepared, block, sum_at, nullptr, emit);
    } else {
      // A source raises the scale: row by row, so that no row feels a later one.
      for (int64_t r = 0; r < rows; ++r) {
        take_source(j, tb + r, std::min(begin, keep_from));
        accumulate_row(weights.at(tb + r - prepared, begin - (tb + r - shape.left)), slot(j, begin), tb + r + 1 - begin,
                       block);
        finish(j, tb, r, 1, prepared, block, sum_at, nullptr, emit);
      }
    }
    pass_out(j, tb - shape.left, rows, sum_at);
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
    if (exceeds(load_scales(j), e.n, value)) raise_scale(j, e.n, value, begin, s);
    store_source(j, s, e, value, load_scales(j));
  }

  // D and N of a block's rows over the sources from `begin` on, [kRows][2][lanes].
  HWY_NOINLINE void causal_sums(int64_t j, int64_t tb, int64_t begin, int64_t prepared, T* HWY_RESTRICT block) const {
    V den[kRows], num[kRows];
    accumulate(weights.at(tb - prepared, begin - (tb - shape.left)), weights.next_row(), 1, slot(j, begin), tb - begin,
               den, num);
    // The block's own sources: source m is seen by the rows r >= m, and must not touch the others even as 0 * NaN.
    const T* w = weights.at(tb - prepared, shape.left);
    const T* x = slot(j, tb);
    for (int64_t m = 0; m < kRows; ++m, ++w, x += 2 * lanes) {
      const V k = hn::Load(d, x);
      const V kv = hn::Load(d, x + lanes);
      for (int64_t r = m; r < kRows; ++r) {
        const V weight = hn::Set(d, w[r * weights.next_row()]);
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
  HWY_NOINLINE void pass_out(int64_t j, int64_t begin, int64_t rows, T* sum_at) const {
    RunningSum<V> sum = load_sums(sum_at);
    if (HWY_LIKELY(rows == kRows && begin >= first_source)) {
      const V m = hn::Load(d, scale + j * 2 * lanes);
      const T* x = slot(j, begin);
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

  // The same without `causal`: every source of the block's union is stored already; block = index into `after`.
  template <class Emit>
  void whole_block(int64_t j, int64_t tb, int64_t rows, int64_t prepared, int64_t block, const Emit& emit) {
    T* sum_at = sums + j * kSumParts * lanes;
    const int64_t begin = std::max<int64_t>(0, tb - shape.left);
    const int64_t end = std::min(shape.time, tb + kRows + shape.right);
    HWY_ALIGN T row_sums[2 * kRows * HWY_MAX_BYTES / sizeof(T)];
    V den[kRows], num[kRows];
    accumulate(weights.at(tb - prepared, begin - (tb - shape.left)), weights.next_row(), 1, slot(j, begin), end - begin,
               den, num);
    store_rows(den, num, row_sums);
    finish(j, tb, 0, rows, prepared, row_sums, sum_at, after_row(block, j), emit);
    pass_out(j, tb - shape.left, rows, sum_at);
  }

  void clear_source(int64_t j, int64_t s) const {
    hn::Store(hn::Zero(d), d, slot(j, s));
    hn::Store(hn::Zero(d), d, slot(j, s) + lanes);
  }

  // den[r] = sum_i w(r, i) x[i][0], num[r] = sum_i w(r, i) x[i][1], i ascending, for the kRows rows of a block, with
  // w(r, i) = w[r * row_step + i * step].
  HWY_INLINE void accumulate(const T* HWY_RESTRICT w, int64_t row_step, int64_t step, const T* HWY_RESTRICT x,
                             int64_t n, V* den, V* num) const {
    V d0 = hn::Zero(d), d1 = d0, d2 = d0, d3 = d0;
    V n0 = d0, n1 = d0, n2 = d0, n3 = d0;
    const T* HWY_RESTRICT w1 = w + row_step;
    const T* HWY_RESTRICT w2 = w1 + row_step;
    const T* HWY_RESTRICT w3 = w2 + row_step;
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

  // Rows [first, first + n) of a block, [n][2][lanes] over the window: adds what lies outside, checks the certificate
  // and redoes the rows that fail. The rows of a whole block go side by side: one alone is a chain of waits.
  template <class Emit>
  HWY_INLINE void finish(int64_t j, int64_t tb, int64_t first, int64_t n, int64_t prepared, const T* block,
                         const T* sum_at, const T* later_at, const Emit& emit) {
    const Scales scales = load_scales(j);
    Outside beyond = scale_outside(load_sums(sum_at), scales);
    if (later_at != nullptr) {
      const Outside later = scale_outside(load_sums(later_at), scales);
      beyond = {hn::Add(beyond.den, later.den), hn::Add(beyond.num, later.num)};
    }
    RowSums<V> row[kRows];
    const V certificate = hn::Set(d, kCertificate<T>);
    auto failed = hn::Lt(certificate, certificate);  // NaN passes: redone it would be NaN again
    const auto add = [&](int64_t i) HWY_ATTR {
      const int64_t r = tb + first + i - prepared;
      const V weight = hn::Set(d, weights.outside[r]);
      row[i] = {hn::MulAdd(beyond.den, weight, hn::Load(d, block + 2 * i * lanes)),
                hn::MulAdd(beyond.num, weight, hn::Load(d, block + (2 * i + 1) * lanes)),
                hn::Add(scales.m, hn::Set(d, weights.exponent[r])), scales.from_x};
      failed = hn::Or(failed, hn::Lt(row[i].den, certificate));
    };
    if (HWY_LIKELY(n == kRows)) {
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; ++i) add(i);
    } else {
      for (int64_t i = 0; i < n; ++i) add(i);
    }
    if (HWY_UNLIKELY(!hn::AllFalse(d, failed)) && redo) {
      for (int64_t i = 0; i < n; ++i) redo_row(j, tb, first + i, sum_at, later_at, row[i]);
    }
    emit(first, n, row);
  }

  // Where the row fails, from all its pairs.
  HWY_NOINLINE void redo_row(int64_t j, int64_t tb, int64_t r, const T* sum_at, const T* later_at, RowSums<V>& row) {
    const auto failed = hn::Lt(row.den, hn::Set(d, kCertificate<T>));
    if (hn::AllFalse(d, failed)) return;
    redone += static_cast<int64_t>(hn::CountTrue(d, failed));
    const RunningSum<V> later = load_sums(later_at == nullptr ? sum_at : later_at);
    const RowSums<V> right = Base::exact_row(j, tb, r, load_sums(sum_at), later_at == nullptr ? nullptr : &later);
    row.den = hn::IfThenElse(failed, right.den, row.den);
    row.num = hn::IfThenElse(failed, right.num, row.num);
    row.exponent = hn::IfThenElse(failed, right.exponent, row.exponent);
    row.value_scale = hn::IfThenElse(failed, right.value_scale, row.value_scale);
  }
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

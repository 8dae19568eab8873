// One panel of channels of the grid operator, a vector of one image at a time. Forward and backward (which recomputes
// the forward) share it. Included by kernels inside foreach_target.
//
// Fast path: K = e^k 2^-M and KV = K v 2^-X once per source, M and X being the image's largest exponents of the
// channel; w~ = e^w 2^-W once per task, W the kernel's largest exponent (at least 0, the weight of what lies outside).
// Then a row is
//   D = 2^(M + W) (sum w~ K + 2^-W outside),   N likewise with KV and 2^X,
// multiply-adds alone. A term is lost below 2^-126; if the row's D is at least kCertificate in that scale, what was
// lost is below 2^-66 of it. Rows that fail are redone from p and n of every pair (exact_row).
//
// A pair of values a position, here K and KV, in the backward what a target leaves for its sources, is a field:
// [T][2][lanes]. Sums of a field over the kernel and over what lies outside are all that either pass needs.

#if defined(AFT_OPS_GRID_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_GRID_PANEL_INL_H_
#undef AFT_OPS_GRID_PANEL_INL_H_
#else
#define AFT_OPS_GRID_PANEL_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "aft/ops/grid.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/scratch.h"
#include "ops/grid/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::grid::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using namespace ops::HWY_NAMESPACE;  // what the families share

// A size's exponent such that 2^x and 2^-x are normal, and what is divided by 2^x keeps clear of the ends.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ScaleExponent(D d, V largest) {
  using T = hn::TFromD<D>;
  constexpr T kBias = FloatFormat<T>::kBias;
  return hn::Max(hn::Set(d, 1 - kBias), hn::Min(hn::Set(d, kBias - 9), ExponentOf(d, largest)));
}

// D = den 2^exponent, N = num 2^(exponent + X) of an exact row.
template <class V>
struct ExactRow {
  V den, num, exponent;
};

// A sum of pairs: eight at a time plainly, the eights with what rounding has added too much (Kahan), so that many equal
// terms, which round the same way at every step, do not drift.
template <class D>
struct PairSum {
  using V = hn::Vec<D>;
  using T = hn::TFromD<D>;
  D d;
  V first, second, first_low, second_low;

  PairSum() : first(hn::Zero(d)), second(hn::Zero(d)), first_low(hn::Zero(d)), second_low(hn::Zero(d)) {}
  void add(V x, V y) {
    const V one = hn::Set(d, T(1));
    AddCompensated(x, one, first, first_low);
    AddCompensated(y, one, second, second_low);
  }
  // n pairs, `step` elements apart.
  void add_all(const T* at, int64_t step, int64_t n) {
    constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));
    while (n > 0) {
      V x = hn::Load(d, at), y = hn::Load(d, at + lanes);
      at += step;
      const int64_t count = std::min<int64_t>(n, 8);
      for (int64_t i = 1; i < count; ++i, at += step) {
        x = hn::Add(x, hn::Load(d, at));
        y = hn::Add(y, hn::Load(d, at + lanes));
      }
      add(x, y);
      n -= count;
    }
  }
  void store(T* at) const {
    hn::Store(first, d, at);
    hn::Store(second, d, at + hn::MaxLanes(d));
  }
};

template <class D, typename E>
class Panel {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  D d;
  static constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));  // a constant: strides of the loops
  GridShape shape;
  GridReach reach;
  GridTask task;
  int64_t time = 0;
  int64_t vectors = 0;  // that hold the panel's channels
  int64_t blocks = 0;   // of targets in a row of the grid
  bool key_per_head = false;
  T* sources = nullptr;  // field of K and KV
  V m, x, from_x;        // M, X, 2^X of the image
  V centre;              // what has been taken from its values, times 2^-X

  // The windows of the targets of a block are shifted against each other; so that the block can walk their union, the
  // kernel's rows are padded by what lies next to them: 2^-W.
  static constexpr int64_t kPad = kTargets - 1;

  Panel(const GridInputs<E>& in, const GridTask& t, bool with_flipped, Scratch& scratch)
      : shape(in.shape),
        reach(grid_reach(in.shape)),
        task(t),
        time(in.shape.time()),
        key_per_head(in.shape.key_channels != in.shape.channels),
        m(hn::Zero(d)),
        x(m),
        from_x(m),
        centre(m),
        k(in.k),
        v(in.v),
        mask(in.key_mask) {
    const GridShape& s = shape;
    vectors = (t.end - t.begin + lanes - 1) / lanes;
    blocks = (s.width + kTargets - 1) / kTargets;
    weights_ = scratch.take<T>(vectors * reach.rows() * row_size(reach));
    if (with_flipped) flipped_ = scratch.take<T>(vectors * reach.rows() * row_size(reach));
    exact_weights_ = scratch.take<T>(vectors * reach.size() * 2 * lanes);
    outside_ = scratch.take<T>(vectors * lanes);
    sources = scratch.take<T>(time * 2 * lanes);
    side_ = scratch.take<T>(s.height * blocks * 2 * lanes);
    above_ = scratch.take<T>((s.height + 1) * 2 * lanes);
    below_ = scratch.take<T>((s.height + 1) * 2 * lanes);
    pairs_ = scratch.take<T>(time * 3 * lanes);
    for (int64_t j = 0; j < vectors; ++j) prepare_weights(in.kernel, j);
  }

  int64_t count(int64_t j) const { return std::min(lanes, task.end - task.begin - j * lanes); }
  int64_t head(int64_t c) const { return c / (shape.channels / shape.heads); }
  int64_t channel(int64_t j, int64_t lane) const { return task.begin + j * lanes + lane; }

  template <typename R>
  R* row(const Rows<R>& rows, int64_t b, int64_t t, int64_t j) const {
    return rows.data + b * rows.batch_stride + t * rows.time_stride + channel(j, 0);
  }
  V load(const Rows<const E>& rows, int64_t b, int64_t t, int64_t j) const {
    return LoadSome(d, row(rows, b, t, j), count(j));
  }
  // The key of every channel; -inf where the mask hides the source.
  V load_key(int64_t b, int64_t t, int64_t j) const {
    if (mask.data != nullptr && !mask.data[b * mask.batch_stride + t]) {
      return hn::Set(d, -std::numeric_limits<T>::infinity());
    }
    if (!key_per_head) return load(k, b, t, j);
    const E* keys = k.data + b * k.batch_stride + t * k.time_stride;
    const auto key_of = [&](int64_t h) { return hn::GetLane(LoadSome(d, keys + h, 1)); };
    const int64_t n = count(j);
    const int64_t first = head(channel(j, 0));
    if (head(channel(j, n - 1)) == first) return hn::Set(d, key_of(first));
    HWY_ALIGN T lane[HWY_MAX_BYTES / sizeof(T)] = {};
    for (int64_t i = 0; i < n; ++i) lane[i] = key_of(head(channel(j, i)));
    return hn::Load(d, lane);
  }

  // Rows of a block of targets, one image ahead: a panel is a narrow stripe of memory, which hardware prefetchers
  // follow badly.
  void prefetch(const Rows<const E>& rows, int64_t b, int64_t t, int64_t n, int64_t j) const {
    if (rows.data == nullptr || b >= task.last) return;
    for (int64_t i = 0; i < n; ++i) hwy::Prefetch(row(rows, b, t + i, j));
  }
  void prefetch_sources(int64_t b, int64_t t, int64_t n, int64_t j) const {
    if (!key_per_head) prefetch(k, b, t, n, j);
    prefetch(v, b, t, n, j);
  }

  // K and KV of image b, vector j, under its M and X. With `centred`, the image's mean value sum K v / sum K is taken
  // from every value: what a source's gradient asks, v - N/D, then does not drown in values that are all alike.
  HWY_NOINLINE void load_image(int64_t b, int64_t j, bool centred) {
    pairs_ready_ = false;
    m = hn::Set(d, kExponentFloor<T>);
    V largest = hn::Zero(d);
    for (int64_t t = 0; t < time; ++t) {
      const V key = load_key(b, t, j);
      const SplitExp<V> e = Split(d, key);
      hn::Store(e.p, d, sources + t * 2 * lanes);
      hn::Store(e.n, d, sources + t * 2 * lanes + lanes);
      m = hn::Max(e.n, m);  // in this order NaN is passed over
      largest = hn::Max(hn::Abs(MaskAbsent(d, key, load(v, b, t, j))), largest);
    }
    x = ScaleExponent(d, largest);
    from_x = Pow2(d, x);
    centre = hn::Zero(d);
    const V to_x = Pow2(d, hn::Neg(x));
    V den = hn::Zero(d), num = den;
    for (int64_t t = 0; t < time; ++t) {
      T* at = sources + t * 2 * lanes;
      const V p = hn::Load(d, at);
      const V value = hn::IfThenZeroElse(hn::Eq(p, hn::Zero(d)), load(v, b, t, j));  // p = 0: absent
      const V key = hn::Mul(p, Pow2(d, hn::Sub(hn::Load(d, at + lanes), m)));
      const V scaled = hn::Mul(value, to_x);
      hn::Store(key, d, at);
      hn::Store(centred ? scaled : hn::Mul(key, scaled), d, at + lanes);
      den = hn::Add(den, key);
      num = hn::MulAdd(key, scaled, num);
    }
    if (!centred) return;
    centre = hn::IfThenZeroElse(hn::Eq(den, hn::Zero(d)), hn::Div(num, den));
    for (int64_t t = 0; t < time; ++t) {
      T* at = sources + t * 2 * lanes;
      hn::Store(hn::Mul(hn::Load(d, at), hn::Sub(hn::Load(d, at + lanes), centre)), d, at + lanes);
    }
  }

  const T* weights(int64_t j) const { return weights_ + j * reach.rows() * row_size(reach); }
  const T* flipped(int64_t j) const { return flipped_ + j * reach.rows() * row_size(reach); }
  // Element (i, jx) of the kernel within reach, in `weights` or `flipped`.
  int64_t weight_at(int64_t iy, int64_t ix) const { return iy * row_size(reach) + (kPad + ix) * lanes; }

  // What lies outside the window of every block of targets in its rows, and in the rows above and below: only sums.
  HWY_NOINLINE void sum_outside(const T* field) {
    const int64_t pair = 2 * lanes;
    for (int64_t y = 0; y < shape.height; ++y) {
      const T* from = field + y * shape.width * pair;
      PairSum<D> left, right;
      int64_t at = 0;
      for (int64_t i = 0; i < blocks; ++i) {
        left.add_all(from + at * pair, pair, low(i) - at);
        at = low(i);
        left.store(side_ + (y * blocks + i) * pair);
      }
      left.add_all(from + at * pair, pair, shape.width - at);
      left.store(above_ + (y + 1) * pair);
      at = shape.width;
      for (int64_t i = blocks - 1; i >= 0; --i) {
        right.add_all(from + high(i) * pair, pair, at - high(i));
        at = high(i);
        T* to = side_ + (y * blocks + i) * pair;
        hn::Store(hn::Add(hn::Load(d, to), right.first), d, to);
        hn::Store(hn::Add(hn::Load(d, to + lanes), right.second), d, to + lanes);
      }
    }
    PairSum<D> sum;
    sum.store(below_ + shape.height * pair);
    for (int64_t y = shape.height - 1; y >= 0; --y) {
      sum.add_all(above_ + (y + 1) * pair, pair, 1);
      sum.store(below_ + y * pair);
    }
    sum = PairSum<D>();
    sum.store(above_);
    for (int64_t y = 0; y < shape.height; ++y) {
      sum.add_all(above_ + (y + 1) * pair, pair, 1);
      sum.store(above_ + (y + 1) * pair);
    }
  }

  // For every position t in order: emit(t, sum of weight times each half of the field), `weights` being those of vector
  // j, plain or flipped. before(t, n) is called ahead of every block of n positions.
  template <class Before, class Emit>
  HWY_INLINE void for_each_sum(const T* field, const T* weights, int64_t j, const Before& before,
                               const Emit& emit) const {
    const V outside = hn::Load(d, outside_ + j * lanes);
    V sums[2 * kTargets];
    for (int64_t y = 0; y < shape.height; ++y) {
      for (int64_t i = 0; i < blocks; ++i) {
        const int64_t t = y * shape.width + i * kTargets;
        const int64_t n = std::min(kTargets, shape.width - i * kTargets);
        before(t, n);
        if (n == 4) {
          block_sums<4>(field, weights, outside, y, i, sums);
        } else if (n == 3) {
          block_sums<3>(field, weights, outside, y, i, sums);
        } else if (n == 2) {
          block_sums<2>(field, weights, outside, y, i, sums);
        } else {
          block_sums<1>(field, weights, outside, y, i, sums);
        }
        for (int64_t r = 0; r < n; ++r) emit(t + r, sums[2 * r], sums[2 * r + 1]);
      }
    }
  }

  // Sources of target column block i that one of its targets sees in its window: columns [low, high).
  int64_t low(int64_t i) const { return std::max<int64_t>(0, i * kTargets - reach.x); }
  int64_t high(int64_t i) const { return std::min(shape.width, std::min((i + 1) * kTargets, shape.width) + reach.x); }
  int64_t low_row(int64_t y) const { return std::max<int64_t>(0, y - reach.y); }
  int64_t high_row(int64_t y) const { return std::min(shape.height, y + reach.y + 1); }

  // Rows whose D is too small to be sure of, unless the image holds no source at all.
  hn::Mask<D> failed(V den) const {
    return hn::And(hn::Lt(den, hn::Set(d, kCertificate<T>)), hn::Gt(m, hn::Set(d, kExponentFloor<T>)));
  }

  // The pairs of position t with every other: pair(s, p, n, element) for all s in order, p 2^n = e^w, element counting
  // the kernel's elements within reach, or -1. kSign 1: t is the target and s the source; -1: the reverse.
  template <int64_t kSign, class Pair>
  HWY_INLINE void for_each_pair(int64_t j, int64_t t, const Pair& pair) const {
    const int64_t ty = t / shape.width;
    const int64_t tx = t % shape.width;
    const T* kernel = exact_weights_ + j * reach.size() * 2 * lanes;
    for (int64_t s = 0, sy = 0; sy < shape.height; ++sy) {
      const int64_t iy = kSign * (sy - ty) + reach.y;
      for (int64_t sx = 0; sx < shape.width; ++sx, ++s) {
        const int64_t ix = kSign * (sx - tx) + reach.x;
        if (iy >= 0 && iy < reach.rows() && ix >= 0 && ix < reach.columns()) {
          const int64_t element = iy * reach.columns() + ix;
          const T* w = kernel + element * 2 * lanes;
          pair(s, hn::Load(d, w), hn::Load(d, w + lanes), element);
        } else {
          pair(s, hn::Set(d, T(1)), hn::Zero(d), int64_t{-1});
        }
      }
    }
  }

  // p, n and value of the image's sources, the value times 2^-X and less the centre.
  const T* exact_source(int64_t s) const { return pairs_ + s * 3 * lanes; }
  void prepare_exact(int64_t b, int64_t j) {
    if (pairs_ready_) return;
    const V to_x = Pow2(d, hn::Neg(x));
    for (int64_t s = 0; s < time; ++s) {
      const V key = load_key(b, s, j);
      const SplitExp<V> e = Split(d, key);
      T* to = pairs_ + s * 3 * lanes;
      hn::Store(e.p, d, to);
      hn::Store(e.n, d, to + lanes);
      const V value = MaskAbsent(d, key, load(v, b, s, j));
      hn::Store(hn::MulSub(value, to_x, centre), d, to + 2 * lanes);
    }
    pairs_ready_ = true;
  }

  // Target t from p and n of every pair under the row's own maximum.
  HWY_NOINLINE ExactRow<V> exact_row(int64_t b, int64_t j, int64_t t) {
    prepare_exact(b, j);
    V max = hn::Set(d, kExponentFloor<T>);
    for_each_pair<1>(j, t, [&](int64_t s, V, V n, int64_t) {
      max = hn::Max(hn::Add(hn::Load(d, exact_source(s) + lanes), n), max);
    });
    V den = hn::Zero(d), num = den;
    for_each_pair<1>(j, t, [&](int64_t s, V p, V n, int64_t) {
      const T* source = exact_source(s);
      const V exponent = hn::Sub(hn::Add(hn::Load(d, source + lanes), n), max);
      const V term = hn::Mul(hn::Mul(hn::Load(d, source), p), Pow2(d, exponent));
      den = hn::Add(den, term);
      num = hn::MulAdd(term, hn::Load(d, source + 2 * lanes), num);
    });
    return {den, num, max};
  }

 private:
  Rows<const E> k, v;
  KeyMask mask;
  T* weights_ = nullptr;        // [vectors][rows][kPad + columns + kPad][lanes]: w~
  T* flipped_ = nullptr;        // the same turned by 180 degrees: what a source needs of its targets
  T* exact_weights_ = nullptr;  // [vectors][rows][columns][2][lanes]: p, n
  T* outside_ = nullptr;        // [vectors][lanes]: 2^-W
  T* side_ = nullptr;           // [height][blocks][2][lanes]: what lies left and right of the block's window
  T* above_ = nullptr;          // [height + 1][2][lanes]: sums over the rows before y
  T* below_ = nullptr;          // [height + 1][2][lanes]: sums over the rows from y on
  T* pairs_ = nullptr;          // [T][3][lanes]: exact_source
  bool pairs_ready_ = false;

  // Elements of a row of `weights`.
  static int64_t row_size(const GridReach& r) { return (2 * kPad + r.columns()) * lanes; }

  void prepare_weights(const T* kernel, int64_t j) {
    const int64_t size = shape.kernel;
    const int64_t n = count(j);
    const int64_t corner = (size - 1) / 2;
    T* exact = exact_weights_ + j * reach.size() * 2 * lanes;
    V max = hn::Zero(d);
    HWY_ALIGN T lane[HWY_MAX_BYTES / sizeof(T)] = {};
    for (int64_t iy = 0; iy < reach.rows(); ++iy) {
      for (int64_t ix = 0; ix < reach.columns(); ++ix, exact += 2 * lanes) {
        const T* from = kernel + (corner - reach.y + iy) * size + corner - reach.x + ix;
        for (int64_t i = 0; i < n; ++i) lane[i] = from[head(channel(j, i)) * size * size];
        const SplitExp<V> e = Split(d, hn::Load(d, lane));
        hn::Store(e.p, d, exact);
        hn::Store(e.n, d, exact + lanes);
        max = hn::Max(e.n, max);
      }
    }
    const V outside = Pow2(d, hn::Neg(max));
    hn::Store(outside, d, outside_ + j * lanes);
    T* plain = const_cast<T*>(weights(j));
    T* turned = flipped_ == nullptr ? nullptr : const_cast<T*>(flipped(j));
    exact = exact_weights_ + j * reach.size() * 2 * lanes;
    for (int64_t iy = 0; iy < reach.rows(); ++iy) {
      for (int64_t ix = -kPad; ix < reach.columns() + kPad; ++ix) {
        V w = outside;
        if (ix >= 0 && ix < reach.columns()) {
          w = hn::Mul(hn::Load(d, exact), Pow2(d, hn::Sub(hn::Load(d, exact + lanes), max)));
          exact += 2 * lanes;
        }
        hn::Store(w, d, plain + weight_at(iy, ix));
        if (turned != nullptr) {
          hn::Store(w, d, turned + weight_at(reach.rows() - 1 - iy, reach.columns() - 1 - ix));
        }
      }
    }
  }

  // Sums of the R positions of block i in row y, [R][2]. The window is added up some 32 terms at a time, so that equal
  // terms do not drift.
  template <int64_t R>
  HWY_NOINLINE void block_sums(const T* HWY_RESTRICT field, const T* HWY_RESTRICT weights, V outside, int64_t y,
                               int64_t i, V* HWY_RESTRICT sums) const {
    constexpr int64_t kTerms = 32;
    const int64_t pair = 2 * lanes;
    const int64_t begin = low(i), end = high(i);
    const int64_t first = low_row(y), last = high_row(y);
    PairSum<D> beyond;
    beyond.add(hn::Load(d, above_ + first * pair), hn::Load(d, above_ + first * pair + lanes));
    beyond.add(hn::Load(d, below_ + last * pair), hn::Load(d, below_ + last * pair + lanes));
    beyond.add_all(side_ + (first * blocks + i) * pair, blocks * pair, last - first);
    V total0[R], total1[R];
    for (int64_t r = 0; r < R; ++r) {
      total0[r] = hn::Mul(beyond.first, outside);
      total1[r] = hn::Mul(beyond.second, outside);
    }
    V sum0[R], sum1[R];
    const auto clear = [&] {
      for (int64_t r = 0; r < R; ++r) sum0[r] = sum1[r] = hn::Zero(d);
    };
    clear();
    int64_t terms = 0;
    for (int64_t row = first; row < last; ++row) {
      for (int64_t s = begin; s < end;) {
        const int64_t stop = std::min(end, s + kTerms);
        terms += stop - s;
        // Weight of the source in column s for target r: r to the left of that for target 0.
        const T* HWY_RESTRICT w = weights + weight_at(row - y + reach.y, s - i * kTargets + reach.x);
        const T* HWY_RESTRICT from = field + (row * shape.width + s) * pair;
        for (; s < stop; ++s, w += lanes, from += pair) {
          const V first_half = hn::Load(d, from);
          const V second_half = hn::Load(d, from + lanes);
          for (int64_t r = 0; r < R; ++r) {
            const V weight = hn::Load(d, w - r * lanes);
            sum0[r] = hn::MulAdd(weight, first_half, sum0[r]);
            sum1[r] = hn::MulAdd(weight, second_half, sum1[r]);
          }
        }
        if (terms >= kTerms || (row + 1 == last && s == end)) {
          for (int64_t r = 0; r < R; ++r) {
            total0[r] = hn::Add(total0[r], sum0[r]);
            total1[r] = hn::Add(total1[r], sum1[r]);
          }
          clear();
          terms = 0;
        }
      }
    }
    for (int64_t r = 0; r < R; ++r) {
      sums[2 * r] = total0[r];
      sums[2 * r + 1] = total1[r];
    }
  }
};

}  // namespace aft::ops::grid::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

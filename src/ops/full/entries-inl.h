// Sources of the dense operator as entries of its sums (dense-inl.h), and the sum of one row pair by pair, which redoes
// what the fast path cannot promise. Included by kernels inside foreach_target.

#if defined(AFT_OPS_FULL_ENTRIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_ENTRIES_INL_H_
#undef AFT_OPS_FULL_ENTRIES_INL_H_
#else
#define AFT_OPS_FULL_ENTRIES_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "aft/ops/full.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/common/exp-inl.h"
#include "ops/common/sources-inl.h"
#include "ops/full/dense-inl.h"
#include "ops/full/plan.h"
#include "ops/full/sums-inl.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// x as mantissa and exponent, short of the largest exponents, whose powers of two are no normal numbers.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ModestExponentOf(D d, V x) {
  using T = hn::TFromD<D>;
  const V most = hn::Set(d, FloatFormat<T>::kBias - 7);
  return hn::Min(hn::Max(ExponentOf(d, x), hn::Neg(most)), most);
}

// Writes an entry under the exponents e0, e1: to [2 vectors].
template <class D, class V = hn::Vec<D>>
HWY_INLINE void StoreEntry(D d, const Entry<D>& x, V e0, V e1, hn::TFromD<D>* to) {
  hn::Store(hn::Mul(x.x0, Pow2(d, hn::Sub(x.n0, e0))), d, to);
  hn::Store(hn::Mul(x.x1, Pow2(d, hn::Sub(x.n1, e1))), d, to + hn::MaxLanes(d));
}

// Largest and smallest exponents of entries, zeros left out of the smallest: what kEntryScale holds.
template <class D>
struct ExponentRange {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t kLanes = hn::MaxLanes(D());

  HWY_INLINE ExponentRange() {
    most0 = most1 = hn::Set(D(), kExponentFloor<T>);
    least0 = least1 = hn::Set(D(), -kExponentFloor<T>);
  }
  HWY_INLINE void include(V n0, V n1, hn::Mask<D> is_zero0, hn::Mask<D> is_zero1) {
    most0 = Larger(n0, most0);
    most1 = Larger(n1, most1);
    least0 = hn::IfThenElse(hn::AndNot(is_zero0, hn::Lt(n0, least0)), n0, least0);
    least1 = hn::IfThenElse(hn::AndNot(is_zero1, hn::Lt(n1, least1)), n1, least1);
  }
  HWY_INLINE void store(T* scale) const {
    const D d;
    hn::Store(most0, d, scale);
    hn::Store(most1, d, scale + kLanes);
    hn::Store(least0, d, scale + 2 * kLanes);
    hn::Store(least1, d, scale + 3 * kLanes);
  }

  V most0, most1, least0, least1;
};

// Keys and values of the sources by absolute position, wherever they lie.
template <class D, typename E>
class Sources {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t kLanes = hn::MaxLanes(D());

  explicit Sources(const FullInputs<E>& inputs)
      : key_per_head(inputs.shape.key_channels != inputs.shape.channels), in(inputs) {}

  // Of a sequence, whose first target's source is source 0.
  SourceRows<E> rows(const Sequence& x) const {
    SourceRows<E> r;
    r.k = in.k.data + x.batch * in.k.batch_stride + x.token * in.k.time_stride;
    r.v = in.v.data + x.batch * in.v.batch_stride + x.token * in.v.time_stride;
    r.k_stride = in.k.time_stride;
    r.v_stride = in.v.time_stride;
    if (in.key_mask.data != nullptr) r.mask = in.key_mask.data + x.batch * in.key_mask.batch_stride + x.token;
    r.position = x.first;
    r.capacity = in.shape.capacity;
    r.ring_k_stride = in.shape.key_channels;
    r.ring_v_stride = in.shape.channels;
    if (x.first > 0) {
      r.ring_k = in.initial_state.ring_key + x.batch * r.capacity * r.ring_k_stride;
      r.ring_v = in.initial_state.ring_value + x.batch * r.capacity * r.ring_v_stride;
    }
    return r;
  }
  ChannelVector at(const Panel& c) const { return {c.begin, c.count, key_per_head ? c.head : c.begin, key_per_head}; }

  HWY_INLINE V key(const Sequence& x, const Panel& c, int64_t s) const {
    return SourceKey(d, rows(x), at(c), s - x.first);
  }
  HWY_INLINE V value(const Sequence& x, const Panel& c, int64_t s) const {
    return SourceValue(d, rows(x), at(c), s - x.first);
  }

  HWY_INLINE void prefetch(const Sequence& x, const Panel& c, int64_t s) const {
    if (s < x.first || s >= x.end()) return;
    const SourceRows<E> r = rows(x);
    hwy::Prefetch(r.k + (s - x.first) * r.k_stride + at(c).key);
    hwy::Prefetch(r.v + (s - x.first) * r.v_stride + c.begin);
  }

  HWY_INLINE Entry<D> entry(const Sequence& x, const Panel& c, int64_t s) const {
    const V source_key = key(x, c, s);
    const SplitExp<V> e = Split(d, source_key);
    const V source_value = MaskAbsent(d, source_key, value(x, c, s));
    const V exponent = ModestExponentOf(d, source_value);
    return {e.p, hn::Mul(e.p, hn::Mul(source_value, Pow2(d, hn::Neg(exponent)))), e.n, hn::Add(e.n, exponent)};
  }

  // Writes the entries of sources [begin, begin + n) under their largest exponents: to [n][2 vectors], scale
  // [kEntryScale]. Rows lie far apart and are fetched some ahead.
  void pack(const Sequence& x, const Panel& c, int64_t begin, int64_t n, T* to, T* scale) const {
    constexpr int64_t kAhead = 16;
    ExponentRange<D> range;
    for (int64_t s = begin; s < begin + n; ++s) {
      prefetch(x, c, s + kAhead);
      const V source_key = key(x, c, s);
      const V source_value = MaskAbsent(d, source_key, value(x, c, s));
      const V exponent = Split(d, source_key).n;
      range.include(exponent, hn::Add(exponent, ModestExponentOf(d, source_value)),
                    hn::Lt(source_key, hn::Set(d, -kKeyLimit<T>)), hn::Eq(source_value, hn::Zero(d)));
    }
    range.store(scale);
    for (int64_t s = begin; s < begin + n; ++s, to += 2 * kLanes) {
      StoreEntry(d, entry(x, c, s), range.most0, range.most1, to);
    }
  }

  D d;
  const bool key_per_head;

 private:
  const FullInputs<E>& in;
};

// One pair more of a row's sums, whatever its exponent.
template <class D, class Exact, class V = hn::Vec<D>>
HWY_INLINE void AddPair(D d, RunningSum<V>& sum, V key, V value, const Exact& weight) {
  using T = hn::TFromD<D>;
  const SplitExp<V> e = Split(d, key);
  const V term = hn::Mul(e.p, hn::Set(d, weight.p));
  // An absent key must not move the maximum.
  const V exponent =
      hn::IfThenElse(hn::Eq(term, hn::Zero(d)), hn::Set(d, 4 * kExponentFloor<T>), hn::Add(e.n, hn::Set(d, weight.n)));
  AddTerm(d, sum, exponent, term, hn::Mul(term, MaskAbsent(d, key, value)));
}

// D and N of one row, pair by pair.
template <class D, typename E, class Exact>
HWY_NOINLINE RunningSum<hn::Vec<D>> SumExactly(D d, const Sources<D, E>& sources, const Sequence& x, const Panel& c,
                                               const Exact* weights, int64_t n) {
  auto sum = StartSum(d, hn::Set(d, 4 * kExponentFloor<hn::TFromD<D>>));
  for (int64_t s = 0; s < n; ++s) {
    if (weights[s].p != 0) AddPair(d, sum, sources.key(x, c, s), sources.value(x, c, s), weights[s]);
  }
  return sum;
}

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

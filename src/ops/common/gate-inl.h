// The gates and their slopes. Included by kernels inside foreach_target.

#if defined(AFT_OPS_COMMON_GATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_COMMON_GATE_INL_H_
#undef AFT_OPS_COMMON_GATE_INL_H_
#else
#define AFT_OPS_COMMON_GATE_INL_H_
#endif

#include "aft/ops/operands.h"
#include "hwy/highway.h"
#include "ops/common/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// max(q, 0), NaN kept.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Relu(D d, V q) {
  return hn::IfThenZeroElse(hn::Lt(q, hn::Zero(d)), q);
}

// gate = top / bottom, its slope = slope / bottom^2; for the sigmoid top <= 1 <= bottom <= 2: dividing once, nothing
// can overflow on the way.
template <class V>
struct GateSlope {
  V top, slope, bottom;
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE GateSlope<V> EvaluateGate(D d, Gate gate, V q) {
  using T = hn::TFromD<D>;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, T(1));
  if (gate == Gate::kSigmoid) {
    const V z = ExpNegative(d, hn::Neg(hn::Abs(q)));
    return {hn::IfThenElse(hn::Lt(q, zero), z, one), z, hn::Add(one, z)};
  }
  if (gate == Gate::kRelu) {
    return {Relu(d, q), hn::IfThenElse(hn::Gt(q, zero), one, hn::IfThenZeroElse(hn::Le(q, zero), q)), one};
  }
  return {one, zero, one};
}

// gate(q) * num / den; 0 where den is 0: nothing was seen.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V GatedRatio(D d, Gate gate, V q, V num, V den) {
  const GateSlope<V> g = EvaluateGate(d, gate, q);
  return hn::IfThenZeroElse(hn::Eq(den, hn::Zero(d)), hn::Div(hn::Mul(num, g.top), hn::Mul(den, g.bottom)));
}

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

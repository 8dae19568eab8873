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

// gate = top / (1 + rest), and its derivative; for the sigmoid top and rest <= 1. So num / den gate = num top / (den +
// den rest), which divides once, cannot overflow on the way, and rounds den (1 + rest) once.
template <class V>
struct GateSlope {
  V top, rest, slope;
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE GateSlope<V> EvaluateGate(D d, Gate gate, V q) {
  using T = hn::TFromD<D>;
  const V zero = hn::Zero(d);
  const V one = hn::Set(d, T(1));
  if (gate == Gate::kSigmoid) {
    const V z = ExpNegative(d, hn::Neg(hn::Abs(q)));
    // z / (1 + z)^2 without the rounding of 1 + z, which the square would double.
    const V square = hn::MulAdd(z, hn::Add(z, hn::Set(d, T(2))), one);
    return {hn::IfThenElse(hn::Lt(q, zero), z, one), z, hn::Div(z, square)};
  }
  if (gate == Gate::kRelu) {
    return {Relu(d, q), zero, hn::IfThenElse(hn::Gt(q, zero), one, hn::IfThenZeroElse(hn::Le(q, zero), q))};
  }
  return {one, zero, zero};
}

// gate num / den.
template <class V>
HWY_INLINE V TimesGate(const GateSlope<V>& gate, V num, V den) {
  return hn::Div(hn::Mul(num, gate.top), hn::MulAdd(den, gate.rest, den));
}

// What a target leaves for its sources, a = g gate / D and b = a N/D, and the gradient of its query, g N/D gate'.
template <class V>
struct TargetGrad {
  V a, b, query;
};

// ratio: N/D, and g the gradient of y, each in the scale that a and b are wanted in and, for the query, as they are.
// All three are 0 where den is 0, whatever q and g hold: nothing was seen.
template <class D, class V = hn::Vec<D>>
HWY_INLINE TargetGrad<V> GradOfTarget(D d, const GateSlope<V>& gate, V den, V g, V ratio, V query_g, V query_ratio) {
  const auto empty = hn::Eq(den, hn::Zero(d));
  const V a = hn::IfThenZeroElse(empty, TimesGate(gate, g, den));
  return {a, hn::Mul(a, hn::IfThenZeroElse(empty, ratio)),
          hn::IfThenZeroElse(empty, hn::Mul(hn::Mul(query_g, query_ratio), gate.slope))};
}

// gate(q) * num / den; 0 where den is 0: nothing was seen.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V GatedRatio(D d, Gate gate, V q, V num, V den) {
  return hn::IfThenZeroElse(hn::Eq(den, hn::Zero(d)), TimesGate(EvaluateGate(d, gate, q), num, den));
}

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

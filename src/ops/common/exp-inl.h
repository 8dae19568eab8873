// The split exponential and the running sum, for every SIMD target. Included by kernels inside foreach_target.

#if defined(AFT_OPS_COMMON_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_COMMON_EXP_INL_H_
#undef AFT_OPS_COMMON_EXP_INL_H_
#else
#define AFT_OPS_COMMON_EXP_INL_H_
#endif

#include <iterator>

#include "hwy/highway.h"
#include "ops/common/numbers.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// 2^n for integers n <= bias, 0 below the smallest normal exponent.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Pow2(D d, V n) {
  using T = hn::TFromD<D>;
  using F = FloatFormat<T>;
  const hn::RebindToUnsigned<D> du;
  const V biased = hn::Add(hn::Max(n, hn::Set(d, -F::kBias)), hn::Set(d, F::kMagic + F::kBias));
  return hn::BitCast(d, hn::ShiftLeft<F::kMantissaBits>(hn::BitCast(du, biased)));
}

// Integer part of log2 |x| as a float; -bias for 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExponentOf(D d, V x) {
  using T = hn::TFromD<D>;
  using F = FloatFormat<T>;
  const hn::RebindToUnsigned<D> du;
  const auto field = hn::ShiftRight<F::kMantissaBits>(hn::BitCast(du, hn::Abs(x)));
  const auto magic = hn::BitCast(du, hn::Set(d, F::kMagic));
  return hn::Sub(hn::BitCast(d, hn::Or(field, magic)), hn::Set(d, F::kMagic + F::kBias));
}

// e^x = p * 2^n, n = round(x log2 e) an integer kept as a float, p in [2^-1/2, 2^1/2]. x = -inf: p = 0. +inf and NaN:
// p = NaN. So p does not depend on any maximum, and every rescale is an exact power of two.
template <class V>
struct SplitExp {
  V p, n;
};

// e^g for |g| <= ln(2)/2.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpPolynomial(D d, V g) {
  constexpr auto& c = ExpCoefficients<hn::TFromD<D>>::kValues;
  V p = hn::Set(d, c[0]);
  for (size_t i = 1; i < std::size(c); ++i) p = hn::MulAdd(p, g, hn::Set(d, c[i]));
  return p;
}

// x - n ln 2 without the error of the plain difference.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ReduceLn2(D d, V x, V n) {
  using T = hn::TFromD<D>;
#if HWY_NATIVE_FMA
  return hn::NegMulAdd(n, hn::Set(d, kLn2Low<T>), hn::NegMulAdd(n, hn::Set(d, kLn2High<T>), x));
#else
  for (const T piece : kLn2Pieces<T>) x = hn::NegMulAdd(n, hn::Set(d, piece), x);
  return x;
#endif
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE SplitExp<V> Split(D d, V x) {
  using T = hn::TFromD<D>;
  const V limit = hn::Set(d, kKeyLimit<T>);
  const auto absent = hn::Lt(x, hn::Neg(limit));
  const V low =
      hn::IfThenElse(absent, hn::Neg(limit), x);  // not Max: whether that lets NaN through depends on the target
  // low - low is 0, or NaN for +inf and NaN.
  const V clamped = hn::Add(hn::Min(limit, low), hn::Sub(low, low));
  const V magic = hn::Set(d, FloatFormat<T>::kMagic);
  const V n = hn::Sub(hn::MulAdd(clamped, hn::Set(d, kLog2E<T>), magic), magic);
  const V p = ExpPolynomial(d, ReduceLn2(d, clamped, n));
  return {hn::IfThenZeroElse(absent, p), n};
}

// e^x for x <= 0, 0 below the normal range.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V ExpNegative(D d, V x) {
  using T = hn::TFromD<D>;
  const V least = hn::Set(d, kLeastGateExponent<T>);
  const V clamped = hn::IfThenElse(hn::Lt(x, least), least, x);  // lets NaN through
  const V magic = hn::Set(d, FloatFormat<T>::kMagic);
  const V n = hn::Sub(hn::MulAdd(clamped, hn::Set(d, kLog2E<T>), magic), magic);
  return hn::Mul(ExpPolynomial(d, ReduceLn2(d, clamped, n)), Pow2(d, n));
}

// A value whose key is absent is never looked at, whatever it holds.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V MaskAbsent(D d, V key, V value) {
  return hn::IfThenZeroElse(hn::Lt(key, hn::Set(d, -kKeyLimit<hn::TFromD<D>>)), value);
}

// The monoid of the family: den = sum e^k 2^-max, num = sum e^k v 2^-max under their own maximum. The low parts are
// what rounding has added too much (Kahan): without them equal keys, which round the same way at every step, drift by T
// ulp.
template <class V>
struct RunningSum {
  V max, den, num, den_low, num_low;
};

template <class D, class V = hn::Vec<D>>
HWY_INLINE RunningSum<V> StartSum(D d, V max) {
  const V zero = hn::Zero(d);
  return {max, zero, zero, zero, zero};
}

// sum += term * scale, low being the error so far.
template <class V>
HWY_INLINE void AddCompensated(V term, V scale, V& sum, V& low) {
  const V wanted = hn::MulSub(term, scale, low);
  const V total = hn::Add(sum, wanted);
  low = hn::Sub(hn::Sub(total, sum), wanted);
  sum = total;
}

// Brings the sums to another maximum.
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Rescale(D d, RunningSum<V>& s, V max) {
  const V scale = Pow2(d, hn::Sub(s.max, max));
  s.den = hn::Mul(s.den, scale);
  s.num = hn::Mul(s.num, scale);
  s.den_low = hn::Mul(s.den_low, scale);
  s.num_low = hn::Mul(s.num_low, scale);
  s.max = max;
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void AddTerm(D d, RunningSum<V>& s, V n, V den_term, V num_term) {
  // NaN n: keeps the maximum.
  if (HWY_UNLIKELY(!hn::AllFalse(d, hn::Gt(n, s.max)))) Rescale(d, s, hn::Max(n, s.max));
  const V scale = Pow2(d, hn::Sub(n, s.max));
  AddCompensated(den_term, scale, s.den, s.den_low);
  AddCompensated(num_term, scale, s.num, s.num_low);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE void AddSource(D d, RunningSum<V>& s, V key, V value) {
  const SplitExp<V> e = Split(d, key);
  AddTerm(d, s, e.n, e.p, hn::Mul(e.p, MaskAbsent(d, key, value)));
}

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

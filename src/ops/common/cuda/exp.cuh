#pragma once

// The split exponential, the running sum and the gates, as ops/common/exp-inl.h and gate-inl.h have them for the CPU:
// the numbers are the same (ops/common/numbers.h), and the machine always multiplies and adds in one rounding.

#include <cstdint>
#include <iterator>

#include "aft/ops/operands.h"
#include "ops/common/numbers.h"

namespace aft::ops::cuda {

inline __device__ float from_bits(uint32_t bits) { return __uint_as_float(bits); }
inline __device__ double from_bits(uint64_t bits) { return __longlong_as_double(static_cast<long long>(bits)); }
inline __device__ uint32_t to_bits(float x) { return __float_as_uint(x); }
inline __device__ uint64_t to_bits(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }

/// 2^n for integers n <= bias, 0 below the smallest normal exponent.
template <typename T>
__device__ T pow2(T n) {
  using F = FloatFormat<T>;
  const T biased = fmax(n, -F::kBias) + (F::kMagic + F::kBias);
  return from_bits(to_bits(biased) << F::kMantissaBits);
}

/// x y, rounded before anything is added to it: the compiler makes one rounding of a product and a sum where it can,
/// and what it can depends on the code around.
inline __device__ float multiply(float x, float y) { return __fmul_rn(x, y); }
inline __device__ double multiply(double x, double y) { return __dmul_rn(x, y); }

/// Integer part of log2 |x|, kept as a float; -bias for 0.
template <typename T>
__device__ T exponent_of(T x) {
  using F = FloatFormat<T>;
  return static_cast<T>(static_cast<int>(to_bits(fabs(x)) >> F::kMantissaBits)) - F::kBias;
}

/// e^g for |g| <= ln(2)/2. (Device code may not refer to the array of coefficients, only use its values.)
template <typename T, size_t i = std::size(ExpCoefficients<T>::kValues) - 1>
__device__ T exp_polynomial(T g) {
  constexpr T c = ExpCoefficients<T>::kValues[i];
  if constexpr (i == 0) {
    return c;
  } else {
    return fma(exp_polynomial<T, i - 1>(g), g, c);
  }
}

/// e^x = p * 2^n, n = round(x log2 e) an integer kept as a float, p in [2^-1/2, 2^1/2]. x = -inf: p = 0. +inf and NaN:
/// p = NaN.
template <typename T>
struct SplitExp {
  T p, n;
};

template <typename T>
__device__ bool is_absent(T key) {
  return key < -kKeyLimit<T>;
}

template <typename T>
__device__ SplitExp<T> split_exp(T x) {
  using F = FloatFormat<T>;
  const bool absent = is_absent(x);
  const T low = absent ? -kKeyLimit<T> : x;
  const T clamped = fmin(kKeyLimit<T>, low) + (low - low);  // low - low is 0, or NaN for +inf and NaN
  const T n = fma(clamped, kLog2E<T>, F::kMagic) - F::kMagic;
  const T p = exp_polynomial(fma(-n, kLn2Low<T>, fma(-n, kLn2High<T>, clamped)));
  return {absent ? T(0) : p, n};
}

/// e^x 2^-max for x <= kKeyLimit and an integer max, not below that of e^x: 0 where x is absent, or at the end of the
/// normal range.
template <typename T>
__device__ T exp_under(T x, T max) {
  using F = FloatFormat<T>;
  const T magic = F::kMagic - max;
  const T shifted = fma(x, kLog2E<T>, magic), n = shifted - magic;  // n - max lies in the low bits
  const T p = exp_polynomial(fma(-n, kLn2Low<T>, fma(-n, kLn2High<T>, x)));
  const T e = from_bits(to_bits(p) + (to_bits(shifted) << F::kMantissaBits));
  return shifted > F::kMagic - (F::kBias - 1) ? e : T(0);  // p may lie below 1
}

/// The same where what comes of it is rounded to 16 bits (kRounded): what the machine has of 2^x, 2 ulp of float, is
/// right enough.
template <bool kRounded, typename T>
__device__ T exp_under_for(T x, T max) {
  if constexpr (kRounded) {
    constexpr float kLow = static_cast<float>(kLog2E<double> - static_cast<double>(kLog2E<float>));
    return exp2f(fma(x, kLow, fma(x, kLog2E<float>, -max)));
  } else {
    return exp_under(x, max);
  }
}

/// e^x for x <= 0, 0 below the normal range. NaN stays NaN.
template <typename T>
__device__ T exp_negative(T x) {
  using F = FloatFormat<T>;
  const T clamped = x < kLeastGateExponent<T> ? kLeastGateExponent<T> : x;
  const T n = fma(clamped, kLog2E<T>, F::kMagic) - F::kMagic;
  return exp_polynomial(fma(-n, kLn2Low<T>, fma(-n, kLn2High<T>, clamped))) * pow2(n);
}

/// A sum without what rounding has added too much (Kahan), which `low` holds.
template <typename T>
struct Compensated {
  T sum, low;

  __device__ void add(T term, T scale) {
    const T wanted = fma(term, scale, -low);
    const T total = sum + wanted;
    low = (total - sum) - wanted;
    sum = total;
  }
  __device__ void scale_by(T scale) {
    sum *= scale;
    low *= scale;
  }
};

/// The monoid of the family: den = sum e^k 2^-max, num = sum e^k v 2^-max, under their own maximum.
template <typename T>
struct RunningSum {
  T max = kExponentFloor<T>;
  Compensated<T> den = {}, num = {};

  /// To a maximum not below this one.
  __device__ void rescale(T to) {
    const T scale = pow2(max - to);
    den.scale_by(scale);
    num.scale_by(scale);
    max = to;
  }
  /// Terms times 2^n. NaN n keeps the maximum.
  __device__ void add(T n, T den_term, T num_term) {
    if (n > max) rescale(n);
    const T scale = pow2(n - max);
    den.add(den_term, scale);
    num.add(num_term, scale);
  }
  __device__ void add_source(T key, T value) {
    const SplitExp<T> e = split_exp(key);
    add(e.n, e.p, is_absent(key) ? T(0) : e.p * value);
  }
};

/// gate = top / (1 + rest), and its derivative; for the sigmoid top and rest <= 1.
template <typename T>
struct GateSlope {
  T top, rest, slope;
};

template <typename T>
__device__ GateSlope<T> evaluate_gate(Gate gate, T q) {
  if (gate == Gate::kSigmoid) {
    const T z = exp_negative(-fabs(q));
    return {q < 0 ? z : T(1), z, z / fma(z, z + T(2), T(1))};
  }
  if (gate == Gate::kRelu) return {q < 0 ? T(0) : q, T(0), q > 0 ? T(1) : q <= 0 ? T(0) : q};
  return {T(1), T(0), T(0)};
}

/// gate num / den.
template <typename T>
__device__ T times_gate(const GateSlope<T>& gate, T num, T den) {
  return num * gate.top / fma(den, gate.rest, den);
}

/// gate(q) num / den; 0 where den is 0: nothing was seen.
template <typename T>
__device__ T gated_ratio(Gate gate, T q, T num, T den) {
  return den == 0 ? T(0) : times_gate(evaluate_gate(gate, q), num, den);
}

/// The same for a den that is not 0 and a result that is rounded to E: to 16 bits, what the machine has of e^x and 1/x
/// is right enough (2 ulp of float). All gates take one way.
template <typename E, typename T = Accumulate<E>>
__device__ T gated_ratio_for(Gate gate, T q, T num, T den) {
  if constexpr (sizeof(E) > 2) {
    return times_gate(evaluate_gate(gate, q), num, den);
  } else {
    const bool sigmoid = gate == Gate::kSigmoid;
    const float z = __expf(-fabs(q)), linear = gate == Gate::kRelu ? (q < 0 ? 0 : q) : 1;
    const float top = sigmoid ? (q < 0 ? z : 1) : linear;
    return __fdividef(num * top, sigmoid ? fma(den, z, den) : den);
  }
}

/// What a target leaves for its sources, a = g gate / D and b = a N/D, and the gradient of its query, g N/D gate'. All
/// three are 0 where den is 0, whatever q and g hold.
template <typename T>
struct TargetGrad {
  T a, b, query;
};

template <typename T>
__device__ TargetGrad<T> grad_of_target(Gate gate, T q, T g, T num, T den) {
  if (den == 0) return {};
  const GateSlope<T> slope = evaluate_gate(gate, q);
  const T ratio = num / den;
  const T a = times_gate(slope, g, den);
  return {a, a * ratio, g * ratio * slope.slope};
}

/// 1 / x to an ulp, for what is neither close to the largest nor below the smallest normal number.
inline __device__ float reciprocal(float x) {
  const float r = __fdividef(1.0f, x);
  return fma(r, fma(-x, r, 1.0f), r);
}

/// grad_of_target where den is not 0; for 16-bit tensors with one reciprocal for all of it, all gates one way.
template <typename E, typename T = Accumulate<E>>
__device__ TargetGrad<T> grad_of_seen_target(Gate gate, T q, T g, T num, T den) {
  if constexpr (sizeof(E) > 2) {
    return grad_of_target(gate, q, g, num, den);
  } else {
    const bool sigmoid = gate == Gate::kSigmoid, relu = gate == Gate::kRelu;
    const float z = exp_negative(-fabs(q)), linear = relu ? (q < 0 ? 0 : q) : 1;
    const float top = sigmoid ? (q < 0 ? z : 1) : linear, rest = sigmoid ? z : 0;
    const float r = reciprocal(fma(den, rest, den)), ratio = num * fma(r, rest, r), a = g * top * r;
    const float part = r * den;  // 1 / (1 + rest)
    const float slope = sigmoid ? z * part * part : q > 0 ? 1 : q <= 0 ? 0 : q;
    return {a, a * ratio, g * ratio * slope};  // without a gate nobody takes the last
  }
}

}  // namespace aft::ops::cuda

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "aft/ops/operands.h"

// The 16-bit formats by their definition, apart from the kernels: slow, in double.

namespace aft::ops::test {

template <typename E>
struct Format;
template <>
struct Format<BFloat16> {
  static constexpr int kMantissaBits = 7, kBias = 127;
};
template <>
struct Format<Float16> {
  static constexpr int kMantissaBits = 10, kBias = 15;
};

template <typename E>
constexpr bool kIs16Bit = sizeof(E) == 2;

/// What a 16-bit pattern is worth.
template <typename E>
double value_of(uint32_t bits) {
  constexpr int kMantissa = Format<E>::kMantissaBits;
  constexpr int kExponents = 1 << (15 - kMantissa);
  const int exponent = bits >> kMantissa & (kExponents - 1);
  const int mantissa = bits & ((1 << kMantissa) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == kExponents - 1) return mantissa != 0 ? std::nan("") : sign * HUGE_VAL;
  const int full = exponent == 0 ? mantissa : mantissa + (1 << kMantissa);
  return sign * std::ldexp(full, std::max(exponent, 1) - Format<E>::kBias - kMantissa);
}

/// One unit in the last place of x > 0 in X, any element type.
template <typename X>
double ulp_of(double x) {
  if constexpr (kIs16Bit<X>) {
    const int exponent = x > 0 ? std::ilogb(x) : std::numeric_limits<int>::min();
    const int least = 1 - Format<X>::kBias;
    return std::ldexp(1.0, std::clamp(exponent, least, Format<X>::kBias) - Format<X>::kMantissaBits);
  } else {
    const X y = static_cast<X>(std::min(x, double(std::numeric_limits<X>::max()) / 2));
    return double(std::nextafter(y, std::numeric_limits<X>::infinity())) - double(y);
  }
}

/// The largest finite number of X, any element type.
template <typename X>
double largest_of() {
  if constexpr (kIs16Bit<X>) {
    return value_of<X>((0x7FFF >> Format<X>::kMantissaBits << Format<X>::kMantissaBits) - 1);
  } else {
    return double(std::numeric_limits<X>::max());
  }
}

/// The nearest number of E (ties to even), in the accumulation type.
template <typename E>
Accumulate<E> rounded(Accumulate<E> x) {
  if constexpr (kIs16Bit<E>) {
    if (!std::isfinite(x)) return x;
    const double unit = ulp_of<E>(std::abs(x));
    const double y = std::nearbyint(double(x) / unit) * unit;
    return static_cast<float>(std::abs(y) < std::ldexp(1.0, Format<E>::kBias + 1) ? y : std::copysign(HUGE_VAL, y));
  } else {
    return x;
  }
}

/// An element from a number that E holds exactly, and back.
template <typename E>
E element(Accumulate<E> x) {
  if constexpr (kIs16Bit<E>) {
    constexpr int kMantissa = Format<E>::kMantissaBits;
    constexpr uint32_t kInfinity = 0x7FFF >> kMantissa << kMantissa;
    uint32_t bits = kInfinity + (std::isnan(x) ? 1 : 0);
    if (std::isfinite(x)) {
      // A normal number is 1.mantissa: the hidden bit counts the exponent up from the least by one.
      const double unit = ulp_of<E>(std::abs(x));
      bits = static_cast<uint32_t>(std::abs(x) / unit);
      bits += static_cast<uint32_t>(std::ilogb(unit) + Format<E>::kBias - 1 + kMantissa) << kMantissa;
    }
    return {static_cast<uint16_t>(bits | (std::signbit(x) ? 0x8000 : 0))};
  } else {
    return x;
  }
}

template <typename E>
Accumulate<E> number(E x) {
  if constexpr (kIs16Bit<E>) {
    return static_cast<float>(value_of<E>(x.bits));
  } else {
    return x;
  }
}

}  // namespace aft::ops::test

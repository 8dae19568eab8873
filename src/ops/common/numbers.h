#pragma once

#include <cstdint>

// The numbers that the kernels of every device share: of the exponential, of its range, of the certified fast path.
// Plain C++, so that a CPU and a CUDA kernel cannot differ in one.

namespace aft::ops {

template <typename T>
struct FloatFormat;
template <>
struct FloatFormat<float> {
  static constexpr int kMantissaBits = 23;
  static constexpr float kBias = 127.0f;
  static constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
};
template <>
struct FloatFormat<double> {
  static constexpr int kMantissaBits = 52;
  static constexpr double kBias = 1023.0;
  static constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52
};

// ---- the exponential

template <typename T>
constexpr T kLog2E = T(1.44269504088896340736);

/// ln 2 = high + low, for a machine that multiplies and adds in one rounding: x - n high is then exact. (The plain
/// difference x - n ln 2 is off by 1.7e-4 at x = 1e4 in f32.)
template <typename T>
constexpr T kLn2High = T(0.693147180559945309417232);
template <typename T>
constexpr T kLn2Low = sizeof(T) == 4 ? T(-1.904654323148236e-09) : T(2.3190468138462996e-17);

/// ln 2 in pieces, for a machine without: the first two have few bits, so that their products with |n| < 2^19 are
/// exact.
template <typename T>
constexpr T kLn2Pieces[] = {T(0.6875), T(0.005615234375), T(3.194618494530941723e-5)};

/// e^g on |g| <= ln(2)/2 as a polynomial, the highest power first.
template <typename T>
struct ExpCoefficients;
/// Minimax with value and slope 1 at 0: relative error 3e-9, with roundings 6.2e-8 (one degree less: 1.6e-7, which is
/// felt: a weight is a product of two).
template <>
struct ExpCoefficients<float> {
  static constexpr float kValues[] = {1.3814541e-3f, 8.3687454e-3f, 4.1668389e-2f, 1.6666521e-1f,
                                      4.9999994e-1f, 1.0f,          1.0f};
};
/// Taylor to g^13: relative error 4e-18.
template <>
struct ExpCoefficients<double> {
  static constexpr double kValues[] = {
      1.0 / 6227020800, 1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,        1.0 / 120,       1.0 / 24,       1.0 / 6,       0.5,          1.0,         1.0};
};

/// Of a gate: e^x, x <= 0, is 0 long before here in f64, and n ln 2 keeps its bits.
template <typename T>
constexpr T kLeastGateExponent = T(-1000);

// ---- range

/// Keys and weights saturate here: e^k is right to +-65504 and finite beyond.
template <typename T>
constexpr T kKeyLimit = T(1 << 20);

/// Exponents start here instead of at -infinity: below that of k + w for any two numbers of 16 bits (-189010), far
/// above that of an absent key (-kKeyLimit log2 e = -1512775).
template <typename T>
constexpr T kExponentFloor = T(-1200000);

/// The largest exponent that a power of two is formed of where a pair is done exactly: p_k p_w a 2^n stays finite.
template <typename T>
constexpr T kPairExponentLimit = T(120);

/// The largest and the smallest exponent X that values are scaled by: with headroom, 2^X and 2^-X stay normal in f32.
template <typename T>
constexpr T kValueExponentLimit = T(118);
template <typename T>
constexpr T kLeastValueExponent = T(-100);

// ---- the certified fast path

/// A row passes if its D in the scale of its factors is at least this. What the factored product loses is below 2^-126
/// (f32; 2^-1022 in f64), hence below 2^-74 of such a row, and below 2^-66 of its largest value with the headroom of X.
template <typename T>
constexpr T kCertificate = sizeof(T) == 4 ? T(0x1p-52) : T(0x1p-800);

/// How much further than needed a scale moves where it moves along the sequence, so that it moves rarely.
template <typename T>
constexpr T kHeadroom = T(8);

/// The backward has no D to look at: a product of the factors is right while the exponent that its target side is worth
/// is at most this. What is lost is below 2^-126 of it, in f32 2^-66.
template <typename T>
constexpr T kRangeLimit = sizeof(T) == 4 ? T(60) : T(900);

}  // namespace aft::ops

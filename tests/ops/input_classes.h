#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numbers>
#include <random>
#include <string>

// Ordinary and hard numbers for keys and weights, by name of their class.

namespace aft::ops::test {

constexpr double kInf = std::numeric_limits<double>::infinity();

// AFT_TEST_SEED=1, 2, ... gives every case other numbers.
inline uint64_t environment_seed() {
  const char* seed = std::getenv("AFT_TEST_SEED");
  return seed == nullptr ? 0 : std::stoull(seed);
}

struct Random {
  explicit Random(uint64_t seed) : engine(seed + environment_seed() * 1'000'000'007) {}
  std::mt19937_64 engine;
  std::normal_distribution<double> distribution;
  double normal() { return distribution(engine); }
  double uniform() { return std::uniform_real_distribution<double>()(engine); }
  bool chance(double p) { return uniform() < p; }
  double sign() { return chance(0.5) ? 1 : -1; }
};

inline bool has_prefix(const std::string& s, const char* prefix) { return s.rfind(prefix, 0) == 0; }

// The size in classes named ..._1e4 and ..._65504.
inline double size_of(const std::string& input) {
  if (input.find("1e4") != std::string::npos) return 1e4;
  if (input.find("65504") != std::string::npos) return 65504;
  return 200;
}

// Sources whose key is the largest and whose weight is the smallest, where maxima lie apart.
inline bool is_peak(int64_t t) { return (t % 5 + 5) % 5 == 2; }

// Classes of input:
//   normal          k, w, v, q, grad_y ~ N(0, 1)
//   wide            k ~ N(0, 30^2), w ~ N(0, 30^2)
//   key_offset_1e4  k = 1e4 + N(0, 1)
//   key_X           k = X or -X           weight_X, both_X the same for w, for both
//   all_equal       every k = 3, every w = -2
//   apart[_X]       k = X (200) at every fifth source and w = -2 X there (-X for 65504), N(0, 1) elsewhere
//   tiny            the same with k about 58 ln 2 and w = -1e4, so that what remains of D has a factor of about 2^-58
//                   against the largest key; v, grad_y, or both near the smallest normal numbers
//   absent          some k = -inf (channel 0: all), some w = -inf
inline double key_value(const std::string& input, Random& r, int64_t t, int64_t c, int64_t last) {
  const double normal = r.normal();
  if (input == "normal") return normal;
  const double x = size_of(input);
  if (input == "wide") return 30 * normal;
  if (input == "key_offset_1e4") return 1e4 + normal;
  if (has_prefix(input, "key_") || has_prefix(input, "both_")) return x * r.sign();
  if (input == "all_equal") return 3;
  if (has_prefix(input, "apart")) return is_peak(t) ? x : normal;
  if (input == "tiny") return is_peak(t) ? (56 + 5 * r.uniform()) * std::numbers::ln2 : 0.2 * normal;
  if (input == "absent") return (c == 0 && last > 0) || (c == 1 && t < 3) || r.chance(0.3) ? -kInf : normal;
  return normal;
}

inline double weight_value(const std::string& input, Random& r, int64_t source) {
  const double normal = r.normal();
  if (input == "normal") return normal;
  const double x = size_of(input);
  if (input == "wide") return 30 * normal;
  if (has_prefix(input, "weight_") || has_prefix(input, "both_")) return x * r.sign();
  if (input == "all_equal") return -2;
  if (has_prefix(input, "apart")) return is_peak(source) ? -std::min(2 * x, 65504.0) : normal;
  if (input == "tiny") return is_peak(source) ? -1e4 : 0.2 * normal;
  if (input == "absent") return r.chance(0.2) ? -kInf : normal;
  return normal;
}

}  // namespace aft::ops::test

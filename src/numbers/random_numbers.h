#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

#include "numbers/mix.h"

namespace aft {

/// Random numbers that are a pure function of a seed: those of splitmix64.
class RandomNumbers {
 public:
  explicit RandomNumbers(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    const uint64_t number = mix(state_);
    state_ += kMixStep;
    return number;
  }

  /// Uniform on the multiples of 2^-53 in [0, 1).
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
  /// Uniform in [low, high], low <= high.
  double uniform(double low, double high) { return low + (high - low) * uniform(); }

  /// True with probability `probability`.
  bool chance(double probability) { return uniform() < probability; }

  /// Uniform on 0, 1, ... count - 1, of which the remainder favours some by less than count / 2^64. 1 <= count.
  int64_t below(int64_t count) { return static_cast<int64_t>(next() % static_cast<uint64_t>(count)); }

  /// Normal, of mean 0 and deviation 1 (Box and Muller 1958, which takes two numbers; the second result is dropped).
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(2 * std::numbers::pi * uniform());
  }

 private:
  uint64_t state_;
};

}  // namespace aft

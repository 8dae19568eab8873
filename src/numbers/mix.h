#pragma once

#include <cstdint>

namespace aft {

/// What splitmix64 (Steele, Lea and Flood 2014) adds to its state for every number.
constexpr uint64_t kMixStep = 0x9e3779b97f4a7c15ULL;

/// The first number of splitmix64 seeded by `x`: a bijection whose output bits depend on all input bits. The n-th
/// number after it is mix(x + n kMixStep).
constexpr uint64_t mix(uint64_t x) {
  x += kMixStep;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace aft

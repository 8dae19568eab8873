#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace aft::test {

inline std::vector<uint8_t> random_bytes(int64_t count, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<uint8_t> bytes;
  for (int64_t i = 0; i < count; ++i) bytes.push_back(static_cast<uint8_t>(generator() >> 56));
  return bytes;
}

}  // namespace aft::test

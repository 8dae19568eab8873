#include <bit>

#include "aft/error.h"
#include "data/data.h"

namespace aft {
namespace {

// The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection whose output bits depend on all input bits.
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// A keyed permutation of [0, count) that needs no memory: a balanced Feistel network on the next even number of bits,
// walked until it falls inside the range (at most 4 walks on average).
uint64_t permute(uint64_t index, uint64_t count, uint64_t key) {
  if (count <= 1) return index;
  const int half = (std::bit_width(count - 1) + 1) / 2;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    uint64_t left = index >> half;
    uint64_t right = index & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t next = left ^ (mix(right ^ mix(key + round)) & mask);
      left = right;
      right = next;
    }
    index = (left << half) | right;
  } while (index >= count);
  return index;
}

}  // namespace

WindowOrder::WindowOrder(int64_t bytes, int64_t context, uint64_t seed)
    : bytes_(bytes), context_(context), windows_(0), seed_(seed) {
  if (context < 1) throw Error("context: expected at least 1, got " + std::to_string(context));
  if (bytes < context + 1) {
    throw Error("data: expected at least one training window of context + 1 = " + std::to_string(context + 1) +
                " bytes, got " + std::to_string(bytes) + "; give more data or a smaller model.context");
  }
  windows_ = (bytes - 1 + context - 1) / context;
}

int64_t WindowOrder::start(int64_t position) const {
  const auto epoch = static_cast<uint64_t>(position / windows_);
  const auto index = static_cast<uint64_t>(position % windows_);
  const auto window = static_cast<int64_t>(permute(index, static_cast<uint64_t>(windows_), mix(mix(seed_) + epoch)));
  return std::min(window * context_, bytes_ - context_ - 1);
}

}  // namespace aft

#include "data/epoch_order.h"

#include <bit>
#include <string>

#include "aft/error.h"
#include "numbers/mix.h"

namespace aft {
namespace {

constexpr uint64_t kRounds = 6;

// A keyed permutation of [0, count) that needs no memory: a balanced Feistel network on the next even number of bits,
// walked until it falls inside the range (at most 4 walks on average).
uint64_t permute(uint64_t index, uint64_t count, uint64_t key) {
  if (count <= 1) return index;
  const int half = (std::bit_width(count - 1) + 1) / 2;
  const uint64_t mask = (uint64_t{1} << half) - 1;
  do {
    uint64_t left = index >> half;
    uint64_t right = index & mask;
    for (uint64_t round = 0; round < kRounds; ++round) {
      const uint64_t next = left ^ (mix(right ^ mix(key + round)) & mask);
      left = right;
      right = next;
    }
    index = (left << half) | right;
  } while (index >= count);
  return index;
}

}  // namespace

EpochOrder::EpochOrder(int64_t count, uint64_t seed) : count_(count), seed_(seed) {
  if (count < 1) throw Error("count: expected at least one example, got " + std::to_string(count));
}

uint64_t EpochOrder::key(int64_t epoch) const { return mix(mix(seed_) + static_cast<uint64_t>(epoch)); }

EpochOrder::Place EpochOrder::at(int64_t position) const {
  const int64_t epoch = position / count_;
  const auto index = static_cast<uint64_t>(position % count_);
  return {epoch, static_cast<int64_t>(permute(index, static_cast<uint64_t>(count_), key(epoch)))};
}

uint64_t EpochOrder::draw(int64_t position) const {
  const Place place = at(position);
  // The keys up to key + kRounds - 1 are the permutation's.
  return mix(mix(key(place.epoch) + kRounds) + static_cast<uint64_t>(place.index));
}

}  // namespace aft

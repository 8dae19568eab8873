#pragma once

#include <cstdint>

namespace aft {

/// The order in which a run visits `count` examples: every one once an epoch, each epoch in an order of its own. Place
/// and draw are pure functions of (count, seed, position), and position, counted over all epochs, is all that a run
/// must remember to go on.
class EpochOrder {
 public:
  struct Place {
    int64_t epoch = 0;
    int64_t index = 0;
  };

  /// Throws aft::Error unless count >= 1.
  EpochOrder(int64_t count, uint64_t seed);

  /// Examples in an epoch.
  [[nodiscard]] int64_t count() const { return count_; }

  /// Which example is visited at `position` >= 0.
  [[nodiscard]] Place at(int64_t position) const;

  /// The seed of that visit's augmentation: a hash of (seed, epoch, index), so it does not matter when in the epoch the
  /// example is visited.
  [[nodiscard]] uint64_t draw(int64_t position) const;

 private:
  [[nodiscard]] uint64_t key(int64_t epoch) const;

  int64_t count_;
  uint64_t seed_;
};

}  // namespace aft

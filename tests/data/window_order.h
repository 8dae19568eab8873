#pragma once

#include "data/epoch_order.h"
#include "data/windows.h"

namespace aft {

/// The order in which a run visits the training windows of a text.
class WindowOrder {
 public:
  WindowOrder(int64_t bytes, int64_t context, uint64_t seed)
      : windows_(bytes, context), order_(windows_.count(), seed) {}
  [[nodiscard]] int64_t windows() const { return windows_.count(); }
  /// First byte of the `position`-th window of the run.
  [[nodiscard]] int64_t start(int64_t position) const { return windows_.start(order_.at(position).index); }

 private:
  Windows windows_;
  EpochOrder order_;
};

}  // namespace aft

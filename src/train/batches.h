#pragma once

#include <torch/types.h>

#include "data/data.h"

namespace aft {

/// Batches of training windows on a device.
class Batches {
 public:
  /// `size`: windows in a batch, each of `length` bytes.
  Batches(Bytes text, WindowOrder order, int64_t size, int64_t length, c10::Device device);

  /// The windows from the run's `position` on: int64 [size, length].
  torch::Tensor take(int64_t position);

  /// Reads and sends what will be taken next while the device still computes; on the CPU there is nothing to win.
  void send_ahead(int64_t position);

 private:
  [[nodiscard]] torch::Tensor send(int64_t position) const;

  Bytes text_;
  WindowOrder order_;
  int64_t size_;
  int64_t length_;
  c10::Device device_;
  int64_t ahead_position_ = -1;
  torch::Tensor ahead_;
};

}  // namespace aft

#pragma once

#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <span>

#include "data/data_set.h"

namespace aft {

/// Second labels of examples, and what each adds to the loss; both are undefined where no example of a batch is mixed.
struct Mixed {
  torch::Tensor second;  // int64 [B]; where an example is not mixed, its first label
  torch::Tensor share;   // f32 [B]: Label::share
};

/// Examples, all in host memory or all on a device.
struct Batch {
  torch::Tensor bytes;   // uint8 [B, n]
  torch::Tensor labels;  // int64 [B]: Label::first
  Mixed mixed;

  /// From pinned memory without waiting; LibTorch uses that memory again only once it is copied.
  [[nodiscard]] Batch to(c10::Device device) const;
};

/// Which example to read, and with which draw: DataSet::read().
struct Visit {
  int64_t index = 0;
  std::optional<uint64_t> draw;
};

/// Examples of one length, at least one, read into host memory; `pinned`: into such memory that a GPU copies from while
/// the host goes on. Throws what reading throws.
Batch read_batch(const DataSet& data, Split split, std::span<const Visit> visits, bool pinned);

}  // namespace aft

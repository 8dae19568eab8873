#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "aft/ops/window.h"

namespace aft::ops::test {

/// Memory full of one particular NaN. An output that is not written stays NaN; a write outside what was claimed shows.
template <typename T>
class Poisoned {
 public:
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  static constexpr Bits kPoison = static_cast<Bits>(sizeof(T) == 2   ? 0x7fcd
                                                    : sizeof(T) == 4 ? 0x7fc0beef
                                                                     : 0x7ff8beefbeefbeef);
  static constexpr int64_t kGuard = 64;

  explicit Poisoned(int64_t size)
      : data_(size + 2 * kGuard, std::bit_cast<T>(kPoison)), claimed_(size + 2 * kGuard, false) {}

  /// `size` elements at `offset` may be written. Never null.
  T* claim(int64_t offset, int64_t size) {
    for (int64_t i = 0; i < size; ++i) claimed_[kGuard + offset + i] = true;
    return data_.data() + kGuard + offset;
  }

  /// A [batch, time, width] view whose rows lie `time_stride` apart.
  Rows<T> claim_rows(int64_t offset, int64_t batch, int64_t time, int64_t width, int64_t time_stride,
                     int64_t batch_stride) {
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t t = 0; t < time; ++t) claim(offset + b * batch_stride + t * time_stride, width);
    }
    return {data_.data() + kGuard + offset, batch_stride, time_stride};
  }

  void expect_gaps_untouched(const std::string& what) const {
    for (size_t i = 0; i < data_.size(); ++i) {
      if (!claimed_[i] && std::bit_cast<Bits>(data_[i]) != kPoison) {
        ADD_FAILURE() << what << ": element " << int64_t(i) - kGuard
                      << " of its buffer lies outside the rows but was written";
        return;
      }
    }
  }

 private:
  std::vector<T> data_;
  std::vector<bool> claimed_;
};

}  // namespace aft::ops::test

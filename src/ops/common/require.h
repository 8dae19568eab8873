#pragma once

#include <cstdint>
#include <string>

#include "aft/error.h"
#include "aft/ops/operands.h"

// Checks of arguments that the families share.

namespace aft::ops {

inline void require(bool ok, const std::string& message) {
  if (!ok) throw Error(message);
}

inline std::string got(int64_t value) { return ", got " + std::to_string(value); }

/// How far a window reaches to one side.
inline void require_reach(int64_t reach, const std::string& name) {
  require(reach >= 0, name + ": expected at least 0" + got(reach));
  require(reach <= kLongestReach, name + ": expected at most 2^40" + got(reach));
}

/// heads divides channels; there is a key for each channel, or for each head that has any.
inline void require_heads(int64_t channels, int64_t heads, int64_t key_channels) {
  require(channels >= 0, "channels: expected at least 0" + got(channels));
  require(heads >= 1 && channels % heads == 0,
          "heads: expected a divisor of channels = " + std::to_string(channels) + got(heads));
  require(key_channels == channels || (key_channels == heads && channels > 0),
          "key_channels: expected channels = " + std::to_string(channels) +
              (channels > 0 ? " or heads = " + std::to_string(heads) : std::string()) + got(key_channels));
}

}  // namespace aft::ops

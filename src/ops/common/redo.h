#pragma once

#include <cstdint>

#include "aft/ops/redo.h"

// What kernels say to the counters of aft/ops/redo.h.

namespace aft::ops {

enum class RedoFamily { kWindow, kGrid, kFull };

/// Adds (row, channel) pairs.
void count_redone(RedoFamily family, int64_t redone, int64_t total);

/// False where set_redo() has turned the redo off.
bool redo_enabled();

}  // namespace aft::ops

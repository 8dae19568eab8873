#pragma once

#include <cstdint>

#include "aft/ops/device.h"

namespace aft::ops {

/// Adds (row, channel) pairs to the caller's counters, from any thread; null: not wanted.
void count_redone(RedoCount* counters, int64_t redone, int64_t total);

/// False where set_redo() has turned the redo off.
bool redo_enabled();

/// For tests: false leaves what failed as it is, to show that the redo matters.
void set_redo(bool enabled);

}  // namespace aft::ops

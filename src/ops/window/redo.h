#pragma once

#include <cstdint>

namespace aft::ops {

/// Behind window_redo_count() and window_set_redo().
bool redo_enabled();
void count_redone(int64_t redone, int64_t total);

}  // namespace aft::ops

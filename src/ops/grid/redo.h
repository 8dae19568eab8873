#pragma once

#include <cstdint>

namespace aft::ops {

/// Behind grid_redo_count() and grid_set_redo().
bool grid_redo_enabled();
void count_grid_redone(int64_t redone);

}  // namespace aft::ops

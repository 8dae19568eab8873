#pragma once

#include <cstdint>

namespace aft::ops {

/// The certified fast path of a kernel factors e^(k+w); what fails its certificate is redone exactly. Counted in (row,
/// channel) pairs since the process began.
struct RedoCount {
  int64_t redone = 0;
  int64_t total = 0;  // pairs computed
};

/// Forward and backward of the windowed operator with a band; simple needs no redo.
RedoCount window_redo_count();
/// Forward and backward of the grid operator, whose backward redoes whole images.
RedoCount grid_redo_count();
/// Forward of the dense operator; its backward redoes what the forward did.
RedoCount full_redo_count();
/// The three together.
RedoCount redo_count();

/// For tests: false leaves what failed as it is, to show that the redo matters.
void set_redo(bool enabled);

}  // namespace aft::ops

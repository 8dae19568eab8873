#pragma once

#include <cstddef>
#include <cstdint>

#include "aft/ops/window.h"
#include "ops/window/plan.h"

namespace aft::ops::window {

/// What one call does of a task with a band: chunks [first_chunk, last_chunk) of its targets. A task is done from its
/// last chunk to its first, in one call or several.
template <typename T>
struct BandPart {
  int64_t first_chunk = 0, last_chunk = 0;
  /// band_task_bytes() that stay between the calls of a task, aligned to 64; null: one call, which takes its own.
  std::byte* memory = nullptr;
  /// The band's gradient summed over the channels of a panel, zeroed: [panels][rows][J]; null: not wanted. Rows are the
  /// targets from first_chunk on, or one for all of them where they share it (conv1d).
  T* sums = nullptr;
  int64_t rows = 0;
  RedoCount* redone = nullptr;
};

/// The backward for the targets of this machine: of one task without a band, and of `count` tasks of one sequence with
/// one, walked together over the same chunks.
template <typename E>
void backward_simple_task(const WindowBackward<E>& p, const WindowTask& task);
template <typename E>
void backward_band_tasks(const WindowBackward<E>& p, const WindowTask* tasks, const BandPart<Accumulate<E>>* parts,
                         int64_t count);
template <typename E>
size_t band_task_bytes(const WindowBackward<E>& p, const WindowTask& task);

}  // namespace aft::ops::window

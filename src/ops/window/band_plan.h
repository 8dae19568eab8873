#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aft/ops/window.h"
#include "ops/window/plan.h"

// How the backward with a band is cut: the chunks of a sequence, and the stages in which the band's gradient is summed.

namespace aft::ops::window {

/// Targets that are done together, and the sources done with them.
struct Chunk {
  int64_t index;
  Range targets;
  Range window;   // within reach of the targets' windows; those before the sequence may exist or not
  Range sources;  // whose gradients are complete once the chunk and the later ones are done
};

/// The chunks of one sequence, which are walked last to first. Sources follow as far behind their targets as windows
/// reach to later sources, so that all targets that see one in their windows are there.
struct ChunkPlan {
  int64_t time;
  int64_t rows;      // targets of a chunk
  int64_t count;     // of chunks
  int64_t reach;     // how far windows reach to earlier sources
  int64_t lag;       // how far they reach to later ones, in whole blocks
  int64_t capacity;  // at most so many sources in a chunk's window, and targets that its sources see

  /// Of the shape of the sequence alone.
  explicit ChunkPlan(const WindowShape& s)
      : time(s.time),
        rows(chunk_rows(s)),
        count(chunk_count(s, s.time)),
        reach(s.causal ? s.left : std::min(s.left, s.time)),
        lag(whole_blocks(std::min(s.right, s.time))),
        capacity(reach + rows + lag + kRows) {}

  Chunk chunk(int64_t index) const {
    const int64_t begin = index * rows;
    return {.index = index,
            .targets = targets({index, index + 1}),
            .window = {begin - reach, std::min(begin + rows + lag, time)},
            .sources = {source_begin(index), source_begin(index + 1)}};
  }
  Range targets(Range of_chunks) const { return {of_chunks.begin * rows, std::min(of_chunks.end * rows, time)}; }

 private:
  int64_t source_begin(int64_t index) const {
    return index == 0 ? 0 : index == count ? time : std::min(time, index * rows + lag);
  }
};

/// How the band's gradient is summed: every task sums it over the channels of each of its panels, and the panels' sums
/// are added to the table in order. To keep the room for them small, a few sequences are done at a time, and their rows
/// in stages, last to first. A stage is the same rows of every sequence: where they start at the same row of the table,
/// a row adds up sequence by sequence, however they are cut. Else it adds up stage by stage too, so which sequences go
/// together must not depend on the threads.
template <typename E>
struct BandPlan {
  bool wanted;
  bool shares_row;   // all targets: one row (conv1d), which is one stage
  int64_t span;      // J
  int64_t capacity;  // elements of the sums of the sequences done at a time, which are one or more
  int64_t stage_rows;

  explicit BandPlan(const WindowBackward<E>& p)
      : wanted(p.grad_band.data != nullptr),
        shares_row(p.grad_band.row_stride == 0),
        span(p.in.shape.left + 1 + p.in.shape.right) {
    // A 32nd of q, k and v, or what is small anyway; stages are such that it holds some sequences.
    const WindowShape& s = p.in.shape;
    capacity = std::max<int64_t>(262144, 3 * token_count(s) * s.channels / 32);
    const int64_t row = s.heads * panel_count<E>(s.channels / s.heads) * span;
    stage_rows = std::clamp<int64_t>(capacity / (4 * row), 256, 1024);
  }

  /// Chunks of a stage; all of a sequence are one where no row of the gradient is its own.
  int64_t stage_chunks(const ChunkPlan& chunks) const {
    return std::max<int64_t>(1, wanted && !shares_row ? stage_rows / chunks.rows : chunks.count);
  }
  int64_t stages(const ChunkPlan& chunks) const {
    return std::max<int64_t>(1, (chunks.count + stage_chunks(chunks) - 1) / stage_chunks(chunks));
  }
  Range stage(const ChunkPlan& chunks, int64_t index) const {
    const int64_t first = index * stage_chunks(chunks);
    return {first, std::min(chunks.count, first + stage_chunks(chunks))};
  }
  /// Elements of the sums of a task's longest stage.
  int64_t size(const ChunkPlan& chunks, const WindowTask& task) const {
    if (!wanted) return 0;
    const int64_t rows = shares_row ? 1 : chunks.targets(stage(chunks, 0)).size();
    return panel_count<E>(task.end - task.begin) * rows * span;
  }
};

/// The tasks of whole sequences that are done at a time.
struct BandGroup {
  Range tasks;
  Lengths lengths;
};

/// From task `begin` on: as many sequences as fit, or one.
template <typename E>
BandGroup next_group(const BandPlan<E>& plan, const WindowShape& s, const std::vector<WindowTask>& tasks,
                     int64_t begin) {
  BandGroup group = {{begin, begin}, {}};
  const auto count = static_cast<int64_t>(tasks.size());
  for (int64_t size = 0; group.tasks.end < count;) {
    const Sequence& sequence = tasks[group.tasks.end].sequence;
    const ChunkPlan chunks(alone(s, sequence));
    int64_t next = group.tasks.end;
    for (; next < count && tasks[next].sequence.index == sequence.index; ++next) size += plan.size(chunks, tasks[next]);
    if (group.tasks.size() > 0 && size > plan.capacity) break;
    group.lengths.add(sequence.time);
    group.tasks.end = next;
  }
  return group;
}

/// What one stage of a task adds to the band's gradient: rows of the targets from first_target on, or one for all.
template <typename T>
struct BandSums {
  T* data = nullptr;  // [panels][rows][J]; null: not wanted
  int64_t panels = 0, rows = 0, span = 0;
  bool shares_row = false;
  int64_t first_target = 0;
  int64_t head = 0, table_row = 0;  // where row 0 goes

  int64_t size() const { return panels * rows * span; }
  T* row(int64_t panel, int64_t i) const { return data + (panel * rows + i) * span; }
};

}  // namespace aft::ops::window

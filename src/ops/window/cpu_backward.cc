// Backward of the windowed operator on the CPU: how it is dealt out to threads, and the sum of the band's gradient.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/scratch.h"
#include "ops/window/backward.h"
#include "ops/window/check.h"
#include "ops/window/plan.h"

namespace aft::ops {
namespace window {
namespace {

template <typename T>
void zero(T* data, int64_t size) {
  if (data != nullptr) std::fill_n(data, size, T(0));
}

// The band's gradient summed over the channels of one panel: rows [row, row + rows) of the table, [rows][J].
template <typename T>
struct BandPanel {
  int64_t head;
  int64_t row, rows;
  const T* sums;
};

// Adds panels to the band's gradient in their order.
template <typename E, typename T>
void add_panels(const WindowBackward<E>& p, const std::vector<BandPanel<T>>& panels, const ParallelFor& parallel) {
  const int64_t span = p.in.shape.left + 1 + p.in.shape.right;
  // Rows of the table are independent: split by absolute row, so that sequences at different positions do not meet.
  int64_t first = std::numeric_limits<int64_t>::max();
  int64_t last = 0;
  for (const BandPanel<T>& panel : panels) {
    first = std::min(first, panel.row);
    last = std::max(last, panel.row + panel.rows);
  }
  constexpr int64_t kTableRows = 256;
  parallel.run(last <= first ? 0 : (last - first + kTableRows - 1) / kTableRows, [&](int64_t i) {
    const int64_t begin = first + i * kTableRows;
    for (const BandPanel<T>& panel : panels) {
      const int64_t end = std::min(panel.row + panel.rows, begin + kTableRows);
      for (int64_t row = std::max(begin, panel.row); row < end; ++row) {
        const T* from = panel.sums + (row - panel.row) * span;
        T* to = p.grad_band.data + panel.head * p.grad_band.head_stride + row * p.grad_band.row_stride;
        for (int64_t j = 0; j < span; ++j) to[j] += from[j];
      }
    }
  });
}

// A task with a band, in as many steps as keep the room for its part of the band's gradient small.
template <typename E>
struct BandTask {
  using T = Accumulate<E>;
  const WindowBackward<E>& p;
  WindowTask task;
  RedoCount* redone;
  int64_t chunk = chunk_rows(p.in.shape);
  int64_t chunks = chunk_count(p.in.shape, task.sequence.time);
  int64_t panels = panel_count<E>(task.end - task.begin);
  bool shares_row = p.grad_band.row_stride == 0;
  int64_t step_chunks = 1;
  int64_t steps = 1;
  int64_t panel_size = 0;
  std::byte* memory = nullptr;
  T* sums = nullptr;

  BandTask(const WindowBackward<E>& params, const WindowTask& window_task, int64_t step_rows, RedoCount* redo_count)
      : p(params), task(window_task), redone(redo_count) {
    step_chunks = std::max<int64_t>(1, shares_row ? chunks : step_rows / chunk);
    steps = std::max<int64_t>(1, (chunks + step_chunks - 1) / step_chunks);
    const int64_t rows = shares_row ? 1 : std::min(task.sequence.time, step_chunks * chunk);
    panel_size = rows * (p.in.shape.left + 1 + p.in.shape.right);
  }

  int64_t size() const { return panels * panel_size; }

  BandPart<T> part(int64_t step) const {
    BandPart<T> part;
    part.first_chunk = step * step_chunks;
    part.last_chunk = std::min(chunks, part.first_chunk + step_chunks);
    part.memory = memory;
    part.sums = sums;
    part.redone = redone;
    part.rows = shares_row ? 1 : std::min(task.sequence.time, part.last_chunk * chunk) - part.first_chunk * chunk;
    return part;
  }
  void add_to(std::vector<BandPanel<T>>& all, int64_t step) const {
    const BandPart<T> done = part(step);
    const int64_t b = task.sequence.index;
    const int64_t position = shares_row || p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[b];
    const int64_t span = p.in.shape.left + 1 + p.in.shape.right;
    for (int64_t panel = 0; panel < panels; ++panel) {
      all.push_back({task.head, shares_row ? 0 : position + done.first_chunk * chunk, done.rows,
                     sums + panel * done.rows * span});
    }
  }
};

// Step `step` of the tasks [first, last), which walk together.
template <typename E>
void run_step(const WindowBackward<E>& p, const BandTask<E>* first, const BandTask<E>* last, int64_t step) {
  std::vector<WindowTask> tasks;
  std::vector<BandPart<Accumulate<E>>> parts;
  for (const BandTask<E>* task = first; task < last; ++task) {
    zero(task->sums, task->size());
    tasks.push_back(task->task);
    parts.push_back(task->part(step));
  }
  backward_band_tasks<E>(p, tasks.data(), parts.data(), last - first);
}

// The backward with the band's gradient, a few sequences at a time. A step is the same rows of every sequence: where
// they start at the same row of the table, a row adds up sequence by sequence, however they are cut. Else it adds up
// step by step too, so which sequences go together must not depend on the threads.
template <typename E>
void run_with_band(const WindowBackward<E>& p, const Cpu& cpu) {
  using T = Accumulate<E>;
  const ParallelFor& parallel = cpu.parallel;
  const WindowShape& shape = p.in.shape;
  // Room for the parts of the gradient, in elements: a 32nd of q, k and v, or what is small anyway. Steps are such that
  // it holds some sequences.
  const int64_t capacity = std::max<int64_t>(262144, 3 * token_count(shape) * shape.channels / 32);
  const int64_t row = shape.heads * panel_count<E>(shape.channels / shape.heads) * (shape.left + 1 + shape.right);
  const int64_t step_rows = std::clamp<int64_t>(capacity / (4 * row), 256, 1024);
  std::vector<BandTask<E>> tasks;
  for (const WindowTask& task : window_tasks(shape, p.in.cu_seqlens, split_band_channels<E>(shape, parallel.threads))) {
    tasks.emplace_back(p, task, step_rows, cpu.redone);
  }
  const size_t count = tasks.size();
  for (size_t begin = 0, end = 0; begin < count; begin = end) {
    Lengths lengths;
    for (int64_t size = 0; end < count;) {
      const Sequence& sequence = tasks[end].task.sequence;
      size_t next = end;
      for (; next < count && tasks[next].task.sequence.index == sequence.index; ++next) size += tasks[next].size();
      if (end > begin && size > capacity) break;
      lengths.add(sequence.time);
      end = next;
    }
    int64_t steps = 0;
    Scratch scratch;
    for (size_t i = begin; i < end; ++i) {
      steps = std::max(steps, tasks[i].steps);
      tasks[i].sums = scratch.take<T>(tasks[i].size());
      if (tasks[i].steps > 1) {
        tasks[i].memory = scratch.take<std::byte>(static_cast<int64_t>(band_task_bytes<E>(p, tasks[i].task)));
      }
    }
    const int64_t together = tasks_at_once<E>(shape, lengths, static_cast<int64_t>(end - begin), parallel.threads);
    for (int64_t step = steps - 1; step >= 0; --step) {
      std::vector<const BandTask<E>*> running;  // the first of those that walk together
      std::vector<BandPanel<T>> panels;
      for (size_t i = begin; i < end; ++i) {
        if (step >= tasks[i].steps) continue;
        if ((i - begin) % together == 0) running.push_back(&tasks[i]);
        tasks[i].add_to(panels, step);
      }
      parallel.run(static_cast<int64_t>(running.size()),
                   [&](int64_t i) { run_step(p, running[i], running[i] + together, step); });
      add_panels(p, panels, parallel);
    }
  }
}

template <typename E>
void backward(const WindowBackward<E>& p, const Cpu& cpu) {
  const WindowShape& s = p.in.shape;
  const bool wants_band = s.has_band && p.grad_band.data != nullptr;
  zero(p.grad_initial_state.den, s.batch * s.key_channels);
  zero(p.grad_initial_state.num, s.batch * s.channels);
  zero(p.grad_initial_state.ring_key, s.batch * s.left * s.key_channels);
  zero(p.grad_initial_state.ring_value, s.batch * s.left * s.channels);
  const int64_t span = s.left + 1 + s.right;
  if (wants_band) {
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t t = 0; t < (p.grad_band.row_stride == 0 ? 1 : p.grad_band.rows); ++t) {
        zero(p.grad_band.data + h * p.grad_band.head_stride + t * p.grad_band.row_stride, span);
      }
    }
  }
  if (s.channels == 0 || (s.time == 0 && p.in.initial_state.position == nullptr)) return;
  if (wants_band) {
    run_with_band(p, cpu);
    return;
  }
  const ParallelFor& parallel = cpu.parallel;
  const auto tasks = window_tasks(s, p.in.cu_seqlens, split_channels<E>(s, parallel.threads));
  Lengths lengths;
  for_each_sequence(s, p.in.cu_seqlens, [&](const Sequence& sequence) { lengths.add(sequence.time); });
  const int64_t together = tasks_at_once<E>(s, lengths, static_cast<int64_t>(tasks.size()), parallel.threads);
  parallel.run(static_cast<int64_t>(tasks.size()) / together, [&](int64_t i) {
    const WindowTask* first = tasks.data() + i * together;
    if (!s.has_band) {
      backward_simple_task<E>(p, *first);
      return;
    }
    BandPart<Accumulate<E>> whole;
    whole.redone = cpu.redone;
    whole.last_chunk = chunk_count(s, first->sequence.time);
    const std::vector<BandPart<Accumulate<E>>> parts(together, whole);
    backward_band_tasks<E>(p, first, parts.data(), together);
  });
}

}  // namespace
}  // namespace window

template <typename E>
void window_backward(const WindowBackward<E>& p, const Cpu& cpu) {
  window::check_sizes(p);
  window::check_values(p.in);
  window::backward(p, cpu);
}

#define AFT_INSTANTIATE(E) template void window_backward<E>(const WindowBackward<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

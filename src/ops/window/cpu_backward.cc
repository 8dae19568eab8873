// Backward of the windowed operator on the CPU: how it is dealt out to threads, and the sum of the band's gradient.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/scratch.h"
#include "ops/window/backward.h"
#include "ops/window/check.h"
#include "ops/window/plan.h"

namespace aft::ops {
namespace {

template <typename E>
void run_task(const WindowBackward<E>& p, const WindowTask& task, Accumulate<E>* grad_band) {
  if (p.shape.has_band) {
    backward_band_task<E>(p, task, grad_band);
  } else {
    backward_simple_task<E>(p, task);
  }
}

template <typename T>
void zero(T* data, int64_t size) {
  if (data != nullptr) std::fill_n(data, size, T(0));
}

// The band's gradient summed over the channels of one panel, [band_gradient_rows()][J].
template <typename T>
struct BandPanel {
  int64_t head;
  int64_t position, time;  // rows of the table
  const T* sums;
};

// Adds panels to the band's gradient in their order.
template <typename E, typename T>
void add_panels(const WindowBackward<E>& p, const std::vector<BandPanel<T>>& panels, const ParallelFor& parallel) {
  const int64_t span = p.shape.left + 1 + p.shape.right;
  const auto add_row = [&](const BandPanel<T>& panel, int64_t t) {
    const T* from = panel.sums + t * span;
    T* to = p.grad_band.data + panel.head * p.grad_band.head_stride + (panel.position + t) * p.grad_band.row_stride;
    for (int64_t j = 0; j < span; ++j) to[j] += from[j];
  };
  if (p.grad_band.row_stride == 0) {
    for (const BandPanel<T>& panel : panels) add_row(panel, 0);
    return;
  }
  // Rows of the table are independent: split by absolute row, so that sequences at different positions do not meet.
  int64_t first = p.grad_band.rows;
  int64_t last = 0;
  for (const BandPanel<T>& panel : panels) {
    first = std::min(first, panel.position);
    last = std::max(last, panel.position + panel.time);
  }
  constexpr int64_t kTableRows = 256;
  parallel.run((std::max(last, first) - first + kTableRows - 1) / kTableRows, [&](int64_t i) {
    const int64_t begin = first + i * kTableRows;
    for (const BandPanel<T>& panel : panels) {
      const int64_t low = std::max<int64_t>(0, begin - panel.position);
      const int64_t high = std::min(panel.time, begin + kTableRows - panel.position);
      for (int64_t t = low; t < high; ++t) add_row(panel, t);
    }
  });
}

}  // namespace

template <typename E>
void window_backward(const WindowBackward<E>& p, const ParallelFor& parallel) {
  using T = Accumulate<E>;
  check_backward(p);
  const WindowShape& s = p.shape;
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
  if (s.channels == 0) return;
  if (!wants_band) {
    const auto tasks = window_tasks(s, p.cu_seqlens, split_channels<E>(s, parallel.threads));
    parallel.run(static_cast<int64_t>(tasks.size()), [&](int64_t i) { run_task<E>(p, tasks[i], nullptr); });
    return;
  }
  const auto tasks = window_tasks(s, p.cu_seqlens, split_band_channels<E>(s, parallel.threads));
  const auto panel_size = [&](const WindowTask& task) { return band_gradient_rows(p, task.sequence) * span; };
  const auto panels_of = [](const WindowTask& task) { return panel_count<E>(task.end - task.begin); };
  int64_t largest = 0;
  for (const WindowTask& task : tasks) largest = std::max(largest, panels_of(task) * panel_size(task));
  // As many tasks at a time as fit into room for one largest a thread.
  const int64_t capacity = std::max<int64_t>(1, parallel.threads) * largest;
  Workspace workspace(Scratch::padded<T>(capacity));
  T* sums = workspace.take<T>(capacity);
  for (size_t begin = 0; begin < tasks.size();) {
    std::vector<int64_t> offsets = {0};
    while (begin + offsets.size() <= tasks.size()) {
      const WindowTask& next = tasks[begin + offsets.size() - 1];
      const int64_t end = offsets.back() + panels_of(next) * panel_size(next);
      if (end > capacity) break;
      offsets.push_back(end);
    }
    const auto count = static_cast<int64_t>(offsets.size()) - 1;
    parallel.run(count, [&](int64_t i) {
      zero(sums + offsets[i], offsets[i + 1] - offsets[i]);
      run_task<E>(p, tasks[begin + i], sums + offsets[i]);
    });
    std::vector<BandPanel<T>> panels;
    for (int64_t i = 0; i < count; ++i) {
      const WindowTask& task = tasks[begin + i];
      const int64_t b = task.sequence.index;
      const int64_t position = p.initial_state.position == nullptr ? 0 : p.initial_state.position[b];
      for (int64_t panel = 0; panel < panels_of(task); ++panel) {
        panels.push_back({task.head, position, task.sequence.time, sums + offsets[i] + panel * panel_size(task)});
      }
    }
    add_panels(p, panels, parallel);
    begin += count;
  }
}

#define AFT_INSTANTIATE(E) template void window_backward<E>(const WindowBackward<E>&, const ParallelFor&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

// Backward of the windowed operator on the CPU: how it is dealt out to threads, and the sum of the band's gradient.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aft/ops/window.h"
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
  int64_t batch, head;
  const T* sums;
};

// Adds panels to the band's gradient in their order.
template <typename E, typename T>
void add_panels(const WindowBackward<E>& p, const std::vector<BandPanel<T>>& panels, const ParallelFor& parallel) {
  const WindowShape& s = p.shape;
  const int64_t span = s.left + 1 + s.right;
  const auto position = [&](const BandPanel<T>& panel) {
    return p.initial_state.position == nullptr ? 0 : p.initial_state.position[panel.batch];
  };
  const auto add_row = [&](const BandPanel<T>& panel, int64_t t) {
    const T* from = panel.sums + t * span;
    T* to = p.grad_band.data + panel.head * p.grad_band.head_stride + (position(panel) + t) * p.grad_band.row_stride;
    for (int64_t j = 0; j < span; ++j) to[j] += from[j];
  };
  if (p.grad_band.row_stride == 0) {
    for (const BandPanel<T>& panel : panels) add_row(panel, 0);
    return;
  }
  // Rows of the table are independent: split by absolute row, so that batch rows at different positions do not meet.
  constexpr int64_t kTableRows = 256;
  parallel.run((p.grad_band.rows + kTableRows - 1) / kTableRows, [&](int64_t i) {
    for (const BandPanel<T>& panel : panels) {
      const int64_t low = std::max<int64_t>(0, i * kTableRows - position(panel));
      const int64_t high = std::min(s.time, (i + 1) * kTableRows - position(panel));
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
    const auto tasks = window_tasks(s, split_channels<E>(s, parallel.threads));
    parallel.run(static_cast<int64_t>(tasks.size()), [&](int64_t i) { run_task<E>(p, tasks[i], nullptr); });
    return;
  }
  const int64_t width = split_band_channels<E>(s, parallel.threads);
  const auto tasks = window_tasks(s, width);
  const int64_t count = static_cast<int64_t>(tasks.size());
  const int64_t group = std::min(count, std::max<int64_t>(1, parallel.threads));
  const int64_t panel_size = band_gradient_rows(p) * span;
  const int64_t task_size = panel_count<E>(std::min(width, s.channels / s.heads)) * panel_size;
  std::vector<T> sums(group * task_size);
  for (int64_t begin = 0; begin < count; begin += group) {
    const int64_t end = std::min(begin + group, count);
    parallel.run(end - begin, [&](int64_t i) {
      zero(sums.data() + i * task_size, task_size);
      run_task<E>(p, tasks[begin + i], sums.data() + i * task_size);
    });
    std::vector<BandPanel<T>> panels;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t panel = 0; panel < panel_count<E>(tasks[i].end - tasks[i].begin); ++panel) {
        panels.push_back({tasks[i].batch, tasks[i].head, sums.data() + (i - begin) * task_size + panel * panel_size});
      }
    }
    add_panels(p, panels, parallel);
  }
}

template void window_backward<float>(const WindowBackward<float>&, const ParallelFor&);
template void window_backward<double>(const WindowBackward<double>&, const ParallelFor&);
template void window_backward<BFloat16>(const WindowBackward<BFloat16>&, const ParallelFor&);
template void window_backward<Float16>(const WindowBackward<Float16>&, const ParallelFor&);

}  // namespace aft::ops

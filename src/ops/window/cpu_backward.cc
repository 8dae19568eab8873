// Backward of the windowed operator on the CPU. Cost and layout: README.md.

#include <algorithm>
#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
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

template <typename E>
void backward(const WindowBackward<E>& p, const Cpu& cpu) {
  const WindowShape& s = p.in.shape;
  zero(p.grad_initial_state.den, s.batch * s.key_channels);
  zero(p.grad_initial_state.num, s.batch * s.channels);
  zero(p.grad_initial_state.ring_key, s.batch * s.left * s.key_channels);
  zero(p.grad_initial_state.ring_value, s.batch * s.left * s.channels);
  for (int64_t h = 0; s.has_band && p.grad_band.data != nullptr && h < s.heads; ++h) {
    for (int64_t t = 0; t < (p.grad_band.row_stride == 0 ? 1 : p.grad_band.rows); ++t) {
      zero(p.grad_band.data + h * p.grad_band.head_stride + t * p.grad_band.row_stride, s.left + 1 + s.right);
    }
  }
  if (s.channels == 0 || (s.time == 0 && p.in.initial_state.position == nullptr)) return;
  if (s.has_band) {
    backward_band(p, cpu);
    return;
  }
  const auto tasks = window_tasks(s, p.in.cu_seqlens, split_channels<E>(s, cpu.parallel.threads));
  cpu.parallel.run(static_cast<int64_t>(tasks.size()), [&](int64_t i) { backward_simple_task<E>(p, tasks[i]); });
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

// One position of the windowed operator on the CPU, the state edited in place. Always from p and n of every pair: a row
// costs (left + 1) exponentials a channel, next to reading the weights of a model nothing.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/scratch.h"
#include "ops/window/check.h"
#include "ops/window/plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/window/cpu_step.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/gate-inl.h"
#include "ops/window/channels-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

template <typename E>
void Step(const WindowStep<E>& p, const WindowTask& task) {
  using T = Accumulate<E>;
  using D = hn::ScalableTag<T>;
  using V = hn::Vec<D>;
  const D d;
  const WindowShape& shape = p.in.shape;
  const State<const T>& before = p.in.initial_state;  // the state itself
  Scratch scratch;
  const Channels<D, E> s(shape, task, p.in, scratch);
  const E* q = shape.gate == Gate::kNone ? nullptr : first_row(p.in.q, task.sequence) + task.begin;
  E* y = first_row(p.y, task.sequence) + task.begin;
  const int64_t first = s.first_source;
  const int64_t leaving = -shape.left;  // joins the running sums, if it exists
  const int64_t key_row = task.sequence.index * shape.key_channels + s.key_begin;
  if (shape.has_band) s.exact_weights(0, first, 1);
  for (int64_t j = 0; j < s.vectors; ++j) {
    RunningSum<V> sum = s.initial_sums(before, j);
    RowSums<V> row;
    if (shape.has_band) {
      row = s.exact_sums(j, first, 1, sum, nullptr);
      if (leaving >= first) {
        AddSource(d, sum, s.source_key(leaving, j), s.source_value(leaving, j));
      }
    } else {
      AddSource(d, sum, s.source_key(0, j), s.source_value(0, j));
      row = {sum.den, sum.num, sum.max, hn::Set(d, T(1))};
    }
    const int64_t at = j * s.lanes;
    const int64_t n = s.count(j);
    const V query = shape.gate == Gate::kNone ? hn::Zero(d) : LoadSome(d, q + at, n);
    StoreSome(GatedRatio(d, shape.gate, query, row.num, row.den), d, y + at, n);
    StoreSome(sum.num, d, p.state.num + task.sequence.index * shape.channels + task.begin + at, n);
    if (s.key_per_head && j + 1 < s.vectors) continue;  // the other vectors still read the head's sums
    const int64_t key_at = s.key_per_head ? 0 : at;
    const int64_t keys = s.key_per_head ? 1 : n;
    const V none = hn::Set(d, std::numeric_limits<T>::lowest());
    StoreSome(hn::IfThenElse(hn::Gt(sum.max, hn::Set(d, kExponentFloor<T>)), sum.max, none), d,
              p.state.max + key_row + key_at, keys);
    StoreSome(sum.den, d, p.state.den + key_row + key_at, keys);
  }
  if (shape.left > 0) s.write_ring(0, p.state);
}

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {
namespace window {
namespace {

template <typename E>
void step(const WindowStep<E>& p, const Cpu& cpu) {
  const auto tasks = window_tasks(p.in.shape, nullptr, split_channels<E>(p.in.shape, cpu.parallel.threads));
  cpu.parallel.run(static_cast<int64_t>(tasks.size()), [&](int64_t i) { AFT_DISPATCH(Step<E>)(p, tasks[i]); });
}

}  // namespace
}  // namespace window

template <typename E>
void window_step(const WindowStep<E>& p, const Cpu& cpu) {
  WindowStep<E> one = p;
  one.in.shape.time = 1;
  one.in.shape.packed = false;
  one.in.cu_seqlens = nullptr;
  one.in.key_mask = {};
  one.in.initial_state = p.state;
  window::check_sizes(one);
  window::check_values(one.in);
  // As they were checked, whatever else the caller's memory serves.
  std::vector<int64_t> positions(p.state.position, p.state.position + p.in.shape.batch);
  one.state.position = positions.data();
  one.in.initial_state = one.state;
  if (one.in.shape.channels > 0) window::step(one, cpu);
  for (int64_t b = 0; b < p.in.shape.batch; ++b) p.state.position[b] = positions[b] + 1;
}

#define AFT_INSTANTIATE(E) template void window_step<E>(const WindowStep<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
#endif

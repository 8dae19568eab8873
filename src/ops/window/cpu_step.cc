// One position of the windowed operator on the CPU, the state edited in place. Always from p and n of every pair: a row
// costs (left + 1) exponentials a channel, next to reading the weights of a model nothing.

#include <algorithm>
#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/scratch.h"
#include "ops/window/check.h"
#include "ops/window/plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/window/cpu_step.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/gate-inl.h"
#include "ops/window/stripe-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

template <class D, typename T = hn::TFromD<D>>
void StepTask(const WindowStep<T>& p, const WindowTask& task) {
  using V = hn::Vec<D>;
  const D d;
  const WindowShape& shape = p.shape;
  const State<const T> before = {p.state.position, p.state.max,      p.state.den,
                                 p.state.num,      p.state.ring_key, p.state.ring_value};
  Scratch scratch(Stripe<D>::bytes(shape, task, {}));
  Stripe<D> s(shape, task, p.k, p.v, p.band, before, {}, scratch);
  const T* q = p.q.data + (p.q.data == nullptr ? 0 : task.batch * p.q.batch_stride + task.begin);
  T* y = p.y.data + task.batch * p.y.batch_stride + task.begin;
  const int64_t first = s.sources.first;
  const int64_t leaving = -shape.left;  // joins the running sums, if it exists
  const int64_t key_row = task.batch * shape.key_channels + (s.key_per_head ? task.head : task.begin);
  if (shape.has_band) s.exact_weights(0, first, 1);
  for (int64_t j = 0; j < s.vectors; ++j) {
    RunningSum<V> sum = s.initial_sums(before, j);
    RowSums<V> row;
    if (shape.has_band) {
      row = s.exact_sums(j, first, 1, sum, nullptr);
      if (leaving >= first) {
        AddSource(d, sum, s.load_key(s.sources.key(leaving), j), s.load_value(s.sources.value(leaving), j));
      }
    } else {
      AddSource(d, sum, s.load_key(s.sources.key(0), j), s.load_value(s.sources.value(0), j));
      row = {sum.den, sum.num, sum.max, hn::Set(d, T(1))};
    }
    const int64_t at = j * s.lanes;
    const int64_t n = s.count(j);
    const V query = shape.gate == Gate::kNone ? hn::Zero(d) : LoadSome(d, q + at, n);
    StoreSome(GatedRatio(d, shape.gate, query, row.num, row.den), d, y + at, n);
    StoreSome(sum.num, d, p.state.num + task.batch * shape.channels + task.begin + at, n);
    if (s.key_per_head && j + 1 < s.vectors) continue;  // the other vectors still read the head's sums
    const int64_t key_at = s.key_per_head ? 0 : at;
    const int64_t keys = s.key_per_head ? 1 : n;
    const V none = hn::Set(d, std::numeric_limits<T>::lowest());
    StoreSome(hn::IfThenElse(hn::Gt(sum.max, hn::Set(d, kExponentFloor<T>)), sum.max, none), d,
              p.state.max + key_row + key_at, keys);
    StoreSome(sum.den, d, p.state.den + key_row + key_at, keys);
  }
  if (shape.left == 0) return;
  const int64_t slot = task.batch * shape.left + s.sources.slot(0);
  const int64_t key_width = s.key_per_head ? 1 : s.width;
  std::copy_n(s.sources.key(0), key_width,
              p.state.ring_key + slot * shape.key_channels + (s.key_per_head ? task.head : task.begin));
  std::copy_n(s.sources.value(0), s.width, p.state.ring_value + slot * shape.channels + task.begin);
}

void StepF32(const WindowStep<float>& p, const WindowTask& task) { StepTask<hn::ScalableTag<float>>(p, task); }
void StepF64(const WindowStep<double>& p, const WindowTask& task) { StepTask<hn::ScalableTag<double>>(p, task); }

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {

HWY_EXPORT(StepF32);
HWY_EXPORT(StepF64);

template <typename T>
void window_step(const WindowStep<T>& p, const ParallelFor& parallel) {
  check_step(p);
  WindowStep<T> one = p;
  one.shape.time = 1;
  if (one.shape.channels > 0) {
    const auto tasks = window_tasks(one.shape, split_channels<T>(one.shape, parallel.threads));
    parallel.run(static_cast<int64_t>(tasks.size()), [&](int64_t i) {
      if constexpr (sizeof(T) == 4) {
        HWY_DYNAMIC_DISPATCH(StepF32)(one, tasks[i]);
      } else {
        HWY_DYNAMIC_DISPATCH(StepF64)(one, tasks[i]);
      }
    });
  }
  for (int64_t b = 0; b < one.shape.batch; ++b) ++one.state.position[b];
}

template void window_step<float>(const WindowStep<float>&, const ParallelFor&);
template void window_step<double>(const WindowStep<double>&, const ParallelFor&);

}  // namespace aft::ops
#endif

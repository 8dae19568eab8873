// Forward of the grid operator on the CPU. Cost and layout: README.md.

#include <cstdint>

#include "aft/ops/grid.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/common/scratch.h"
#include "ops/grid/check.h"
#include "ops/grid/plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/grid/cpu_forward.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/common/exp-inl.h"
#include "ops/common/gate-inl.h"
#include "ops/grid/panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::grid::HWY_NAMESPACE {

template <typename E>
void ForwardTask(const GridForward<E>& p, const GridTask& task, RedoCount* counters) {
  using D = hn::ScalableTag<Accumulate<E>>;
  using V = hn::Vec<D>;
  const D d;
  Scratch scratch;
  Panel<D, E> panel(p.in, task, false, scratch);
  const bool redo = redo_enabled();
  const bool gated = p.in.shape.gate != Gate::kNone;
  int64_t redone = 0;
  for (int64_t b = task.first; b < task.last; ++b) {
    for (int64_t j = 0; j < panel.vectors; ++j) {
      panel.load_image(b, j, false);
      panel.sum_outside(panel.sources);
      const auto before = [&](int64_t t, int64_t n) {
        panel.prefetch_sources(b + 1, t, n, j);
        if (gated) panel.prefetch(p.in.q, b + 1, t, n, j);
      };
      panel.for_each_sum(panel.sources, panel.weights(j), j, before, [&](int64_t t, V den, V num) {
        const auto failed = panel.failed(den);
        if (HWY_UNLIKELY(!hn::AllFalse(d, failed)) && redo) {
          redone += static_cast<int64_t>(hn::CountTrue(d, hn::And(failed, hn::FirstN(d, panel.count(j)))));
          const ExactRow<V> exact = panel.exact_row(b, j, t);
          den = hn::IfThenElse(failed, exact.den, den);
          num = hn::IfThenElse(failed, exact.num, num);
        }
        const V query = gated ? panel.load(p.in.q, b, t, j) : hn::Zero(d);
        const V out = hn::Mul(GatedRatio(d, p.in.shape.gate, query, num, den), panel.from_x);
        StoreSome(out, d, panel.row(p.y, b, t, j), panel.count(j));
      });
    }
  }
  count_redone(counters, redone, task.pairs(p.in.shape));
}

}  // namespace aft::ops::grid::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {
namespace grid {
namespace {

template <typename E>
void forward(const GridForward<E>& p, const Cpu& cpu) {
  if (p.in.shape.time() == 0) return;
  const GridPlan<Accumulate<E>> plan(p.in.shape);
  cpu.parallel.run(plan.tasks(), [&](int64_t i) { AFT_DISPATCH(ForwardTask<E>)(p, plan.task(i), cpu.redone); });
}

}  // namespace
}  // namespace grid

template <typename E>
void grid_forward(const GridForward<E>& p, const Cpu& cpu) {
  grid::check_sizes(p);
  grid::forward(p, cpu);
}

#define AFT_INSTANTIATE(E) template void grid_forward<E>(const GridForward<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
#endif

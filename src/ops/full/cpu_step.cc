// One position of the dense operator on the CPU: a pass over the keys and values so far.

#include <algorithm>
#include <cstdint>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/full/cpu_step.cc"
#include "hwy/foreach_target.h"
// foreach_target first.
#include "aft/ops/full.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/for_each_element.h"
#include "ops/common/gate-inl.h"
#include "ops/common/scratch.h"
#include "ops/full/check.h"
#include "ops/full/entries-inl.h"
#include "ops/full/plan.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Panels whose rows are read side by side.
constexpr int64_t kStepPanels = 8;

// Panels [first, last) of one batch row and one head.
template <class D, typename E>
void StepTask(const FullStep<E>& p, const std::vector<Panel>& panels, int64_t b, int64_t first, int64_t last) {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  using Exact = typename Tiles<D>::Exact;
  const D d;
  constexpr int64_t kLanes = hn::MaxLanes(D());
  const FullShape& shape = p.in.shape;
  const Sources<D, E> sources(p.in);
  const int64_t position = p.state.position[b];
  const Sequence x = {.batch = b, .first = position, .targets = 1, .sources = position + 1};
  const WeightSet set = {.batch = b, .head = panels[first].head, .targets = position + 1, .sources = position + 1};

  Scratch scratch;
  const Tiles<D> tiles(p.in.weights, set, true, scratch);
  Exact* weights = scratch.take<Exact>(position + 1);
  tiles.exact_row(position, {0, position + 1}, weights);

  RunningSum<V> sums[kStepPanels];
  for (RunningSum<V>& sum : sums) sum = StartSum(d, hn::Set(d, 4 * kExponentFloor<T>));
  for (int64_t s = 0; s <= position; ++s) {
    if (weights[s].p == 0) continue;
    for (int64_t j = first; j < last; ++j) {
      AddPair(d, sums[j - first], sources.key(x, panels[j], s), sources.value(x, panels[j], s), weights[s]);
    }
  }
  for (int64_t j = first; j < last; ++j) {
    const Panel& c = panels[j];
    const V query =
        shape.gate == Gate::kNone ? hn::Zero(d) : LoadSome(d, p.in.q.data + b * p.in.q.batch_stride + c.begin, c.count);
    const RunningSum<V>& sum = sums[j - first];
    StoreSome(GatedRatio(d, shape.gate, query, sum.num, sum.den), d, p.y.data + b * p.y.batch_stride + c.begin,
              c.count);
    const int64_t slot = b * shape.capacity + position;
    HWY_ALIGN T lanes[kLanes];
    hn::Store(sources.value(x, c, position), d, lanes);
    std::copy_n(lanes, c.count, p.state.ring_value + slot * shape.channels + c.begin);
    if (sources.key_per_head && c.begin % (shape.channels / shape.heads) != 0) continue;
    hn::Store(sources.key(x, c, position), d, lanes);
    std::copy_n(lanes, sources.at(c).key_count(), p.state.ring_key + slot * shape.key_channels + sources.at(c).key);
  }
}

template <class D, typename E>
void Step(const FullStep<E>& p, const ParallelFor& parallel) {
  const std::vector<Panel> panels = panels_of(p.in.shape, hn::MaxLanes(D()));
  struct Piece {
    int64_t batch, first, last;
  };
  std::vector<Piece> pieces;
  for (int64_t b = 0; b < p.in.shape.batch; ++b) {
    for (int64_t j = 0; j < static_cast<int64_t>(panels.size());) {
      int64_t end = j + 1;
      while (end < static_cast<int64_t>(panels.size()) && end < j + kStepPanels && panels[end].head == panels[j].head) {
        ++end;
      }
      pieces.push_back({b, j, end});
      j = end;
    }
  }
  parallel.run(static_cast<int64_t>(pieces.size()),
               [&](int64_t i) { StepTask<D, E>(p, panels, pieces[i].batch, pieces[i].first, pieces[i].last); });
}

template <typename E>
void RunStep(const FullStep<E>& p, const ParallelFor& parallel) {
  Step<hn::ScalableTag<Accumulate<E>>, E>(p, parallel);
}

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {
namespace full {
namespace {

template <typename E>
void step(const FullStep<E>& p, const Cpu& cpu) {
  AFT_DISPATCH(RunStep<E>)(p, cpu.parallel);
}

}  // namespace
}  // namespace full

template <typename E>
void full_step(const FullStep<E>& p, const Cpu& cpu) {
  FullStep<E> one = p;
  one.in.shape.targets = one.in.shape.sources = 1;
  one.in.shape.packed = false;
  one.in.cu_seqlens = nullptr;
  one.in.key_mask = {};
  one.in.initial_state = p.state;
  full::check_sizes(one);
  full::check_values(one.in);
  // As they were checked, whatever else the caller's memory serves.
  std::vector<int64_t> positions(p.state.position, p.state.position + p.in.shape.batch);
  one.state.position = positions.data();
  one.in.initial_state = one.state;
  full::step(one, cpu);
  for (int64_t b = 0; b < p.in.shape.batch; ++b) p.state.position[b] = positions[b] + 1;
}

#define AFT_INSTANTIATE(E) template void full_step<E>(const FullStep<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
#endif

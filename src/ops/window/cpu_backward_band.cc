// Backward of the windowed operator with a band. Cost and layout: README.md.
//
// With a[t] = gy gate / D and b[t] = a N/D:   dv[t'] = e^k sum_t e^w a[t]    dk[t'] = v dv - e^k sum_t e^w b[t]
// and dw[t,t'] = e^w sum_c e^k (v a[t] - b[t]): the sums over t are the operator run backwards with key -log D.
//
// Chunks of targets are walked right to left, a chunk's channels panel by panel. In each, the forward is recomputed
// from the sums at its start (phase 1), leaving a, b and an exponent per row, normalised so that a row is worth a
// 2^exponent. Then everything is brought to the chunk's scale: K = e^k 2^-M as in the forward, a' = a 2^(exponent + M).
// K is at most sqrt(2), so what a product loses is harmless as long as a' stays below 2^kRangeLimit; a vector of
// channels that exceeds it is computed exactly in this chunk. Sources follow as soon as all targets whose windows hold
// them are there (phase 2): causal, those of the chunk; without `causal`, `lag` rows later.
//
// Without `causal` the sums at the chunks' starts, of sources and of targets, come from a walk over all chunks before.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/common/scratch.h"
#include "ops/window/backward.h"
#include "ops/window/band_plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/window/cpu_backward_band.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/window/band_gradient-inl.h"
#include "ops/window/band_sources-inl.h"
#include "ops/window/band_task-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

// Not causal, before everything else: first chunk to last, what each will need of the rows before it. The rows' a and b
// are formed here a first time: to keep them would take three tensors. Returns how many pairs were redone.
template <class D, typename E>
int64_t SumBoundaries(const BandTask<D, E>& task) {
  using Task = BandTask<D, E>;
  Scratch scratch;
  Stripe<D, E> s = task.stripe(scratch);
  const VectorView<typename Task::T, kSumParts, Task::lanes> targets_before(task.vectors, scratch);
  s.scan_whole(task.boundaries->whole);
  for (int64_t j = 0; j < task.vectors; ++j) {
    s.store_sums(task.no_sum(), s.sums_at(j));
    s.store_sums(task.no_sum(), targets_before.at(j));
  }
  for (int64_t index = 0; index < task.chunks.count; ++index) {
    for (int64_t j = 0; j < task.vectors; ++j) {
      s.store_boundary(s.load_sums(s.sums_at(j)), task.boundaries->sources_before.at(index, j));
      s.store_boundary(s.load_sums(targets_before.at(j)), task.boundaries->targets_before.at(index, j));
    }
    if (index + 1 == task.chunks.count) break;  // the last chunk is before no other
    const Chunk chunk = task.chunks.chunk(index);
    s.prepare_targets(chunk.targets);
    for (int64_t first = 0; first < task.vectors; first += task.panel_vectors) {
      const Range panel = task.panel(first);
      task.recompute(s, chunk, panel, false);
      for (int64_t j = panel.begin; j < panel.end; ++j) {
        RunningSum<typename Task::V> sum = s.load_sums(targets_before.at(j));
        for (int64_t t = chunk.targets.begin; t < chunk.targets.end; t += kRows) {
          task.targets.add_block(sum, j, t, s.weights.exponent(t));
        }
        s.store_sums(sum, targets_before.at(j));
      }
    }
  }
  return s.redone;
}

// Before a task's chunks. Returns how many pairs were redone.
template <class D, typename E>
int64_t StartTask(const BandTask<D, E>& task) {
  if (task.chunks.count == 0 && task.tensors.p.in.initial_state.position != nullptr) {
    Scratch scratch;
    const BandChunk<D, E> chunk(task, 0, scratch);
    BandSources<D, E>(chunk, {task, 0}, scratch).pass_state();
  }
  return task.shape.causal ? 0 : SumBoundaries(task);
}

// Chunk `index` of a task, the later ones being done. Adds to `sums`; returns how many pairs were redone.
template <class D, typename E>
int64_t WalkChunk(const BandTask<D, E>& task, int64_t index, const Follower<D, E>& follower,
                  const BandSums<Accumulate<E>>& sums) {
  Scratch scratch;
  BandChunk<D, E> of(task, index, scratch);
  BandGradient<D, E> gradient(of, sums, scratch);
  BandSources<D, E> sources(of, follower, scratch);
  Stripe<D, E>& s = of.stripe;
  int64_t out_of_range = 0;
  for (int64_t first = 0; first < task.vectors; first += task.panel_vectors) {
    const Range panel = task.panel(first);
    if (task.shape.causal) {
      task.tensors.restore_sums(s, index, panel.begin, panel.end);
    } else {
      for (int64_t j = panel.begin; j < panel.end; ++j) {
        s.store_sums(s.load_boundary(task.boundaries->sources_before.at(index, j)), s.sums_at(j));
      }
    }
    task.recompute(s, of.chunk, panel, true);
    if (of.chunk.targets.end == task.shape.time && task.tensors.has_final) {
      for (int64_t j = panel.begin; j < panel.end; ++j) task.leave_final(s, j, hn::Load(task.d, s.sums_at(j)));
    }
    out_of_range += of.scaled.fill(task.targets, s, of.seen, of.chunk.targets, panel);
    if (sums.data != nullptr) gradient.add(panel);
    sources.run(panel);
  }
  if (task.tensors.key_per_head) sources.write_keys();
  return s.redone + out_of_range;
}

// Tasks of one sequence that are walked together, chunk by chunk: memory then sees whole rows, however few channels a
// head has.
template <class D, typename E>
class Walk {
 public:
  using T = Accumulate<E>;

  // The sums lie in `scratch`, and tasks of more than one stage too; those of one live only while they are walked.
  Walk(const WindowBackward<E>& params, const BandPlan<E>& band_plan, const WindowTask* first_task, int64_t tasks,
       Scratch& scratch)
      : p(params), plan(band_plan), first(first_task), count(tasks), chunks(alone(p.in.shape, first->sequence)) {
    sums.reserve(count);
    for (int64_t i = 0; i < count; ++i) sums.push_back(scratch.take<T>(plan.size(chunks, first[i])));
    if (stages() > 1) kept = make_tasks(scratch);
  }

  int64_t stages() const { return plan.stages(chunks); }

  void run(int64_t stage, RedoCount* counter) const {
    if (!kept.empty()) {
      run(kept, stage, counter);
    } else {
      Scratch scratch;
      run(make_tasks(scratch), stage, counter);
    }
  }

  // What task i adds to the band's gradient in a stage.
  BandSums<T> sums_of(int64_t i, int64_t stage) const {
    if (!plan.wanted) return {};
    const WindowTask& task = first[i];
    const Range targets = chunks.targets(plan.stage(chunks, stage));
    const int64_t* positions = p.in.initial_state.position;
    const int64_t position = positions == nullptr ? 0 : positions[task.sequence.index];
    return {.data = sums[i],
            .panels = panel_count<E>(task.end - task.begin),
            .rows = plan.shares_row ? 1 : targets.size(),
            .span = plan.span,
            .shares_row = plan.shares_row,
            .first_target = targets.begin,
            .head = task.head,
            .table_row = plan.shares_row ? 0 : position + targets.begin};
  }

  int64_t tasks() const { return count; }

 private:
  std::vector<BandTask<D, E>> make_tasks(Scratch& scratch) const {
    std::vector<BandTask<D, E>> tasks;
    tasks.reserve(count);
    for (int64_t i = 0; i < count; ++i) tasks.emplace_back(p, first[i], scratch);
    return tasks;
  }

  void run(const std::vector<BandTask<D, E>>& tasks, int64_t stage, RedoCount* counter) const {
    const Range walked = plan.stage(chunks, stage);
    std::vector<BandSums<T>> to;
    to.reserve(count);
    int64_t redone = 0;
    int64_t width = 0;
    for (int64_t i = 0; i < count; ++i) {
      to.push_back(sums_of(i, stage));
      std::fill_n(to[i].data, to[i].size(), T(0));
      if (walked.end == chunks.count) redone += StartTask(tasks[i]);
      width += tasks[i].tensors.width;
    }
    for (int64_t index = walked.end - 1; index >= walked.begin; --index) {
      for (int64_t i = 0; i < count; ++i) {
        const bool wraps = i + 1 == count;
        redone += WalkChunk(tasks[i], index, {tasks[wraps ? 0 : i + 1], wraps ? chunks.rows : 0}, to[i]);
      }
    }
    for (const BandTask<D, E>& task : tasks) task.tensors.flush();
    count_redone(counter, redone, width * chunks.targets(walked).size());
  }

  const WindowBackward<E>& p;
  const BandPlan<E>& plan;
  const WindowTask* first;
  int64_t count;
  ChunkPlan chunks;
  std::vector<T*> sums;  // of each task
  std::vector<BandTask<D, E>> kept;
};

// Adds what a stage came to, in the order of `all`.
template <typename E, typename T>
void AddSums(const WindowBackward<E>& p, const std::vector<BandSums<T>>& all, const ParallelFor& parallel) {
  // Rows of the table are independent: split by absolute row, so that sequences at different positions do not meet.
  Range table = {std::numeric_limits<int64_t>::max(), 0};
  for (const BandSums<T>& sums : all) {
    table = {std::min(table.begin, sums.table_row), std::max(table.end, sums.table_row + sums.rows)};
  }
  constexpr int64_t kTableRows = 256;
  parallel.run((std::max<int64_t>(0, table.size()) + kTableRows - 1) / kTableRows, [&](int64_t i) {
    const int64_t begin = table.begin + i * kTableRows;
    for (const BandSums<T>& sums : all) {
      for (int64_t panel = 0; panel < sums.panels; ++panel) {
        const int64_t end = std::min(sums.table_row + sums.rows, begin + kTableRows);
        for (int64_t row = std::max(begin, sums.table_row); row < end; ++row) {
          const T* from = sums.row(panel, row - sums.table_row);
          T* to = p.grad_band.data + sums.head * p.grad_band.head_stride + row * p.grad_band.row_stride;
          for (int64_t j = 0; j < sums.span; ++j) to[j] += from[j];
        }
      }
    }
  });
}

template <typename E>
void Banded(const WindowBackward<E>& p, const Cpu& cpu) {
  using T = Accumulate<E>;
  using D = hn::ScalableTag<T>;
  const WindowShape& shape = p.in.shape;
  const int64_t threads = cpu.parallel.threads;
  const BandPlan<E> plan(p);
  const int64_t width = plan.wanted ? split_band_channels<E>(shape, threads) : split_channels<E>(shape, threads);
  const std::vector<WindowTask> tasks = window_tasks(shape, p.in.cu_seqlens, width);
  BandGroup group;
  for (int64_t begin = 0; begin < static_cast<int64_t>(tasks.size()); begin = group.tasks.end) {
    group = next_group(plan, shape, tasks, begin);
    const int64_t together = tasks_at_once<E>(shape, group.lengths, group.tasks.size(), threads);
    Scratch scratch;
    std::vector<Walk<D, E>> walks;
    walks.reserve(group.tasks.size() / together);
    int64_t stages = 0;
    for (int64_t i = group.tasks.begin; i < group.tasks.end; i += together) {
      walks.emplace_back(p, plan, tasks.data() + i, together, scratch);
      stages = std::max(stages, walks.back().stages());
    }
    for (int64_t stage = stages - 1; stage >= 0; --stage) {
      std::vector<const Walk<D, E>*> running;
      std::vector<BandSums<T>> sums;
      for (const Walk<D, E>& walk : walks) {
        if (stage >= walk.stages()) continue;
        running.push_back(&walk);
        for (int64_t i = 0; i < walk.tasks(); ++i) sums.push_back(walk.sums_of(i, stage));
      }
      cpu.parallel.run(static_cast<int64_t>(running.size()), [&](int64_t i) { running[i]->run(stage, cpu.redone); });
      if (plan.wanted) AddSums(p, sums, cpu.parallel);
    }
  }
}

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops::window {

template <typename E>
void backward_band(const WindowBackward<E>& p, const Cpu& cpu) {
  AFT_DISPATCH(Banded<E>)(p, cpu);
}

#define AFT_INSTANTIATE(E) template void backward_band<E>(const WindowBackward<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window
#endif

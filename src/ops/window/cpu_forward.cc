// Forward and prefill of the windowed operator on the CPU. Cost and layout: README.md.

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/common/scratch.h"
#include "ops/window/check.h"
#include "ops/window/plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/window/cpu_forward.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/gate-inl.h"
#include "ops/window/stripe-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

template <class D, typename E>
class ForwardTask {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  ForwardTask(const WindowForward<E>& params, const WindowTask& window_task, RedoCount* redo_count)
      : p(params), redo_counters(redo_count), shape(alone(params.in.shape, window_task.sequence)), task(window_task) {
    if (shape.gate != Gate::kNone) q = first_row(p.in.q, task.sequence) + task.begin;
    y = first_row(p.y, task.sequence) + task.begin;
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
    vectors = (task.end - task.begin + lanes - 1) / lanes;
    streams = streams_past_caches(shape, token_count(p.in.shape), y, p.y.time_stride, task.end - task.begin);
  }

  // Tasks of one sequence. Causal with a band they are walked together, chunk by chunk: memory then sees whole rows,
  // however few channels a head has.
  static void run(std::vector<ForwardTask>& tasks) {
    const ForwardTask& any = tasks.front();
    if (any.shape.has_band && any.shape.causal) {
      Scratch scratch;
      for (ForwardTask& task : tasks) task.enter(scratch);
      const int64_t chunk = chunk_rows(any.shape);
      for (int64_t begin = 0; begin < any.shape.time; begin += chunk) {
        const int64_t end = std::min(begin + chunk, any.shape.time);
        for (size_t i = 0; i < tasks.size(); ++i) {
          const bool last = i + 1 == tasks.size();
          tasks[i].walk_chunk(begin, end, tasks[last ? 0 : i + 1], last ? end : begin);
        }
      }
      for (ForwardTask& task : tasks) task.leave();
    } else {
      for (ForwardTask& task : tasks) task.run();
    }
    if (any.streams) hwy::FlushStream();
  }

 private:
  const WindowForward<E>& p;
  RedoCount* redo_counters;
  const WindowShape shape;
  const WindowTask& task;
  const E* q = nullptr;
  E* y = nullptr;
  bool streams = false;
  D d;
  int64_t vectors = 0;  // that hold the task's channels
  int64_t panel_vectors = kPanelChannels<E> / static_cast<int64_t>(hn::Lanes(D()));
  std::optional<Stripe<D, E>> stripe;  // of a causal band

  void run() {
    if (shape.has_band) {
      banded_whole();
    } else if (shape.causal) {
      simple_causal();
    } else {
      simple_whole();
    }
  }

  void write_row(const Channels<D, E>& s, int64_t t, int64_t j, V num, V den, V value_scale) const {
    const int64_t at = j * s.lanes;
    const V query = shape.gate == Gate::kNone ? hn::Zero(d) : LoadSome(d, q + t * p.in.q.time_stride + at, s.count(j));
    const V out = GatedRatio(d, shape.gate, query, num, den);
    StoreOut(hn::Mul(out, value_scale), d, y + t * p.y.time_stride + at, s.count(j), streams);
  }

  // Rows side by side where they are whole blocks of whole vectors: one alone is a chain of waits.
  HWY_INLINE void write_rows(const Channels<D, E>& s, Range targets, int64_t j, const RowSums<V>* row) const {
    constexpr int64_t kLanes = hn::MaxLanes(D());
    const int64_t n = targets.size();
    if (HWY_UNLIKELY(n < kRows || s.count(j) < kLanes || shape.gate != Gate::kSigmoid)) {
      for (int64_t r = 0; r < n; ++r) write_row(s, targets.begin + r, j, row[r].num, row[r].den, row[r].value_scale);
      return;
    }
    const E* query = q + targets.begin * p.in.q.time_stride + j * kLanes;
    E* to = y + targets.begin * p.y.time_stride + j * kLanes;
    V out[kRows];
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) {
      const V ratio =
          GatedRatio(d, Gate::kSigmoid, LoadSome(d, query + r * p.in.q.time_stride, kLanes), row[r].num, row[r].den);
      out[r] = hn::Mul(ratio, row[r].value_scale);
    }
#pragma GCC unroll 4
    for (int64_t r = 0; r < kRows; ++r) StoreOut(out[r], d, to + r * p.y.time_stride, kLanes, streams);
  }

  // The rows that the next block in the walk reads.
  HWY_INLINE void prefetch(const Channels<D, E>& s, int64_t j, int64_t t) const {
    s.prefetch_sources(j, t);
    if (q != nullptr) s.prefetch(q, p.in.q.time_stride, j, t);
  }

  // Target t of a walk row by row.
  HWY_INLINE void prefetch_target(const Channels<D, E>& s, int64_t j, int64_t t) const {
    if (q != nullptr) s.prefetch(q, p.in.q.time_stride, j, t, 1);
    if (!streams) s.prefetch_to_write(y, p.y.time_stride, j, t, 1);
  }

  // Before chunk `chunk`; those before the first are the initial state's.
  void save_sums(const Channels<D, E>& s, int64_t chunk) const {
    if (p.saved == nullptr || chunk == 0) return;
    T* to = p.saved + (task.sequence.boundary + chunk - 1) * 3 * shape.channels + task.begin;
    for (int64_t j = 0; j < s.vectors; ++j) {
      for (int64_t i = 0; i < 3; ++i) {
        StoreSome(hn::Load(d, s.sums + (j * kSumParts + i) * s.lanes), d, to + i * shape.channels + j * s.lanes,
                  s.count(j));
      }
    }
  }

  void simple_causal() {
    Scratch scratch;
    const Channels<D, E> s(shape, task, p.in, scratch);
    for (int64_t j = 0; j < s.vectors; ++j)
      s.store_sums(s.initial_sums(p.in.initial_state, j), s.sums + j * kSumParts * s.lanes);
    const int64_t chunk = chunk_rows(shape);
    const int64_t ahead = s.rows_ahead();
    // Row by row: blocks of rows would keep the sums in registers, but memory likes one stream a tensor better.
    for (int64_t t = 0; t < shape.time; ++t) {
      if (t % chunk == 0) save_sums(s, t / chunk);
      const int64_t next = std::min(t + ahead, shape.time - 1);
      for (int64_t j = 0; j < s.vectors; ++j) {
        s.prefetch_sources(j, next, 1);
        prefetch_target(s, j, next);
        T* at = s.sums + j * kSumParts * s.lanes;
        RunningSum<V> sum = s.load_sums(at);
        AddSource(d, sum, s.own_key(t, j), s.own_value(t, j));
        write_row(s, t, j, sum.num, sum.den, hn::Set(d, T(1)));
        s.store_sums(sum, at);
      }
    }
    write_state(s);
  }

  void simple_whole() {
    Scratch scratch;
    const Channels<D, E> s(shape, task, p.in, scratch);
    s.sum_sources();
    const int64_t ahead = s.rows_ahead();
    for (int64_t t = 0; t < shape.time; ++t) {
      const int64_t next = std::min(t + ahead, shape.time - 1);
      for (int64_t j = 0; j < s.vectors; ++j) {
        prefetch_target(s, j, next);
        const RunningSum<V> sum = s.load_sums(s.sums_at(j));
        write_row(s, t, j, sum.num, sum.den, hn::Set(d, T(1)));
      }
    }
  }

  void enter(Scratch& scratch) {
    const int64_t chunk = chunk_rows(shape);
    const typename Stripe<D, E>::Sizes sizes = {vectors, shape.left + chunk + kRows, chunk, 0};
    Stripe<D, E>& s = stripe.emplace(shape, task, p.in, sizes, scratch);
    s.place(-shape.left, 0);
    for (int64_t j = 0; j < s.vectors; ++j) {
      const RunningSum<V> sum = s.initial_sums(p.in.initial_state, j);
      s.store_sums(sum, s.sums + j * kSumParts * s.lanes);
      s.start_scale(j, sum);
      s.preload(j, {s.first_source, 0});
    }
  }

  // Afterwards `next`, of as many vectors, walks from next_begin on.
  void walk_chunk(int64_t begin, int64_t end, const ForwardTask& next, int64_t next_begin) {
    Stripe<D, E>& s = *stripe;
    save_sums(s, begin / chunk_rows(shape));
    s.prepare_targets({begin, begin + whole_blocks(end - begin)});
    for (int64_t panel = 0; panel < vectors; panel += panel_vectors) {
      const int64_t panel_end = std::min(panel + panel_vectors, vectors);
      for (int64_t tb = begin; tb < end; tb += kRows) {
        const Range block = {tb, std::min(tb + kRows, end)};
        for (int64_t j = panel; j < panel_end; ++j) {
          if (tb + kRows < end) {
            prefetch(s, j, tb + kRows);
          } else if (panel_end < vectors) {
            prefetch(s, j + panel_vectors, begin);
          } else {
            next.prefetch(*next.stripe, j - panel, next_begin);
          }
          // No source before the block's windows is read again.
          RowSums<V> row[kRows];
          s.causal_block(j, block, tb, row);
          write_rows(s, block, j, row);
        }
      }
    }
    s.move_window({end - shape.left, end});
  }

  void leave() const {
    count_redone(redo_counters, stripe->redone, shape.time * stripe->width);
    write_state(*stripe);
  }

  void banded_whole() {
    if (shape.time == 0) return;
    const int64_t chunk = chunk_rows(shape);
    const int64_t chunks = chunk_count(shape, shape.time);
    const int64_t reach = std::min(shape.left, shape.time) + std::min(shape.right, shape.time);
    const typename Stripe<D, E>::Sizes sizes = {vectors, reach + chunk + kRows, chunk, chunk / kRows};
    Scratch scratch;
    Stripe<D, E> s(shape, task, p.in, sizes, scratch);
    const typename Stripe<D, E>::Whole whole(chunks, vectors, scratch);
    s.scan_whole(whole);
    for (int64_t j = 0; j < vectors; ++j) s.store_sums(s.initial_sums({}, j), s.sums_at(j));
    s.place(-s.reach_left(), 0);
    int64_t stored = 0;
    for (int64_t index = 0; index < chunks; ++index) {
      const int64_t begin = index * chunk;
      const int64_t end = std::min(begin + chunk, shape.time);
      s.prepare_targets({begin, begin + whole_blocks(end - begin)});
      for (int64_t panel = 0; panel < vectors; panel += panel_vectors) {
        const int64_t panel_end = std::min(panel + panel_vectors, vectors);
        for (int64_t j = panel; j < panel_end; ++j) s.enter_chunk(j, index, {stored, s.after_chunk(index)}, whole);
        for (int64_t tb = begin; tb < end; tb += kRows) {
          const Range block = {tb, std::min(tb + kRows, end)};
          for (int64_t j = panel; j < panel_end; ++j) {
            RowSums<V> row[kRows];
            s.whole_block(j, block, row);
            write_rows(s, block, j, row);
          }
        }
      }
      stored = s.after_chunk(index);
      if (end < shape.time) s.move_window({end - s.reach_left(), stored});
    }
    count_redone(redo_counters, s.redone, shape.time * s.width);
  }

  // The sums stand at sources < T - left; the ring takes the last `left` raw keys and values. Positions are written
  // after all tasks, which read them.
  void write_state(const Channels<D, E>& s) const {
    const State<T>& out = p.final_state;
    if (out.position == nullptr) return;
    const int64_t key_row = task.sequence.index * shape.key_channels + s.key_begin;
    for (int64_t j = 0; j < s.vectors; ++j) {
      const RunningSum<V> sum = s.load_sums(s.sums + j * kSumParts * s.lanes);
      StoreSome(sum.num, d, out.num + task.sequence.index * shape.channels + task.begin + j * s.lanes, s.count(j));
      if (s.key_per_head && j > 0) continue;
      const V none = hn::Set(d, std::numeric_limits<T>::lowest());
      const V max = hn::IfThenElse(hn::Gt(sum.max, hn::Set(d, kExponentFloor<T>)), sum.max, none);
      const int64_t n = s.key_per_head ? 1 : s.count(j);
      StoreSome(max, d, out.max + key_row + j * s.lanes, n);
      StoreSome(sum.den, d, out.den + key_row + j * s.lanes, n);
    }
    for (int64_t source = std::max(s.first_source, shape.time - shape.left); source < shape.time; ++source) {
      s.write_ring(source, out);
    }
  }
};

template <typename E>
void Forward(const WindowForward<E>& p, const WindowTask* first, const WindowTask* last, RedoCount* redone) {
  using Task = ForwardTask<hn::ScalableTag<Accumulate<E>>, E>;
  std::vector<Task> tasks;
  tasks.reserve(last - first);
  for (; first < last; ++first) tasks.emplace_back(p, *first, redone);
  Task::run(tasks);
}

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {
namespace window {
namespace {

template <typename E>
void forward(const WindowForward<E>& p, const Cpu& cpu) {
  const ParallelFor& parallel = cpu.parallel;
  const WindowShape& shape = p.in.shape;
  if (shape.channels > 0 && (shape.time > 0 || p.final_state.position != nullptr)) {
    const auto tasks = window_tasks(shape, p.in.cu_seqlens, split_channels<E>(shape, parallel.threads));
    Lengths lengths;
    for_each_sequence(shape, p.in.cu_seqlens, [&](const Sequence& s) { lengths.add(s.time); });
    const int64_t step = tasks_at_once<E>(shape, lengths, static_cast<int64_t>(tasks.size()), parallel.threads);
    parallel.run(static_cast<int64_t>(tasks.size()) / step, [&](int64_t i) {
      const WindowTask* first = tasks.data() + i * step;
      AFT_DISPATCH(Forward<E>)(p, first, first + step, cpu.redone);
    });
  }
  if (p.final_state.position == nullptr) return;
  for_each_sequence(shape, p.in.cu_seqlens, [&](const Sequence& s) {
    const int64_t position = p.in.initial_state.position != nullptr ? p.in.initial_state.position[s.index] : 0;
    p.final_state.position[s.index] = position + s.time;
  });
}

}  // namespace
}  // namespace window

template <typename E>
void window_forward(const WindowForward<E>& p, const Cpu& cpu) {
  window::check_sizes(p);
  window::check_values(p.in);
  window::forward(p, cpu);
}

#define AFT_INSTANTIATE(E) template void window_forward<E>(const WindowForward<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
#endif

// Forward and prefill of the dense operator on the CPU.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/full/cpu_forward.cc"
#include "hwy/foreach_target.h"
// foreach_target first.
#include "aft/ops/full.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/for_each_element.h"
#include "ops/common/gate-inl.h"
#include "ops/common/redo.h"
#include "ops/common/scratch.h"
#include "ops/full/check.h"
#include "ops/full/dense-inl.h"
#include "ops/full/entries-inl.h"
#include "ops/full/exponents-inl.h"
#include "ops/full/plan.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D, typename E>
class Forward {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t kLanes = hn::MaxLanes(D());

  Forward(const FullForward<E>& params, const Cpu& cpu)
      : p(params),
        counters(cpu.redone),
        shape(params.in.shape),
        parallel(cpu.parallel),
        sequences(sequences_of(params.in)),
        panels(panels_of(params.in.shape, kLanes)),
        sets(weight_sets(params.in.shape, params.in.weights, sequences, panels)),
        sources(params.in) {}

  void run() {
    const auto panel_count = static_cast<int64_t>(panels.size());
    const int64_t exponent_count = sets.empty() ? 0 : sets.back().exponents + sets.back().rows;
    // A block of rows may take entries past the last.
    const int64_t entry_size = (panel_count * sequences.source_rows + kRowBlock) * 2 * kLanes;
    const int64_t scale_size = panel_count * sequences.source_chunks * kEntryScale<D>;
    Scratch workspace;
    entries = workspace.take<T>(entry_size);
    entry_scales = workspace.take<T>(scale_size);
    exponents = workspace.take<T>(exponent_count);
    FindExponents(D(), p.in.weights, sets, shape.causal, exponents, parallel);
    pack_sources();

    std::vector<FullTask> tasks;
    for (int64_t i = 0; i < static_cast<int64_t>(sets.size()); ++i) add_tasks(i, tasks);
    run_tasks(parallel, std::move(tasks), [&](const FullTask& task) { run_task(task); });
  }

 private:
  void add_tasks(int64_t index, std::vector<FullTask>& tasks) const {
    const WeightSet& set = sets[index];
    const int64_t chunks = chunks_of(set.rows);
    const int64_t step = columns_per_task(set, shape, chunks, parallel.threads);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int64_t c = 0; c < set.columns_of_work(); c += step) {
        const int64_t end = std::min(c + step, set.columns_of_work());
        const double passes = shape.causal ? static_cast<double>(chunk) + 0.7 : 1;
        const auto rows = static_cast<double>(std::min(kChunk, set.rows - chunk * kChunk));
        tasks.push_back({index, chunk, c, end, passes * rows * static_cast<double>(end - c + 1)});
      }
    }
  }

  T* entries_of(const Sequence& x, int64_t panel) const {
    return entries + (panel * sequences.source_rows + x.source_rows) * 2 * kLanes;
  }
  T* scale_of(const Sequence& x, int64_t panel, int64_t chunk) const {
    return entry_scales + (panel * sequences.source_chunks + x.source_chunks + chunk) * kEntryScale<D>;
  }

  // Every source's entry, chunk by chunk.
  void pack_sources() {
    std::vector<std::pair<int64_t, int64_t>> pieces;
    for (size_t b = 0; b < sequences.all.size(); ++b) {
      for (int64_t chunk = 0; chunk < chunks_of(sequences.all[b].sources); ++chunk) {
        pieces.emplace_back(static_cast<int64_t>(b), chunk);
      }
    }
    parallel.run(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
      const Sequence& x = sequences.all[pieces[i].first];
      const int64_t chunk = pieces[i].second;
      const int64_t begin = chunk * kChunk;
      for (int64_t j = 0; j < static_cast<int64_t>(panels.size()); ++j) {
        sources.pack(x, panels[j], begin, std::min(kChunk, x.sources - begin), entries_of(x, j) + begin * 2 * kLanes,
                     scale_of(x, j, chunk));
      }
    });
  }

  // A column of a task: its sums over the task's chunk of targets.
  struct Column {
    const Sequence* sequence;
    int64_t panel;
    int64_t first, last;  // its rows within the chunk
    Sums<D> sums;
  };

  struct Room {
    T* tile;
    T* block;
    typename Tiles<D>::Exact* exact;
    int64_t exact_target = -1;
  };

  void run_task(const FullTask& task) {
    const D d;
    const WeightSet& set = sets[task.set];
    const int64_t begin = task.chunk * kChunk;
    const int64_t columns = task.last_column - task.first_column;
    Scratch scratch;
    const Tiles<D> tiles(p.in.weights, set, shape.causal, scratch);
    Room room;
    room.tile = scratch.take<T>(kTileSize);
    room.block = scratch.take<T>(kRowBlock * 2 * kLanes);
    room.exact = scratch.take<typename Tiles<D>::Exact>(set.columns);
    T* sums = scratch.take<T>(columns * Sums<D>::kSize);
    T* scales = scratch.take<T>(columns * Sums<D>::kExponents);

    std::vector<Column> active;
    int64_t rows = 0;
    int64_t seen = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t index = task.first_column + i;
      const Sequence& x = sequences.all[set.first_sequence + index / set.panels()];
      Column column = {&x,
                       set.first_panel + index % set.panels(),
                       std::max<int64_t>(0, x.first - begin),
                       std::min(kChunk, x.end() - begin),
                       {d, sums + i * Sums<D>::kSize, scales + i * Sums<D>::kExponents}};
      if (column.first >= column.last) continue;
      column.sums.clear(column.first / kRowBlock * kRowBlock, whole_row_blocks(column.last));
      rows = std::max(rows, column.last);
      seen = std::max(seen, x.sources);
      active.push_back(column);
    }
    if (active.empty()) return;

    const T* row_exponents = exponents + set.exponents + begin;
    const int64_t before = shape.causal ? task.chunk : chunks_of(seen);
    for (int64_t chunk = 0; chunk < before; ++chunk) {
      const int64_t source = chunk * kChunk;
      tiles.pack_targets({begin, rows, source, std::min(kChunk, seen - source)}, row_exponents, room.tile);
      for (size_t i = 0; i < active.size(); ++i) {
        const Column& c = active[i];
        const Column& next = active[(i + 1) % active.size()];
        const T* from = entries_of(*next.sequence, next.panel) + source * 2 * kLanes;
        c.sums.add(room.tile, c.first / kRowBlock * kRowBlock, c.last,
                   entries_of(*c.sequence, c.panel) + source * 2 * kLanes,
                   std::min(kChunk, c.sequence->sources - source), scale_of(*c.sequence, c.panel, chunk),
                   i + 1 < active.size() ? from : from + kChunk * 2 * kLanes, room.block);
      }
    }
    if (shape.causal) tiles.pack_targets({begin, rows, begin, rows}, row_exponents, room.tile);
    int64_t redone = 0;
    int64_t total = 0;
    const auto end_rows = [&](const Column& c, int64_t o, int64_t n, const T* rows_sums, V e0, V e1) {
      finish(tiles, room, set, c, begin + o, n, row_exponents + o, rows_sums, e0, e1, redone);
    };
    for (const Column& c : active) {
      total += (c.last - c.first) * panels[c.panel].count;
      if (shape.causal) {
        c.sums.start_walk();
        continue;
      }
      end_rows(c, c.first, c.last - c.first, c.sums.sums + c.first * 2 * kLanes, hn::Load(d, c.sums.exponents),
               hn::Load(d, c.sums.exponents + kLanes));
    }
    // Block by block and then column by column: neighbouring columns read neighbouring memory.
    for (int64_t at = 0; shape.causal && at < rows; at += kRowBlock) {
      for (size_t i = 0; i < active.size(); ++i) {
        const Column& c = active[i];
        prefetch(i + 1 < active.size() ? active[i + 1] : active[0],
                 i + 1 < active.size() ? begin + at : begin + at + kRowBlock);
        if (at >= c.last) continue;
        const PackedEntries<T> packed = {entries_of(*c.sequence, c.panel) + (begin + at) * 2 * kLanes, 2 * kLanes,
                                         scale_of(*c.sequence, c.panel, task.chunk)};
        c.sums.walk(
            room.tile, at, c.first, c.last, room.block, packed,
            [&](int64_t o) { return sources.entry(*c.sequence, panels[c.panel], begin + o); },
            [&](int64_t o, int64_t n, const T* rows_sums, V e0, V e1) { end_rows(c, o, n, rows_sums, e0, e1); });
      }
    }
    count_redone(counters, redone, total);
  }

  // What the next block of a column reads and writes lies in rows far apart: it is fetched ahead. Inlined: GCC drops
  // calls of a function that only prefetches.
  HWY_INLINE void prefetch(const Column& c, int64_t position) const {
    const Sequence& x = *c.sequence;
    const Panel& panel = panels[c.panel];
    const T* packed = entries_of(x, c.panel);
    for (int64_t s = std::max(position, x.first); s < std::min(position + kRowBlock, x.end()); ++s) {
      const int64_t row = x.token + s - x.first;
      hwy::Prefetch(packed + s * 2 * kLanes);
      hwy::Prefetch(packed + s * 2 * kLanes + kLanes);
      if (shape.gate != Gate::kNone) {
        hwy::Prefetch(p.in.q.data + x.batch * p.in.q.batch_stride + row * p.in.q.time_stride + panel.begin);
      }
      __builtin_prefetch(p.y.data + x.batch * p.y.batch_stride + row * p.y.time_stride + panel.begin, 1);
    }
  }

  // Ends `n` rows from `target` on, of sums [n][2 vectors]: D = den 2^(e0 + weight_exponent), N = num 2^(e1 +
  // weight_exponent).
  void finish(const Tiles<D>& tiles, Room& room, const WeightSet& set, const Column& c, int64_t target, int64_t n,
              const T* weight_exponents, const T* sums, V e0, V e1, int64_t& redone) const {
    const D d;
    const Sequence& x = *c.sequence;
    const Panel& panel = panels[c.panel];
    const V floor = hn::Set(d, kExponentFloor<T>);
    const V zero = hn::Zero(d);
    const auto seen_any = hn::Gt(e0, floor);
    const int64_t row = target - x.first;
    const E* query_at =
        p.in.q.data + x.batch * p.in.q.batch_stride + (x.token + row) * p.in.q.time_stride + panel.begin;
    E* to = p.y.data + x.batch * p.y.batch_stride + (x.token + row) * p.y.time_stride + panel.begin;
    for (int64_t i = 0; i < n; ++i) {
      V den = hn::Load(d, sums + i * 2 * kLanes);
      V num = hn::Load(d, sums + i * 2 * kLanes + kLanes);
      const V weight_exponent = hn::Set(d, weight_exponents[i]);
      V exponent = hn::Add(e0, weight_exponent);
      V difference = hn::Sub(e1, e0);  // of num against den
      V sign = hn::Set(d, T(1));       // -1: redone
      auto failed = hn::Not(hn::And(hn::Ge(den, hn::Set(d, kCertificate<T>)), hn::Eq(hn::Sub(num, num), zero)));
      // Nothing to see is no failure.
      failed = hn::And(failed, hn::And(seen_any, hn::Gt(weight_exponent, floor)));
      if (HWY_UNLIKELY(!hn::AllFalse(d, failed)) && redo_enabled()) {
        redone += static_cast<int64_t>(hn::CountTrue(d, failed));
        const RunningSum<V> sum = redo(tiles, room, set, x, panel, target + i);
        den = hn::IfThenElse(failed, sum.den, den);
        num = hn::IfThenElse(failed, sum.num, num);
        exponent = hn::IfThenElse(failed, sum.max, exponent);
        difference = hn::IfThenZeroElse(failed, difference);
        sign = hn::IfThenElse(failed, hn::Neg(sign), sign);
      }
      const V query = shape.gate == Gate::kNone ? zero : LoadSome(d, query_at + i * p.in.q.time_stride, panel.count);
      const V y = ScaleBy(d, GatedRatio(d, shape.gate, query, num, den), difference);
      StoreSome(y, d, to + i * p.y.time_stride, panel.count);
      if (p.saved == nullptr) continue;
      const int64_t stride = sequences.target_rows * shape.channels;
      T* saved = p.saved + (x.target_rows + row + i) * shape.channels + panel.begin;
      const V ratio = hn::IfThenZeroElse(hn::Eq(den, zero), ScaleBy(d, hn::Div(num, den), difference));
      StoreSome(hn::Mul(den, sign), d, saved, panel.count);
      StoreSome(exponent, d, saved + stride, panel.count);
      StoreSome(ratio, d, saved + 2 * stride, panel.count);
    }
  }

  RunningSum<V> redo(const Tiles<D>& tiles, Room& room, const WeightSet& set, const Sequence& x, const Panel& panel,
                     int64_t target) const {
    const int64_t seen = shape.causal ? target + 1 : x.sources;
    if (room.exact_target != target) {
      tiles.exact_row(target, 0, shape.causal ? target + 1 : set.columns, room.exact);
    }
    room.exact_target = target;
    return SumExactly(D(), sources, x, panel, room.exact, seen);
  }

  const FullForward<E>& p;
  RedoCount* counters;
  const FullShape& shape;
  const ParallelFor& parallel;
  Sequences sequences;
  std::vector<Panel> panels;
  std::vector<WeightSet> sets;
  Sources<D, E> sources;
  T* entries = nullptr;       // [panels][sources of all sequences][2 vectors]
  T* entry_scales = nullptr;  // [panels][chunks of all sequences][kEntryScale]
  T* exponents = nullptr;     // [rows of all sets]: W
};

// The ring takes every source so far. Sums and their maximum stay neutral: all sources lie in the ring.
template <class D, typename E, typename T = hn::TFromD<D>>
void WriteState(D d, const FullForward<E>& p) {
  const FullShape& s = p.in.shape;
  const State<T>& to = p.final_state;
  const auto lanes = static_cast<int64_t>(hn::MaxLanes(d));
  std::fill_n(to.max, s.batch * s.key_channels, std::numeric_limits<T>::lowest());
  std::fill_n(to.den, s.batch * s.key_channels, T(0));
  std::fill_n(to.num, s.batch * s.channels, T(0));
  const auto copy = [&](const Rows<const E>& rows, const T* before, T* ring, int64_t width, int64_t b, int64_t first,
                        T masked) {
    if (before != nullptr && ring != before) {
      std::copy_n(before + b * s.capacity * width, first * width, ring + b * s.capacity * width);
    }
    for (int64_t t = 0; t < s.targets; ++t) {
      const E* from = rows.data + b * rows.batch_stride + t * rows.time_stride;
      T* row = ring + (b * s.capacity + first + t) * width;
      if (p.in.key_mask.data != nullptr && !p.in.key_mask.data[b * p.in.key_mask.batch_stride + t]) {
        std::fill_n(row, width, masked);
        continue;
      }
      for (int64_t c = 0; c < width; c += lanes) StoreSome(LoadSome(d, from + c, width - c), d, row + c, width - c);
    }
  };
  for (int64_t b = 0; b < s.batch; ++b) {
    const int64_t first = p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[b];
    copy(p.in.k, p.in.initial_state.ring_key, to.ring_key, s.key_channels, b, first,
         -std::numeric_limits<T>::infinity());
    copy(p.in.v, p.in.initial_state.ring_value, to.ring_value, s.channels, b, first, T(0));
  }
}

template <typename E>
void RunForward(const FullForward<E>& p, const Cpu& cpu) {
  using D = hn::ScalableTag<Accumulate<E>>;
  if (p.in.shape.targets > 0 && p.in.shape.channels > 0) Forward<D, E>(p, cpu).run();
  if (p.final_state.position != nullptr) WriteState(D(), p);
}

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {
namespace full {
namespace {

template <typename E>
void forward(const FullForward<E>& p, const Cpu& cpu) {
  AFT_DISPATCH(RunForward<E>)(p, cpu);
  if (p.final_state.position == nullptr) return;
  for (int64_t b = 0; b < p.in.shape.batch; ++b) {
    p.final_state.position[b] =
        (p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[b]) + p.in.shape.targets;
  }
}

}  // namespace
}  // namespace full

template <typename E>
void full_forward(const FullForward<E>& p, const Cpu& cpu) {
  full::check_sizes(p);
  full::check_values(p.in);
  full::forward(p, cpu);
}

#define AFT_INSTANTIATE(E) template void full_forward<E>(const FullForward<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
#endif

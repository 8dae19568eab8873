// Backward of the dense operator on the CPU.
//
// The sums over targets are the forward's sums run the other way: a target's entry is (g / D, g N / D^2), g = gy gate,
// and its weights are the same tile, packed by source. Rows that the forward redid take no part: they are added pair by
// pair. The weights' gradient is in weight_gradient-inl.h.

#include <algorithm>
#include <cstdint>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/full/cpu_backward.cc"
#include "hwy/foreach_target.h"
// foreach_target first.
#include "aft/ops/full.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/for_each_element.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/full/backward_entries-inl.h"
#include "ops/full/check.h"
#include "ops/full/dense-inl.h"
#include "ops/full/plan.h"
#include "ops/full/sums-inl.h"
#include "ops/full/tile-inl.h"
#include "ops/full/weight_gradient-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The gradients of keys and values: a chunk of sources, some columns.
//
// Causal, rows count down from the chunk's end, as do the targets along the diagonal: then a source sees the targets
// before it, as a target of the forward its sources.
template <class D, typename E>
class SourceGradientTask {
  using Entries = BackwardEntries<D, E>;
  using T = typename Entries::T;
  using V = typename Entries::V;
  using Exact = typename Entries::Exact;
  using Target = typename Entries::Target;
  using Column = full::HWY_NAMESPACE::Column<D>;
  // What redone targets add to dv and to dk, each with its error.
  using PairSums = VectorView<T, 4, Entries::kLanes>;

 public:
  SourceGradientTask(const Entries& backward_entries, const FullTask& full_task)
      : entries(backward_entries),
        task(full_task),
        set(entries.call.sets[task.set]),
        begin(task.chunk * kChunk),
        first_sequence(set.column(task.columns.begin).sequence),
        exponents(entries.call.exponents_of(set)),
        tiles(p.in.weights, set, shape.causal, scratch),
        exact(scratch.take<Exact>(kChunk)),
        sums(
            sequences, set, task.columns, [&](const Sequence& x) { return rows_of(x); }, scratch) {
    const int64_t task_sequences = set.column(task.columns.end - 1).sequence + 1 - first_sequence;
    key_sums = {scratch.take<T>(task_sequences * kChunk), kChunk};
    for (const Column& c : sums.columns) pair_sums.push_back(take_pair_sums(c));
  }

  void run() {
    Range targets, chunk_sources = {begin, begin};  // of all columns
    for (const Column& c : sums.columns) {
      targets.end = std::max(targets.end, c.x->end());
      chunk_sources.end = std::max(chunk_sources.end, c.x->sources_in(task.chunk).end);
    }
    if (chunk_sources.empty()) return;
    const int64_t stop = shape.causal ? task.chunk : -1;
    for (int64_t chunk = chunks_of(targets.end) - 1; chunk > stop; --chunk) {
      add_chunk({within_chunk(targets, chunk), chunk_sources}, chunk);
    }
    if (shape.causal) {
      walk({within_chunk(targets, task.chunk), chunk_sources});
    } else {
      for (size_t i = 0; i < sums.columns.size(); ++i) end_rows(i, sums.columns[i].sums.all());
    }
  }

 private:
  Range rows_of(const Sequence& x) const {
    const int64_t count = x.sources_in(task.chunk).size();
    return shape.causal ? Range{kChunk - count, kChunk} : Range{0, count};
  }
  int64_t source_of(int64_t row) const { return shape.causal ? begin + kChunk - 1 - row : begin + row; }

  // Cleared; data null if no target of the column is redone.
  PairSums take_pair_sums(const Column& c) {
    for (int64_t chunk = shape.causal ? task.chunk : 0; chunk < chunks_of(c.x->end()); ++chunk) {
      if (!entries.has_redone(*c.x, c.panel, chunk)) continue;
      const PairSums result(kChunk, scratch);
      std::fill_n(result.data, kChunk * PairSums::kStride, T(0));
      return result;
    }
    return {};
  }

  void add_chunk(const TileRange& at, int64_t chunk) const {
    tiles.pack_sources(at, exponents + at.targets.begin, false, shape.causal, sums.tile);
    sums.add(chunk, chunk - 1,
             [&](const Column& c, int64_t of_chunk) { return entries.targets.chunk(*c.x, c.panel, of_chunk); });
    add_redone(chunk);
  }

  // The targets of the task's own chunk.
  void walk(const TileRange& at) {
    tiles.pack_sources(at, exponents + at.targets.begin, true, true, sums.tile);
    add_redone(task.chunk);
    for (const Column& c : sums.columns) c.sums.start_walk();
    const int64_t first_row = kChunk - at.sources.size();
    for (int64_t row = first_row / kRowBlock * kRowBlock; row < kChunk; row += kRowBlock) {
      for (size_t i = 0; i < sums.columns.size(); ++i) {
        // The block may end before the column's sources: nothing to walk.
        if (row + kRowBlock > sums.columns[i].sums.rows.begin) walk_block(i, row);
      }
    }
  }

  void walk_block(size_t i, int64_t row) {
    const Column& c = sums.columns[i];
    DiagonalEntries<D> packed;
    const int64_t t = source_of(row);  // also the block's first target
    if (t < c.x->end() && t - kRowBlock + 1 >= c.x->first) {
      packed = {entries.targets.from(*c.x, c.panel, t), entries.targets.scale(*c.x, c.panel, task.chunk), -1};
    }
    c.sums.walk(
        sums.tile, row, packed, sums.block, [&](int64_t o) { return entry(c, source_of(o)); },
        [&](const EndedRows<D>& ended) { end_rows(i, ended); });
  }

  // Target t as an entry; there may be none, or one that is not the column's.
  Entry<D> entry(const Column& c, int64_t t) const {
    const D d;
    const V zero = hn::Zero(d);
    const V floor = hn::Set(d, 2 * kExponentFloor<T>);
    if (t < c.x->first || t >= c.x->end()) return {zero, zero, floor, floor};
    const Target target = entries.target(*c.x, panels[c.panel], t);
    return entries.entry_of(target, hn::Sub(hn::Set(d, exponents[t]), target.exponent));
  }

  // The gradients of a column's sources that have all their summands.
  void end_rows(size_t i, const EndedRows<D>& ended) {
    const D d;
    const Column& c = sums.columns[i];
    const PairSums pairs = pair_sums[i];
    const SourceRows<E> from = sources.rows(*c.x);
    const SourceGradRows<E> to = gradient_rows(*c.x);
    for (int64_t row = 0; row < ended.rows.size(); ++row) {
      const int64_t s = source_of(ended.rows.begin + row);
      SourceGrad grad = source_grad(c, s, ended, row);
      if (pairs.data != nullptr) {
        grad.value = hn::Add(grad.value, hn::Load(d, pairs.at(s - begin, 0)));
        grad.key = hn::Add(grad.key, hn::Load(d, pairs.at(s - begin, 2)));
      }
      write_source(c, s, from, to, grad);
    }
  }

  struct SourceGrad {
    V value, key;
  };
  // dv = e^k a, dk = e^k (v a - b), a and b the sums of a row.
  HWY_INLINE SourceGrad source_grad(const Column& c, int64_t s, const EndedRows<D>& ended, int64_t row) const {
    const D d;
    const Panel& panel = panels[c.panel];
    const V a = hn::Load(d, ended.sums.at(row, 0));
    const V b = hn::Load(d, ended.sums.at(row, 1));
    const V key = sources.key(*c.x, panel, s);
    const SplitExp<V> e = Split(d, key);
    // A value that no target sees may be infinite.
    const V value = hn::IfThenZeroElse(hn::Eq(a, hn::Zero(d)), MaskAbsent(d, key, sources.value(*c.x, panel, s)));
    const V dv = ScaleBy(d, hn::Mul(e.p, a), hn::Add(e.n, ended.exponent0));
    return {dv, hn::Sub(hn::Mul(dv, value), ScaleBy(d, hn::Mul(e.p, b), hn::Add(e.n, ended.exponent1)))};
  }

  HWY_INLINE void write_source(const Column& c, int64_t s, const SourceRows<E>& from, const SourceGradRows<E>& to,
                               const SourceGrad& grad) {
    const D d;
    const Panel& panel = panels[c.panel];
    const ChannelVector at = sources.at(panel);
    V dk = grad.key;
    WriteValueGrad(d, from, to, at, s - c.x->first, grad.value);
    if (sources.key_per_head) {
      T& key_sum = key_sums.row(c.sequence - first_sequence)[s - begin];
      const T sum = SumOfChannels(d, dk, at);
      const bool first_of_head = panel.begin % (shape.channels / shape.heads) == 0;
      key_sum = first_of_head ? sum : key_sum + sum;
      if (!panel.last_of_head) return;
      dk = hn::Set(d, key_sum);
    }
    WriteKeyGrad(d, from, to, at, s - c.x->first, dk);
  }

  SourceGradRows<E> gradient_rows(const Sequence& x) const {
    SourceGradRows<E> r;
    r.k = p.grad_k.data + x.batch * p.grad_k.batch_stride + x.token * p.grad_k.time_stride;
    r.v = p.grad_v.data + x.batch * p.grad_v.batch_stride + x.token * p.grad_v.time_stride;
    r.k_stride = p.grad_k.time_stride;
    r.v_stride = p.grad_v.time_stride;
    r.ring_begin = x.targets - shape.capacity;  // the ring holds every source
    const auto ring = [&](auto* data, int64_t channels) {
      return data == nullptr ? nullptr : data + x.batch * shape.capacity * channels;
    };
    r.final_ring_k = ring(p.grad_final_state.ring_key, shape.key_channels);
    r.final_ring_v = ring(p.grad_final_state.ring_value, shape.channels);
    r.initial_ring_k = ring(p.grad_initial_state.ring_key, shape.key_channels);
    r.initial_ring_v = ring(p.grad_initial_state.ring_value, shape.channels);
    return r;
  }

  // The redone targets of a chunk, pair by pair.
  void add_redone(int64_t chunk) const {
    for (size_t i = 0; i < sums.columns.size(); ++i) {
      const Column& c = sums.columns[i];
      if (pair_sums[i].data == nullptr || !entries.has_redone(*c.x, c.panel, chunk)) continue;
      const Range targets = c.x->targets_in(chunk);
      for (int64_t t = targets.begin; t < targets.end; ++t) {
        const Target target = entries.target(*c.x, panels[c.panel], t);
        if (!hn::AllFalse(D(), target.redone)) add_redone_target(c, t, target, pair_sums[i]);
      }
    }
  }

  void add_redone_target(const Column& c, int64_t t, const Target& target, PairSums to) const {
    Range seen = c.x->sources_in(task.chunk);
    if (shape.causal) seen.end = std::min(seen.end, t + 1);
    tiles.exact_row(t, seen, exact);
    for (int64_t i = 0; i < seen.size(); ++i) {
      if (exact[i].p == 0) continue;
      const auto [dv, dk] = entries.pair_grad(*c.x, panels[c.panel], begin + i, exact[i], target);
      add_compensated(hn::IfThenElseZero(target.redone, dv), to, i, 0);
      add_compensated(hn::IfThenElseZero(target.redone, dk), to, i, 2);
    }
  }

  // To the sum in a part, whose error is in the next.
  static HWY_INLINE void add_compensated(V term, PairSums to, int64_t i, int64_t part) {
    const D d;
    V sum = hn::Load(d, to.at(i, part));
    V low = hn::Load(d, to.at(i, part + 1));
    AddCompensated(term, hn::Set(d, T(1)), sum, low);
    hn::Store(sum, d, to.at(i, part));
    hn::Store(low, d, to.at(i, part + 1));
  }

  const Entries& entries;
  const FullBackward<E>& p = entries.p;
  const FullShape& shape = entries.shape;
  const Sequences& sequences = entries.sequences;
  const std::vector<Panel>& panels = entries.panels;
  const Sources<D, E>& sources = entries.sources;
  const FullTask& task;
  const WeightSet& set;
  const int64_t begin;  // first source of the chunk
  const int64_t first_sequence;
  const T* const exponents;  // W of the set's targets
  Scratch scratch;
  const Tiles<D> tiles;
  Exact* const exact;  // [kChunk]
  const TaskSums<D> sums;
  Matrix<T> key_sums;               // [sequences of the task][kChunk]: dk where a head shares its key
  std::vector<PairSums> pair_sums;  // [columns]: [kChunk]
};

template <typename E>
void RunBackward(const FullBackward<E>& p, const ParallelFor& parallel) {
  using D = hn::ScalableTag<Accumulate<E>>;
  Scratch workspace;
  const BackwardEntries<D, E> entries(p, parallel, workspace);
  run_tasks(parallel, column_tasks(entries.call.sets, p.in.shape, parallel.threads, Axis::kSources),
            [&](const FullTask& task) { SourceGradientTask<D, E>(entries, task).run(); });
  if (entries.wants_weights) WeightGradient<D, E>(entries).run();
}

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {
namespace full {
namespace {

template <typename T>
void clear(const PairWeights<T>& g, const FullShape& s, const ParallelFor& parallel) {
  if (g.table != nullptr) {
    const int64_t heads = g.head_stride == 0 ? 1 : s.heads;
    const int64_t matrices = (g.batch_stride == 0 || s.packed ? 1 : s.batch) * heads;
    parallel.run(matrices * g.rows, [&](int64_t i) {
      const int64_t matrix = i / g.rows;
      std::fill_n(
          g.table + matrix / heads * g.batch_stride + matrix % heads * g.head_stride + i % g.rows * g.row_stride,
          g.columns, T(0));
    });
  }
  if (g.u != nullptr) std::fill_n(g.u, (g.u_head_stride == 0 ? 1 : s.heads) * g.rows * g.width, T(0));
  if (g.v != nullptr) std::fill_n(g.v, (g.v_head_stride == 0 ? 1 : s.heads) * g.columns * g.width, T(0));
}

template <typename E>
void backward(const FullBackward<E>& p, const ParallelFor& parallel) {
  using T = Accumulate<E>;
  const FullShape& s = p.in.shape;
  const auto zero = [](T* data, int64_t size) {
    if (data != nullptr) std::fill_n(data, size, T(0));
  };
  zero(p.grad_initial_state.den, s.batch * s.key_channels);
  zero(p.grad_initial_state.num, s.batch * s.channels);
  zero(p.grad_initial_state.ring_key, s.batch * s.capacity * s.key_channels);
  zero(p.grad_initial_state.ring_value, s.batch * s.capacity * s.channels);
  clear(p.grad_weights, s, parallel);
  const bool empty = s.targets == 0 && s.sources == 0 && p.in.initial_state.position == nullptr;
  if (s.batch > 0 && s.channels > 0 && !empty) AFT_DISPATCH(RunBackward<E>)(p, parallel);
}

}  // namespace
}  // namespace full

template <typename E>
void full_backward(const FullBackward<E>& p, const Cpu& cpu) {
  full::check_sizes(p);
  full::check_values(p.in);
  full::backward(p, cpu.parallel);
}

#define AFT_INSTANTIATE(E) template void full_backward<E>(const FullBackward<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
#endif

// Backward of the dense operator on the CPU.
//
// The sums over targets are the forward's sums run the other way: a target's entry is (g / D, g N / D^2), g = gy gate,
// and its weights are the same tile, packed by source. Rows that the forward redid take no part: they are added pair by
// pair. The weights' gradient is in weight_gradient-inl.h.

#include <algorithm>
#include <cstdint>
#include <utility>
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
#include "ops/full/backward_entries-inl.h"
#include "ops/full/check.h"
#include "ops/full/dense-inl.h"
#include "ops/full/plan.h"
#include "ops/full/tile-inl.h"
#include "ops/full/weight_gradient-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// The gradients of keys and values.
template <class D, typename E>
class SourceGradient {
  using Entries = BackwardEntries<D, E>;
  using T = typename Entries::T;
  using V = typename Entries::V;
  using Exact = typename Entries::Exact;
  using Target = typename Entries::Target;
  static constexpr int64_t kLanes = Entries::kLanes;
  static constexpr int64_t kVectors = Entries::kVectors;

 public:
  explicit SourceGradient(const Entries& backward_entries) : entries(backward_entries) {}

  void run() const {
    std::vector<FullTask> tasks;
    for (int64_t i = 0; i < static_cast<int64_t>(sets.size()); ++i) {
      const WeightSet& set = sets[i];
      const int64_t chunks = chunks_of(set.columns);
      const int64_t step = columns_per_task(set, shape, chunks, parallel.threads);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        for (int64_t c = 0; c < set.columns_of_work(); c += step) {
          const int64_t end = std::min(c + step, set.columns_of_work());
          const double passes = shape.causal ? static_cast<double>(chunks - chunk) - 0.3 : 1;
          const auto rows = static_cast<double>(std::min(kChunk, set.columns - chunk * kChunk));
          tasks.push_back({i, chunk, c, end, passes * rows * static_cast<double>(end - c + 1)});
        }
      }
    }
    run_tasks(parallel, std::move(tasks), [&](const FullTask& task) { sum_task(task); });
  }

 private:
  struct Column {
    int64_t sequence;
    const Sequence* x;
    int64_t panel;
    int64_t count;  // its sources within the chunk
    Sums<D> sums;
    T* extra;  // [kChunk][4 vectors]: what redone rows add to dv and dk, each with its error; null: none
  };

  static constexpr int64_t kExtraSize = 2 * Sums<D>::kSize;

  void sum_task(const FullTask& task) const {
    const D d;
    const WeightSet& set = sets[task.set];
    const int64_t begin = task.chunk * kChunk;
    const int64_t columns = task.last_column - task.first_column;
    const auto redone_in = [&](const Sequence& x, int64_t panel) {
      for (int64_t i = shape.causal ? task.chunk : 0; i < chunks_of(x.end()); ++i) {
        if (i >= entries.first_chunk(x) && x.targets > 0 && entries.redone_of(x, panel)[i] != 0) return true;
      }
      return false;
    };
    // Sums of a key that serves its whole head, by sequence: columns of others come between in the walk.
    const int64_t first_sequence = set.first_sequence + task.first_column / set.panels();
    const int64_t task_sequences = (task.last_column - 1) / set.panels() - task.first_column / set.panels() + 1;
    int64_t extras = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t index = task.first_column + i;
      extras +=
          redone_in(sequences.all[set.first_sequence + index / set.panels()], set.first_panel + index % set.panels())
              ? 1
              : 0;
    }
    Scratch scratch;
    const Tiles<D> tiles(p.in.weights, set, shape.causal, scratch);
    T* tile = scratch.take<T>(kTileSize);
    T* block = scratch.take<T>(kRowBlock * kVectors);
    T* sums = scratch.take<T>(columns * Sums<D>::kSize);
    T* scales = scratch.take<T>(columns * Sums<D>::kExponents);
    Exact* exact = scratch.take<Exact>(kChunk);
    T* extra = scratch.take<T>(extras * kExtraSize);
    T* key_sums = scratch.take<T>(task_sequences * kChunk);

    std::vector<Column> active;
    int64_t most = 0;
    int64_t rows_end = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t index = task.first_column + i;
      const int64_t sequence = set.first_sequence + index / set.panels();
      const Sequence& x = sequences.all[sequence];
      Column column = {sequence,
                       &x,
                       set.first_panel + index % set.panels(),
                       std::min(kChunk, x.sources - begin),
                       {d, sums + i * Sums<D>::kSize, scales + i * Sums<D>::kExponents},
                       nullptr};
      if (column.count <= 0) continue;
      column.sums.clear(0, kChunk);
      if (redone_in(x, column.panel)) {
        column.extra = extra;
        std::fill_n(extra, kExtraSize, T(0));
        extra += kExtraSize;
      }
      most = std::max(most, column.count);
      rows_end = std::max(rows_end, x.end());
      active.push_back(column);
    }
    if (active.empty()) return;

    const T* weight_exponents = entries.exponents_of(set);
    const int64_t stop = shape.causal ? task.chunk : -1;
    for (int64_t chunk = chunks_of(rows_end) - 1; chunk > stop; --chunk) {
      const int64_t row = chunk * kChunk;
      const TileRange at = {row, std::min(kChunk, rows_end - row), begin, most};
      tiles.pack_sources(at, weight_exponents + row, false, shape.causal, tile);
      for (size_t i = 0; i < active.size(); ++i) {
        const Column& c = active[i];
        const auto [low, high] = entries.rows_of(*c.x, chunk);
        if (low >= high) continue;
        const int64_t first = shape.causal ? (kChunk - c.count) / kRowBlock * kRowBlock : 0;
        const Column& next = active[(i + 1) % active.size()];
        c.sums.add(tile + 2 * (low - row), first, shape.causal ? kChunk : c.count,
                   entries.targets_of(*c.x, c.panel) + (low - c.x->first) * kVectors, high - low,
                   entries.target_scale_of(*c.x, c.panel, chunk),
                   entries.targets_of(*next.x, next.panel) +
                       (entries.rows_of(*next.x, chunk).first - next.x->first) * kVectors,
                   block);
        if (c.extra != nullptr) add_redone(tiles, c, chunk, begin, exact);
      }
    }
    if (shape.causal) {
      const int64_t rows = std::min(kChunk, rows_end - begin);
      if (rows > 0) {
        tiles.pack_sources({begin, rows, begin, most}, weight_exponents + begin, true, true, tile);
      } else {
        std::fill_n(tile, kTileSize, T(0));
      }
      for (const Column& c : active) {
        if (c.extra != nullptr) add_redone(tiles, c, task.chunk, begin, exact);
        c.sums.start_walk();
      }
    }
    const auto end_source = [&](const Column& c, int64_t i, V a, V b, V e0, V e1) {
      write_source(c, begin + i, a, b, e0, e1, c.extra == nullptr ? nullptr : c.extra + 2 * i * kVectors,
                   key_sums + (c.sequence - first_sequence) * kChunk + i);
    };
    if (!shape.causal) {
      for (const Column& c : active) {
        const V e0 = hn::Load(d, c.sums.exponents);
        const V e1 = hn::Load(d, c.sums.exponents + kLanes);
        for (int64_t i = 0; i < c.count; ++i) {
          const T* at = c.sums.sums + i * kVectors;
          end_source(c, i, hn::Load(d, at), hn::Load(d, at + kLanes), e0, e1);
        }
      }
      return;
    }
    // Row o of the walk is the source, and the target, at the chunk's end less o.
    for (int64_t at = (kChunk - most) / kRowBlock * kRowBlock; at < kChunk; at += kRowBlock) {
      for (const Column& c : active) {
        const int64_t first = kChunk - c.count;
        if (at + kRowBlock <= first) continue;
        const auto take = [&](int64_t o) {
          const int64_t t = begin + kChunk - 1 - o;
          const V zero = hn::Zero(d);
          const V floor = hn::Set(d, 2 * kExponentFloor<T>);
          if (t < c.x->first || t >= c.x->end()) return Entry<D>{zero, zero, floor, floor};
          const Target target_at = entries.target(*c.x, panels[c.panel], t);
          const V under = hn::Sub(hn::Set(d, weight_exponents[t]), target_at.exponent);
          return entries.entry_of(target_at, under, hn::Or(target_at.redone, hn::Eq(target_at.a, zero)));
        };
        PackedEntries<T> packed;
        const int64_t t = begin + kChunk - 1 - at;  // of the block's first row
        if (t < c.x->end() && t - kRowBlock + 1 >= c.x->first) {
          packed = {entries.targets_of(*c.x, c.panel) + (t - c.x->first) * kVectors, -kVectors,
                    entries.target_scale_of(*c.x, c.panel, task.chunk)};
        }
        // The block may begin before the column's sources: nothing was walked there.
        c.sums.walk(
            tile, at, first, kChunk, block, packed, take, [&](int64_t o, int64_t n, const T* rows_sums, V e0, V e1) {
              for (int64_t i = 0; i < n; ++i, rows_sums += kVectors) {
                end_source(c, kChunk - 1 - o - i, hn::Load(d, rows_sums), hn::Load(d, rows_sums + kLanes), e0, e1);
              }
            });
      }
    }
  }

  // dv = e^k a, dk = e^k (v a - b).
  HWY_INLINE void write_source(const Column& c, int64_t s, V a, V b, V e0, V e1, const T* extra, T* key_sum) const {
    const D d;
    const Sequence& x = *c.x;
    const Panel& panel = panels[c.panel];
    const V key = sources.key(x, panel, s);
    const SplitExp<V> e = Split(d, key);
    // A value that no target sees may be infinite.
    const V value = hn::IfThenZeroElse(hn::Eq(a, hn::Zero(d)), MaskAbsent(d, key, sources.value(x, panel, s)));
    const V seen = hn::Mul(e.p, a);
    V dv = ScaleBy(d, seen, hn::Add(e.n, e0));
    V dk = hn::Sub(hn::Mul(dv, value), ScaleBy(d, hn::Mul(e.p, b), hn::Add(e.n, e1)));
    if (extra != nullptr) {
      dv = hn::Add(dv, hn::Load(d, extra));
      dk = hn::Add(dk, hn::Load(d, extra + kVectors));
    }
    const SourceRows<E> rows = sources.rows(x);
    const SourceGradRows<E> to = gradient_rows(x);
    const ChannelVector at = sources.at(panel);
    WriteValueGrad(d, rows, to, at, s - x.first, dv);
    if (sources.key_per_head) {
      const T sum = SumOfChannels(d, dk, at);
      const bool first_of_head = panel.begin % (shape.channels / shape.heads) == 0;
      *key_sum = first_of_head ? sum : *key_sum + sum;
      if (!panel.last_of_head) return;
      dk = hn::Set(d, *key_sum);
    }
    WriteKeyGrad(d, rows, to, at, s - x.first, dk);
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

  // To a sum and its error, [2 vectors].
  static HWY_INLINE void add_compensated(V term, T* to) {
    const D d;
    V sum = hn::Load(d, to);
    V low = hn::Load(d, to + kLanes);
    AddCompensated(term, hn::Set(d, T(1)), sum, low);
    hn::Store(sum, d, to);
    hn::Store(low, d, to + kLanes);
  }

  // The redone targets of a chunk, source by source.
  void add_redone(const Tiles<D>& tiles, const Column& c, int64_t chunk, int64_t begin, Exact* exact) const {
    const D d;
    if (chunk < entries.first_chunk(*c.x) || chunk >= chunks_of(c.x->end()) ||
        entries.redone_of(*c.x, c.panel)[chunk] == 0)
      return;
    const auto [low, high] = entries.rows_of(*c.x, chunk);
    for (int64_t t = low; t < high; ++t) {
      const Target at = entries.target(*c.x, panels[c.panel], t);
      if (hn::AllFalse(d, at.redone)) continue;
      const int64_t seen = std::min(c.count, shape.causal ? t + 1 - begin : c.count);
      tiles.exact_row(t, begin, begin + seen, exact);
      for (int64_t i = 0; i < seen; ++i) {
        if (exact[i].p == 0) continue;
        const auto [dv, dk] = entries.pair_grad(*c.x, panels[c.panel], begin + i, exact[i], at);
        T* to = c.extra + 2 * i * kVectors;
        add_compensated(hn::IfThenElseZero(at.redone, dv), to);
        add_compensated(hn::IfThenElseZero(at.redone, dk), to + kVectors);
      }
    }
  }

  const Entries& entries;
  const FullBackward<E>& p = entries.p;
  const FullShape& shape = entries.shape;
  const ParallelFor& parallel = entries.parallel;
  const Sequences& sequences = entries.sequences;
  const std::vector<Panel>& panels = entries.panels;
  const std::vector<WeightSet>& sets = entries.sets;
  const Sources<D, E>& sources = entries.sources;
};

template <typename E>
void RunBackward(const FullBackward<E>& p, const ParallelFor& parallel) {
  using D = hn::ScalableTag<Accumulate<E>>;
  const BackwardEntries<D, E> entries(p, parallel);
  SourceGradient<D, E>(entries).run();
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

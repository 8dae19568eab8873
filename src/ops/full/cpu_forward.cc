// Forward and prefill of the dense operator on the CPU.

#include <algorithm>
#include <cstdint>
#include <limits>
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
#include "ops/common/vector_view.h"
#include "ops/full/call-inl.h"
#include "ops/full/check.h"
#include "ops/full/dense-inl.h"
#include "ops/full/entries-inl.h"
#include "ops/full/plan.h"
#include "ops/full/sums-inl.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// What the tasks of a forward share.
template <class D, typename E>
struct ForwardCall {
  const FullForward<E>& p;
  RedoCount* counters;
  const Call<D, E>& call;
  const EntryTable<D, Axis::kSources>& entries;
};

// A chunk of targets, some columns.
template <class D, typename E>
class ForwardTask {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  ForwardTask(const ForwardCall<D, E>& forward, const FullTask& full_task)
      : p(forward.p),
        counters(forward.counters),
        call(forward.call),
        shape(forward.call.shape),
        entries(forward.entries),
        task(full_task),
        set(call.sets[task.set]),
        begin(task.chunk * kChunk),
        exponents(call.exponents_of(set) + begin),
        tiles(call.in.weights, set, shape.causal, scratch),
        exact(tiles, set.sources, scratch),
        sums(
            call.sequences, set, task.columns,
            [&](const Sequence& x) { return x.targets_in(task.chunk).relative_to(begin); }, scratch) {}

  void run() {
    Range targets = {begin, begin}, sources;  // of all columns
    int64_t pairs = 0;
    for (const Column<D>& c : sums.columns) {
      targets.end = std::max(targets.end, begin + c.sums.rows.end);
      sources.end = std::max(sources.end, c.x->sources);
      pairs += c.sums.rows.size() * call.panels[c.panel].count;
    }
    if (targets.empty()) return;
    const int64_t whole_chunks = shape.causal ? task.chunk : chunks_of(sources.end);
    for (int64_t chunk = 0; chunk < whole_chunks; ++chunk) add_chunk(targets, within_chunk(sources, chunk), chunk);
    if (shape.causal) {
      walk(targets);
    } else {
      for (const Column<D>& c : sums.columns) end_rows(c, c.sums.all());
    }
    count_redone(counters, redone, pairs);
  }

 private:
  void add_chunk(Range targets, Range sources, int64_t chunk) const {
    tiles.pack_targets({targets, sources}, exponents, sums.tile);
    sums.add(chunk, chunk + 1,
             [&](const Column<D>& c, int64_t of_chunk) { return entries.chunk(*c.x, c.panel, of_chunk); });
  }

  // The chunk's own sources. Block by block and then column by column: neighbouring columns read neighbouring memory.
  void walk(Range targets) {
    tiles.pack_targets({targets, targets}, exponents, sums.tile);
    for (const Column<D>& c : sums.columns) c.sums.start_walk();
    for (int64_t at = 0; at < targets.size(); at += kRowBlock) {
      for (size_t i = 0; i < sums.columns.size(); ++i) {
        const bool last = i + 1 == sums.columns.size();
        prefetch_block(sums.columns[last ? 0 : i + 1], begin + at + (last ? kRowBlock : 0));
        if (at < sums.columns[i].sums.rows.end) walk_block(sums.columns[i], at);
      }
    }
  }

  void walk_block(const Column<D>& c, int64_t at) {
    const Panel& panel = call.panels[c.panel];
    const DiagonalEntries<D> packed = {entries.from(*c.x, c.panel, begin + at),
                                       entries.scale(*c.x, c.panel, task.chunk)};
    c.sums.walk(
        sums.tile, at, packed, sums.block, [&](int64_t o) { return call.sources.entry(*c.x, panel, begin + o); },
        [&](const EndedRows<D>& ended) { end_rows(c, ended); });
  }

  // What the next block of a column reads and writes lies in rows far apart: it is fetched ahead. Inlined: GCC drops
  // calls of a function that only prefetches.
  HWY_INLINE void prefetch_block(const Column<D>& c, int64_t position) const {
    const Sequence& x = *c.x;
    const Panel& panel = call.panels[c.panel];
    for (int64_t s = std::max(position, x.first); s < std::min(position + kRowBlock, x.end()); ++s) {
      const int64_t row = x.token + s - x.first;
      const Pairs<D> entry = entries.from(x, c.panel, s);
      hwy::Prefetch(entry.at(0, 0));
      hwy::Prefetch(entry.at(0, 1));
      if (shape.gate != Gate::kNone) {
        hwy::Prefetch(p.in.q.data + x.batch * p.in.q.batch_stride + row * p.in.q.time_stride + panel.begin);
      }
      __builtin_prefetch(p.y.data + x.batch * p.y.batch_stride + row * p.y.time_stride + panel.begin, 1);
    }
  }

  // D = den 2^exponent and N = num 2^(exponent + difference) of one target.
  struct Row {
    V den, num, exponent, difference;
    V sign;  // -1: redone
  };

  void end_rows(const Column<D>& c, const EndedRows<D>& ended) {
    const D d;
    const auto seen_any = hn::Gt(ended.exponent0, hn::Set(d, kExponentFloor<T>));
    for (int64_t i = ended.rows.begin; i < ended.rows.end; ++i) {
      const V weight_exponent = hn::Set(d, exponents[i]);
      Row row = {hn::Load(d, ended.sums.at(i - ended.rows.begin, 0)),
                 hn::Load(d, ended.sums.at(i - ended.rows.begin, 1)), hn::Add(ended.exponent0, weight_exponent),
                 hn::Sub(ended.exponent1, ended.exponent0), hn::Set(d, T(1))};
      // Nothing to see is no failure.
      const auto sees = hn::And(seen_any, hn::Gt(weight_exponent, hn::Set(d, kExponentFloor<T>)));
      const auto failed = hn::And(fails(row), sees);
      if (HWY_UNLIKELY(!hn::AllFalse(d, failed)) && redo_enabled()) redo(c, begin + i, failed, row);
      write(c, begin + i, row);
    }
  }

  static HWY_INLINE hn::Mask<D> fails(const Row& row) {
    const D d;
    const auto finite = hn::Eq(hn::Sub(row.num, row.num), hn::Zero(d));
    return hn::Not(hn::And(hn::Ge(row.den, hn::Set(d, kCertificate<T>)), finite));
  }

  HWY_NOINLINE void redo(const Column<D>& c, int64_t target, hn::Mask<D> failed, Row& row) {
    const D d;
    redone += static_cast<int64_t>(hn::CountTrue(d, failed));
    const typename Tiles<D>::Exact* weights = exact.of(target, shape.causal ? target + 1 : set.sources);
    const int64_t seen = shape.causal ? target + 1 : c.x->sources;
    const RunningSum<V> sum = SumExactly(d, call.sources, *c.x, call.panels[c.panel], weights, seen);
    row.den = hn::IfThenElse(failed, sum.den, row.den);
    row.num = hn::IfThenElse(failed, sum.num, row.num);
    row.exponent = hn::IfThenElse(failed, sum.max, row.exponent);
    row.difference = hn::IfThenZeroElse(failed, row.difference);
    row.sign = hn::IfThenElse(failed, hn::Neg(row.sign), row.sign);
  }

  HWY_INLINE void write(const Column<D>& c, int64_t target, const Row& row) const {
    const D d;
    const Sequence& x = *c.x;
    const Panel& panel = call.panels[c.panel];
    const int64_t t = target - x.first;
    const E* q = p.in.q.data + x.batch * p.in.q.batch_stride + (x.token + t) * p.in.q.time_stride + panel.begin;
    const V query = shape.gate == Gate::kNone ? hn::Zero(d) : LoadSome(d, q, panel.count);
    const V y = ScaleBy(d, GatedRatio(d, shape.gate, query, row.num, row.den), row.difference);
    StoreSome(y, d, p.y.data + x.batch * p.y.batch_stride + (x.token + t) * p.y.time_stride + panel.begin, panel.count);
    if (p.saved == nullptr) return;
    const int64_t stride = call.sequences.target_rows * shape.channels;
    T* saved = p.saved + (x.target_rows + t) * shape.channels + panel.begin;
    const V ratio =
        hn::IfThenZeroElse(hn::Eq(row.den, hn::Zero(d)), ScaleBy(d, hn::Div(row.num, row.den), row.difference));
    StoreSome(hn::Mul(row.den, row.sign), d, saved, panel.count);
    StoreSome(row.exponent, d, saved + stride, panel.count);
    StoreSome(ratio, d, saved + 2 * stride, panel.count);
  }

  const FullForward<E>& p;
  RedoCount* counters;
  const Call<D, E>& call;
  const FullShape& shape;
  const EntryTable<D, Axis::kSources>& entries;
  const FullTask& task;
  const WeightSet& set;
  const int64_t begin;       // first target of the chunk
  const T* const exponents;  // W of the chunk's targets
  Scratch scratch;
  const Tiles<D> tiles;
  ExactRow<D> exact;
  const TaskSums<D> sums;
  int64_t redone = 0;
};

template <class D, typename E>
void PackAllSources(const Call<D, E>& call, const EntryTable<D, Axis::kSources>& entries) {
  struct Piece {
    const Sequence* x;
    int64_t chunk;
  };
  std::vector<Piece> pieces;
  for (const Sequence& x : call.sequences.all) {
    for (int64_t chunk = 0; chunk < chunks_of(x.sources); ++chunk) pieces.push_back({&x, chunk});
  }
  call.parallel.run(std::ssize(pieces), [&](int64_t i) {
    for (int64_t j = 0; j < std::ssize(call.panels); ++j) PackSources(call, entries, *pieces[i].x, j, pieces[i].chunk);
  });
}

template <class D, typename E>
void Forward(const FullForward<E>& p, const Cpu& cpu) {
  Scratch workspace;
  const Call<D, E> call(p.in, cpu.parallel, workspace);
  const EntryTable<D, Axis::kSources> entries(call.sequences, std::ssize(call.panels), workspace);
  PackAllSources(call, entries);
  const ForwardCall<D, E> forward = {p, cpu.redone, call, entries};
  run_tasks(call.parallel, column_tasks(call.sets, p.in.shape, cpu.parallel.threads, Axis::kTargets),
            [&](const FullTask& task) { ForwardTask<D, E>(forward, task).run(); });
}

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
  if (p.in.shape.targets > 0 && p.in.shape.channels > 0) Forward<D, E>(p, cpu);
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

// Backward of the dense operator on the CPU.
//
// The sums over targets are the forward's sums run the other way: a target's entry is (g / D, g N / D^2), g = gy gate,
// and its weights are the same tile, packed by source. The weights' gradient is a product over channels,
//   dw[t,s] = e^w sum_c ( (g / D)[t] (e^k v)[s] - (g N / D^2)[t] (e^k)[s] ).
// Rows that the forward redid take no part in either: they are added pair by pair.

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
#include "ops/common/gate-inl.h"
#include "ops/common/scratch.h"
#include "ops/full/check.h"
#include "ops/full/dense-inl.h"
#include "ops/full/entries-inl.h"
#include "ops/full/exponents-inl.h"
#include "ops/full/plan.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D, typename E>
class Backward {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  using Exact = typename Tiles<D>::Exact;
  static constexpr int64_t kLanes = hn::MaxLanes(D());
  static constexpr int64_t kVectors = 2 * kLanes;  // elements of an entry

  Backward(const FullBackward<E>& params, const ParallelFor& parallel_for)
      : p(params),
        shape(params.shape),
        parallel(parallel_for),
        sequences(sequences_of(params)),
        panels(panels_of(params.shape, kLanes)),
        sets(weight_sets(params.shape, params.weights, sequences, params.cu_seqlens != nullptr, panels)),
        sources(params),
        saved_stride(sequences.target_rows * params.shape.channels) {}

  void run() {
    const auto panel_count = static_cast<int64_t>(panels.size());
    const bool wants_weights = p.grad_weights.table != nullptr || p.grad_weights.u != nullptr;
    const int64_t exponent_count = sets.empty() ? 0 : sets.back().exponents + sets.back().rows;
    const int64_t target_size = panel_count * sequences.target_rows * kVectors;
    const int64_t source_size = wants_weights ? panel_count * sequences.source_rows * kVectors : 0;
    const int64_t scale_size = panel_count * sequences.target_chunks * kEntryScale<D>;
    const int64_t source_scale_size = wants_weights ? panel_count * sequences.source_chunks * kEntryScale<D> : 0;
    Workspace workspace(
        Scratch::padded<T>(target_size) + Scratch::padded<T>(source_size) + Scratch::padded<T>(scale_size) +
        Scratch::padded<T>(source_scale_size) + Scratch::padded<T>(panel_count * sequences.target_chunks * kLanes) +
        Scratch::padded<T>(exponent_count) + Scratch::padded<uint8_t>(panel_count * sequences.target_chunks));
    targets = workspace.take<T>(target_size);
    source_entries = workspace.take<T>(source_size);
    target_scales = workspace.take<T>(scale_size);
    source_scales = workspace.take<T>(source_scale_size);
    reach = workspace.take<T>(panel_count * sequences.target_chunks * kLanes);
    exponents = workspace.take<T>(exponent_count);
    redone = workspace.take<uint8_t>(panel_count * sequences.target_chunks);

    FindExponents(D(), p.weights, sets, shape.causal, exponents, parallel);
    pack(wants_weights);
    sum_over_targets();
    if (wants_weights) differentiate_weights();
  }

 private:
  static int64_t first_chunk(const Sequence& x) { return x.first / kChunk; }
  T* targets_of(const Sequence& x, int64_t panel) const {
    return targets + (panel * sequences.target_rows + x.target_rows) * kVectors;
  }
  T* target_scale_of(const Sequence& x, int64_t panel, int64_t chunk) const {
    return target_scales + (panel * sequences.target_chunks + x.target_chunks + chunk) * kEntryScale<D>;
  }
  T* sources_of(const Sequence& x, int64_t panel) const {
    return source_entries + (panel * sequences.source_rows + x.source_rows) * kVectors;
  }
  T* source_scale_of(const Sequence& x, int64_t panel, int64_t chunk) const {
    return source_scales + (panel * sequences.source_chunks + x.source_chunks + chunk) * kEntryScale<D>;
  }
  T* reach_of(const Sequence& x, int64_t panel) const {
    return reach + (panel * sequences.target_chunks + x.target_chunks) * kLanes;
  }
  uint8_t* redone_of(const Sequence& x, int64_t panel) const {
    return redone + panel * sequences.target_chunks + x.target_chunks;
  }
  const T* exponents_of(const WeightSet& set) const { return exponents + set.exponents; }
  const WeightSet& set_of(int64_t sequence, int64_t panel) const {
    for (const WeightSet& set : sets) {
      if (sequence >= set.first_sequence && sequence < set.last_sequence && panel >= set.first_panel &&
          panel < set.last_panel) {
        return set;
      }
    }
    return sets.front();
  }
  // Targets of a sequence within a chunk, as positions.
  static std::pair<int64_t, int64_t> rows_of(const Sequence& x, int64_t chunk) {
    return {std::max(x.first, chunk * kChunk), std::min(x.end(), (chunk + 1) * kChunk)};
  }

  // What one target leaves for its sources: a = gy gate / D and b = a N / D, D = den 2^exponent; and grad_q.
  struct Target {
    V a, b, exponent;
    hn::Mask<D> redone;
  };
  HWY_INLINE Target target(const Sequence& x, const Panel& c, int64_t t, V& grad_q) const {
    const D d;
    const V zero = hn::Zero(d);
    const int64_t row = t - x.first;
    const int64_t in = x.token + row;
    const T* saved = p.saved + (x.target_rows + row) * shape.channels + c.begin;
    const V signed_den = LoadSome(d, saved, c.count);
    const V ratio = LoadSome(d, saved + 2 * saved_stride, c.count);
    const V gy =
        LoadSome(d, p.grad_y.data + x.batch * p.grad_y.batch_stride + in * p.grad_y.time_stride + c.begin, c.count);
    const V query = shape.gate == Gate::kNone
                        ? zero
                        : LoadSome(d, p.q.data + x.batch * p.q.batch_stride + in * p.q.time_stride + c.begin, c.count);
    const GateSlope<V> gate = EvaluateGate(d, shape.gate, query);
    const V a = hn::IfThenZeroElse(hn::Eq(signed_den, zero), TimesGate(gate, gy, hn::Abs(signed_den)));
    grad_q = hn::Mul(hn::Mul(gy, ratio), gate.slope);
    const V b = hn::Mul(a, ratio);
    // What is not finite must not meet the weight 0 of a pair that is not seen.
    const auto finite = hn::And(hn::Eq(hn::Sub(a, a), zero), hn::Eq(hn::Sub(b, b), zero));
    return {a, b, LoadSome(d, saved + saved_stride, c.count), hn::Or(hn::Lt(signed_den, zero), hn::Not(finite))};
  }

  // Every target's entry and every source's, chunk by chunk; grad_q on the way.
  void pack(bool wants_sources) {
    struct Piece {
      int64_t sequence, chunk;
      bool is_source;
    };
    std::vector<Piece> pieces;
    for (int64_t b = 0; b < static_cast<int64_t>(sequences.all.size()); ++b) {
      const Sequence& x = sequences.all[b];
      for (int64_t i = first_chunk(x); i * kChunk < x.end() && x.targets > 0; ++i) pieces.push_back({b, i, false});
      for (int64_t i = 0; wants_sources && i < chunks_of(x.sources); ++i) pieces.push_back({b, i, true});
    }
    parallel.run(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
      const Sequence& x = sequences.all[pieces[i].sequence];
      const int64_t chunk = pieces[i].chunk;
      Scratch scratch(Scratch::padded<T>(kChunk * kVectors));
      T* room = scratch.take<T>(kChunk * kVectors);
      for (int64_t j = 0; j < static_cast<int64_t>(panels.size()); ++j) {
        const Panel& c = panels[j];
        if (pieces[i].is_source) {
          const int64_t begin = chunk * kChunk;
          sources.pack(x, c, begin, std::min(kChunk, x.sources - begin), sources_of(x, j) + begin * kVectors,
                       source_scale_of(x, j, chunk));
        } else {
          pack_targets(x, j, chunk, exponents_of(set_of(pieces[i].sequence, j)), room);
        }
      }
    });
  }

  void pack_targets(const Sequence& x, int64_t panel, int64_t chunk, const T* weight_exponents, T* room) const {
    const D d;
    const Panel& c = panels[panel];
    const std::pair<int64_t, int64_t> rows = rows_of(x, chunk);
    const int64_t begin = rows.first;
    const V floor = hn::Set(d, kExponentFloor<T>);
    V lowest = hn::Neg(floor);
    uint8_t any_redone = 0;
    T* to = targets_of(x, panel) + (begin - x.first) * kVectors;
    const int64_t n = rows.second - begin;
    ExponentRange<D> range;
    for (int64_t i = 0; i < n; ++i) {
      V grad_q;
      const Target t = target(x, c, begin + i, grad_q);
      if (shape.gate != Gate::kNone) {
        StoreSome(grad_q, d,
                  p.grad_q.data + x.batch * p.grad_q.batch_stride +
                      (x.token + begin + i - x.first) * p.grad_q.time_stride + c.begin,
                  c.count);
      }
      if (!hn::AllFalse(d, t.redone)) any_redone = 1;
      // Of a row that is not redone: -S, S the exponent that its keys were summed under.
      const V under = hn::Sub(hn::Set(d, weight_exponents[begin + i]), t.exponent);
      const auto absent = hn::Or(t.redone, hn::Eq(t.a, hn::Zero(d)));
      lowest = hn::IfThenElse(absent, lowest, hn::Min(lowest, hn::Neg(under)));
      const Entry<D> e = entry_of(t, under, absent);
      range.include(e.n0, e.n1, hn::Eq(e.x0, hn::Zero(d)), hn::Eq(e.x1, hn::Zero(d)));
      hn::Store(e.x0, d, to + i * kVectors);
      hn::Store(e.x1, d, to + i * kVectors + kLanes);
      hn::Store(e.n0, d, room + i * kVectors);
      hn::Store(e.n1, d, room + i * kVectors + kLanes);
    }
    range.store(target_scale_of(x, panel, chunk));
    for (int64_t i = 0; i < n * kVectors; i += kVectors) {
      const Entry<D> e = {hn::Load(d, to + i), hn::Load(d, to + i + kLanes), hn::Load(d, room + i),
                          hn::Load(d, room + i + kLanes)};
      StoreEntry(d, e, range.most0, range.most1, to + i);
    }
    hn::Store(lowest, d, reach_of(x, panel) + chunk * kLanes);
    redone_of(x, panel)[chunk] = any_redone;
  }

  HWY_INLINE Entry<D> entry_of(const Target& t, V under, hn::Mask<D> absent) const {
    const D d;
    const V floor = hn::Set(d, 2 * kExponentFloor<T>);
    const V e0 = ModestExponentOf(d, t.a);
    const V e1 = ModestExponentOf(d, t.b);
    const V x0 = hn::Mul(t.a, Pow2(d, hn::Neg(e0)));
    const V x1 = hn::Mul(t.b, Pow2(d, hn::Neg(e1)));
    return {hn::IfThenZeroElse(absent, x0), hn::IfThenZeroElse(absent, x1),
            hn::IfThenElse(absent, floor, hn::Add(under, e0)), hn::IfThenElse(absent, floor, hn::Add(under, e1))};
  }

  // ---- dk and dv

  struct Column {
    int64_t sequence;
    const Sequence* x;
    int64_t panel;
    int64_t count;  // its sources within the chunk
    Sums<D> sums;
    T* extra;  // [kChunk][4 vectors]: what redone rows add to dv and dk, each with its error; null: none
  };

  static constexpr int64_t kExtraSize = 2 * Sums<D>::kSize;

  void sum_over_targets() {
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

  void sum_task(const FullTask& task) const {
    const D d;
    const WeightSet& set = sets[task.set];
    const int64_t begin = task.chunk * kChunk;
    const int64_t columns = task.last_column - task.first_column;
    const auto redone_in = [&](const Sequence& x, int64_t panel) {
      for (int64_t i = shape.causal ? task.chunk : 0; i < chunks_of(x.end()); ++i) {
        if (i >= first_chunk(x) && x.targets > 0 && redone_of(x, panel)[i] != 0) return true;
      }
      return false;
    };
    int64_t extras = 0;
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t index = task.first_column + i;
      extras +=
          redone_in(sequences.all[set.first_sequence + index / set.panels()], set.first_panel + index % set.panels())
              ? 1
              : 0;
    }
    Scratch scratch(Tiles<D>::bytes(p.weights) + Scratch::padded<T>(kTileSize) +
                    Scratch::padded<T>(kRowBlock * kVectors) + Scratch::padded<T>(columns * Sums<D>::kSize) +
                    Scratch::padded<T>(columns * Sums<D>::kExponents) + Scratch::padded<Exact>(kChunk) +
                    Scratch::padded<T>(extras * kExtraSize) + Scratch::padded<T>(sum_count() * kChunk));
    const Tiles<D> tiles(p.weights, set, shape.causal, scratch);
    T* tile = scratch.take<T>(kTileSize);
    T* block = scratch.take<T>(kRowBlock * kVectors);
    T* sums = scratch.take<T>(columns * Sums<D>::kSize);
    T* scales = scratch.take<T>(columns * Sums<D>::kExponents);
    Exact* exact = scratch.take<Exact>(kChunk);
    T* extra = scratch.take<T>(extras * kExtraSize);
    T* key_sums = scratch.take<T>(sum_count() * kChunk);

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

    const T* weight_exponents = exponents_of(set);
    const int64_t stop = shape.causal ? task.chunk : -1;
    for (int64_t chunk = chunks_of(rows_end) - 1; chunk > stop; --chunk) {
      const int64_t row = chunk * kChunk;
      const TileRange at = {row, std::min(kChunk, rows_end - row), begin, most};
      tiles.pack_sources(at, weight_exponents + row, false, shape.causal, tile);
      for (size_t i = 0; i < active.size(); ++i) {
        const Column& c = active[i];
        const auto [low, high] = rows_of(*c.x, chunk);
        if (low >= high) continue;
        const int64_t first = shape.causal ? (kChunk - c.count) / kRowBlock * kRowBlock : 0;
        const Column& next = active[(i + 1) % active.size()];
        c.sums.add(tile + 2 * (low - row), first, shape.causal ? kChunk : c.count,
                   targets_of(*c.x, c.panel) + (low - c.x->first) * kVectors, high - low,
                   target_scale_of(*c.x, c.panel, chunk),
                   targets_of(*next.x, next.panel) + (rows_of(*next.x, chunk).first - next.x->first) * kVectors, block);
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
                   key_sums + c.sequence % sum_count() * kChunk + i);
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
          V unused;
          const Target target_at = target(*c.x, panels[c.panel], t, unused);
          const V under = hn::Sub(hn::Set(d, weight_exponents[t]), target_at.exponent);
          return entry_of(target_at, under, hn::Or(target_at.redone, hn::Eq(target_at.a, zero)));
        };
        PackedEntries<T> packed;
        const int64_t t = begin + kChunk - 1 - at;  // of the block's first row
        if (t < c.x->end() && t - kRowBlock + 1 >= c.x->first) {
          packed = {targets_of(*c.x, c.panel) + (t - c.x->first) * kVectors, -kVectors,
                    target_scale_of(*c.x, c.panel, task.chunk)};
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

  // Sums of a key that serves its whole head: columns of other sequences come between only in the walk.
  int64_t sum_count() const { return sources.key_per_head ? std::max<int64_t>(1, shape.batch) : 1; }

  // dv = e^k a, dk = e^k (v a - b).
  HWY_INLINE void write_source(const Column& c, int64_t s, V a, V b, V e0, V e1, const T* extra, T* key_sum) const {
    const D d;
    const Sequence& x = *c.x;
    const Panel& panel = panels[c.panel];
    const V key = sources.key(x, panel, s);
    const SplitExp<V> e = Split(d, key);
    const V value = MaskAbsent(d, key, sources.value(x, panel, s));
    const V seen = hn::Mul(e.p, a);
    V dv = ScaleBy(d, seen, hn::Add(e.n, e0));
    V dk = hn::Sub(hn::Mul(dv, value), ScaleBy(d, hn::Mul(e.p, b), hn::Add(e.n, e1)));
    if (extra != nullptr) {
      dv = hn::Add(dv, hn::Load(d, extra));
      dk = hn::Add(dk, hn::Load(d, extra + kVectors));
    }
    const bool in_ring = s < x.first;
    const int64_t ring = x.batch * shape.capacity + s;
    const int64_t row = x.token + s - x.first;
    if (p.grad_final_state.ring_value != nullptr) {
      dv = hn::Add(dv, LoadSome(d, p.grad_final_state.ring_value + ring * shape.channels + panel.begin, panel.count));
    }
    const bool masked = sources.masked(x, s);  // the ring knows nothing of it
    if (HWY_UNLIKELY(masked)) dv = hn::Zero(d);
    if (!in_ring) {
      StoreSome(dv, d, p.grad_v.data + x.batch * p.grad_v.batch_stride + row * p.grad_v.time_stride + panel.begin,
                panel.count);
    } else if (p.grad_initial_state.ring_value != nullptr) {
      StoreSome(dv, d, p.grad_initial_state.ring_value + ring * shape.channels + panel.begin, panel.count);
    }
    const int64_t channel = sources.key_channel(panel);
    if (sources.key_per_head) {
      const V mine =
          panel.count < kLanes ? hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(panel.count)), dk) : dk;
      const T sum = hn::GetLane(hn::SumOfLanes(d, mine));
      const bool first_of_head = panel.begin % (shape.channels / shape.heads) == 0;
      *key_sum = first_of_head ? sum : *key_sum + sum;
      if (!panel.last_of_head) return;
      dk = hn::Set(d, *key_sum);
    }
    const int64_t count = sources.key_count(panel);
    if (p.grad_final_state.ring_key != nullptr) {
      dk = hn::Add(dk, LoadSome(d, p.grad_final_state.ring_key + ring * shape.key_channels + channel, count));
    }
    if (HWY_UNLIKELY(masked)) dk = hn::Zero(d);
    if (!in_ring) {
      StoreSome(dk, d, p.grad_k.data + x.batch * p.grad_k.batch_stride + row * p.grad_k.time_stride + channel, count);
    } else if (p.grad_initial_state.ring_key != nullptr) {
      StoreSome(dk, d, p.grad_initial_state.ring_key + ring * shape.key_channels + channel, count);
    }
  }

  // e^(k + w) / D of one pair, times gy gate: what a redone target gives the source in dv, and in dk.
  HWY_INLINE std::pair<V, V> pair_grad(const Sequence& x, const Panel& c, int64_t s, const Exact& weight,
                                       const Target& t) const {
    const D d;
    const V key = sources.key(x, c, s);
    const SplitExp<V> e = Split(d, key);
    const V exponent = hn::Sub(hn::Add(e.n, hn::Set(d, weight.n)), t.exponent);
    const V dv = ScaleBy(d, hn::Mul(hn::Mul(e.p, hn::Set(d, weight.p)), t.a), exponent);
    const V ratio_part = ScaleBy(d, hn::Mul(hn::Mul(e.p, hn::Set(d, weight.p)), t.b), exponent);
    return {dv, hn::Sub(hn::Mul(dv, MaskAbsent(d, key, sources.value(x, c, s))), ratio_part)};
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
    if (chunk < first_chunk(*c.x) || chunk >= chunks_of(c.x->end()) || redone_of(*c.x, c.panel)[chunk] == 0) return;
    const auto [low, high] = rows_of(*c.x, chunk);
    for (int64_t t = low; t < high; ++t) {
      V unused;
      const Target at = target(*c.x, panels[c.panel], t, unused);
      if (hn::AllFalse(d, at.redone)) continue;
      const int64_t seen = std::min(c.count, shape.causal ? t + 1 - begin : c.count);
      tiles.exact_row(t, begin, begin + seen, exact);
      for (int64_t i = 0; i < seen; ++i) {
        if (exact[i].p == 0) continue;
        const auto [dv, dk] = pair_grad(*c.x, panels[c.panel], begin + i, exact[i], at);
        T* to = c.extra + 2 * i * kVectors;
        add_compensated(hn::IfThenElseZero(at.redone, dv), to);
        add_compensated(hn::IfThenElseZero(at.redone, dk), to + kVectors);
      }
    }
  }

  // ---- dw

  // Stripes of source chunks that the factors' gradients are summed over, one after another: however many threads.
  static constexpr int64_t kStripes = 8;

  void differentiate_weights() {
    const bool factors = p.weights.u != nullptr;
    const int64_t width = p.weights.width;
    const int64_t padded = (width + kVectors - 1) / kVectors * kVectors;
    // Sets that share a matrix (packed sequences, not causal) are taken one after another.
    std::vector<std::vector<const WeightSet*>> matrices;
    for (const WeightSet& set : sets) {
      const auto same = [&](const auto& m) { return m[0]->batch == set.batch && m[0]->head == set.head; };
      const auto found = std::find_if(matrices.begin(), matrices.end(), same);
      if (found == matrices.end()) {
        matrices.push_back({&set});
      } else {
        found->push_back(&set);
      }
    }
    struct Matrix {
      int64_t rows = 0, columns = 0, work = 0, stripes_at = 0;
    };
    std::vector<Matrix> sizes;
    int64_t stripe_size = 0;
    std::vector<FullTask> tasks;
    for (int64_t i = 0; i < static_cast<int64_t>(matrices.size()); ++i) {
      Matrix m;
      for (const WeightSet* set : matrices[i]) {
        m.rows = std::max(m.rows, set->rows);
        m.columns = std::max(m.columns, set->columns);
        m.work += set->columns_of_work();
      }
      m.stripes_at = stripe_size;
      if (factors) stripe_size += kStripes * m.rows * padded;
      sizes.push_back(m);
      const int64_t chunks = chunks_of(m.columns);
      for (int64_t j = 0; j < (factors ? std::min(chunks, kStripes) : chunks); ++j) {
        const double cost = shape.causal && !factors ? static_cast<double>(chunks - j) - 0.4 : 1;
        tasks.push_back({i, j, 0, 0, cost * static_cast<double>(m.work + 1)});
      }
    }
    std::vector<T> stripes(stripe_size);
    clear_gradient();
    run_tasks(parallel, std::move(tasks), [&](const FullTask& task) {
      const Matrix& m = sizes[task.set];
      T* stripe = factors ? stripes.data() + m.stripes_at + task.chunk * m.rows * padded : nullptr;
      for (int64_t j = task.chunk; j < chunks_of(m.columns); j += factors ? kStripes : chunks_of(m.columns)) {
        for (const WeightSet* set : matrices[task.set]) weights_task(*set, j, stripe, padded);
      }
    });
    if (!factors || p.grad_weights.u == nullptr) return;
    for (size_t i = 0; i < matrices.size(); ++i) {
      const int64_t used = std::min(chunks_of(sizes[i].columns), kStripes);
      T* to = p.grad_weights.u + matrices[i][0]->head * p.grad_weights.u_head_stride;
      for (int64_t stripe = 0; stripe < used; ++stripe) {
        const T* from = stripes.data() + sizes[i].stripes_at + stripe * sizes[i].rows * padded;
        for (int64_t t = 0; t < sizes[i].rows; ++t) {
          for (int64_t c = 0; c < width; ++c) to[t * width + c] += from[t * padded + c];
        }
      }
    }
  }

  void clear_gradient() const {
    const PairWeights<T>& g = p.grad_weights;
    if (g.table != nullptr) {
      const int64_t heads = g.head_stride == 0 ? 1 : shape.heads;
      const int64_t matrices = (g.batch_stride == 0 || p.cu_seqlens != nullptr ? 1 : shape.batch) * heads;
      parallel.run(matrices * g.rows, [&](int64_t i) {
        const int64_t matrix = i / g.rows;
        std::fill_n(
            g.table + matrix / heads * g.batch_stride + matrix % heads * g.head_stride + i % g.rows * g.row_stride,
            g.columns, T(0));
      });
    }
    if (g.u != nullptr) std::fill_n(g.u, (g.u_head_stride == 0 ? 1 : shape.heads) * g.rows * g.width, T(0));
    if (g.v != nullptr) std::fill_n(g.v, (g.v_head_stride == 0 ? 1 : shape.heads) * g.columns * g.width, T(0));
  }

  // Panels whose channels are multiplied at a time: kChunk of [a, b] pairs.
  static constexpr int64_t kPanelsAtOnce = kChunk / kVectors;

  struct Group {
    const Sequence* x;
    int64_t first_panel, panels;
  };

  // The weights' gradient of one chunk of sources.
  void weights_task(const WeightSet& set, int64_t source_chunk, T* stripe, int64_t padded) const {
    const D d;
    const int64_t begin = source_chunk * kChunk;
    const int64_t count = std::min(kChunk, set.columns - begin);
    if (count <= 0) return;
    std::vector<Group> groups;
    for (int64_t b = set.first_sequence; b < set.last_sequence; ++b) {
      if (sequences.all[b].sources <= begin || sequences.all[b].targets == 0) continue;
      for (int64_t j = set.first_panel; j < set.last_panel; j += kPanelsAtOnce) {
        groups.push_back({&sequences.all[b], j, std::min(kPanelsAtOnce, set.last_panel - j)});
      }
    }
    constexpr int64_t kSide = kChunk / kVectors;  // groups of sources that fill two vectors
    Scratch scratch(Tiles<D>::bytes(p.weights) + 2 * Scratch::padded<T>(kTileSize) +
                    Scratch::padded<T>(static_cast<int64_t>(groups.size()) * kTileSize) +
                    Scratch::padded<T>(kRowBlock * kVectors) + Scratch::padded<Exact>(kChunk) +
                    Scratch::padded<T>(kChunk + kVectors) + Scratch::padded<T>(kChunk * kVectors));
    const Tiles<D> tiles(p.weights, set, shape.causal, scratch);
    T* left = scratch.take<T>(kTileSize);
    T* product = scratch.take<T>(kTileSize);
    T* right = scratch.take<T>(static_cast<int64_t>(groups.size()) * kTileSize);
    T* block = scratch.take<T>(kRowBlock * kVectors);
    Exact* exact = scratch.take<Exact>(kChunk);
    T* weights = scratch.take<T>(kChunk + kVectors);
    T* factor_room = scratch.take<T>(kChunk * kVectors);
    for (size_t i = 0; i < groups.size(); ++i) {
      transpose_sources(groups[i], source_chunk, right + static_cast<int64_t>(i) * kTileSize);
    }

    for (int64_t chunk = shape.causal ? source_chunk : 0; chunk < chunks_of(set.rows); ++chunk) {
      const int64_t row = chunk * kChunk;
      const TileRange at = {row, std::min(kChunk, set.rows - row), begin, count};
      const T scale = largest_scale(groups, chunk, source_chunk);
      std::fill_n(product, whole_row_blocks(at.rows) * kChunk, T(0));
      for (size_t i = 0; i < groups.size(); ++i) {
        const Group& g = groups[i];
        const auto [low, high] = rows_of(*g.x, chunk);
        if (low >= high) continue;
        // Rows in whole blocks; those that the sequence lacks are zero.
        const int64_t first = (low - row) / kRowBlock * kRowBlock;
        pack_left(g, chunk, source_chunk, scale, first, whole_row_blocks(high - row), left);
        const T* from = right + static_cast<int64_t>(i) * kTileSize;
        const int64_t own = std::min(count, g.x->sources - begin);
        for (int64_t side = 0; side < kSide && side * kVectors < own; ++side) {
          for (int64_t r = first; r < high - row; r += kRowBlock) {
            if (shape.causal && chunk == source_chunk && side * kVectors >= r + kRowBlock) continue;
            Multiply(d, left + r / 2 * kPairStride, from + side * kChunk * kVectors, g.panels * kVectors, block);
            for (int64_t k = 0; k < kRowBlock; ++k) {
              T* to = product + (r + k) * kChunk + side * kVectors;
              hn::Store(hn::Add(hn::Load(d, to), hn::Load(d, block + k * kVectors)), d, to);
              hn::Store(hn::Add(hn::Load(d, to + kLanes), hn::Load(d, block + k * kVectors + kLanes)), d, to + kLanes);
            }
          }
        }
      }
      const TileView<T> view = tiles.view(at);
      for (int64_t i = 0; i < at.rows; ++i) {
        tiles.weights_of_row(at, view, i, exponents_of(set)[row + i], weights);
        const int64_t seen = tiles.seen(at, i);
        T* to = product + i * kChunk;
        for (int64_t j = 0; j < count; j += kLanes) {
          const V w = hn::Load(d, weights + j);
          const V value = ScaleBy(d, hn::Mul(hn::Load(d, to + j), w), hn::Set(d, scale));
          hn::Store(hn::IfThenZeroElse(hn::Eq(w, hn::Zero(d)), value), d, to + j);
        }
        std::fill(to + seen, to + kChunk, T(0));
      }
      for (const Group& g : groups) add_pairs(tiles, g, chunk, source_chunk, count, exact, product);
      if (p.weights.u == nullptr) {
        for (int64_t i = 0; i < at.rows; ++i) {
          T* to = p.grad_weights.table + set.batch * p.grad_weights.batch_stride +
                  set.head * p.grad_weights.head_stride + (row + i) * p.grad_weights.row_stride + begin;
          const int64_t seen = tiles.seen(at, i);
          // Packed sequences that see different sources share the matrix, but not a set.
          for (int64_t j = 0; j < seen; ++j) to[j] += product[i * kChunk + j];
        }
      } else {
        add_factors(set, at, product, left, factor_room, block, stripe, padded);
      }
    }
  }

  // [groups of sources][channels of e^k, e^k v][2 vectors of sources].
  void transpose_sources(const Group& g, int64_t source_chunk, T* to) const {
    const int64_t begin = source_chunk * kChunk;
    const int64_t count = std::min(kChunk, g.x->sources - begin);
    for (int64_t side = 0; side * kVectors < count; ++side) {
      T* at = to + side * kChunk * kVectors;
      for (int64_t j = 0; j < g.panels; ++j) {
        const T* from = sources_of(*g.x, g.first_panel + j) + (begin + side * kVectors) * kVectors;
        const int64_t n = std::min(kVectors, count - side * kVectors);
        for (int64_t k = 0; k < kVectors; ++k, at += kVectors) {
          for (int64_t s = 0; s < n; ++s) at[s] = from[s * kVectors + k];
          for (int64_t s = n; s < kVectors; ++s) at[s] = T(0);
        }
      }
    }
  }

  // Exponents of the products g / D times e^k v and g N / D^2 times e^k, of a panel's channels over a tile. Channels
  // that some target of the chunk saw under a much lower exponent than the keys were packed with (only along the
  // diagonal) take no part: add_pairs does them.
  struct Scales {
    V values, keys;
    hn::Mask<D> apart;
  };
  HWY_INLINE Scales scales(const Sequence& x, int64_t panel, int64_t chunk, int64_t source_chunk) const {
    const D d;
    const T* target_scale = target_scale_of(x, panel, chunk);
    const T* source_scale = source_scale_of(x, panel, source_chunk);
    const V key_exponent = hn::Load(d, source_scale);
    const V low = hn::Load(d, reach_of(x, panel) + chunk * kLanes);
    return {hn::Add(hn::Load(d, target_scale), hn::Load(d, source_scale + kLanes)),
            hn::Add(hn::Load(d, target_scale + kLanes), key_exponent),
            hn::Lt(hn::Add(low, hn::Set(d, kHeadroom<T>)), key_exponent)};
  }

  T largest_scale(const std::vector<Group>& groups, int64_t chunk, int64_t source_chunk) const {
    const D d;
    V largest = hn::Set(d, kExponentFloor<T>);
    for (const Group& g : groups) {
      const auto [low, high] = rows_of(*g.x, chunk);
      if (low >= high) continue;
      for (int64_t j = g.first_panel; j < g.first_panel + g.panels; ++j) {
        const Scales s = scales(*g.x, j, chunk, source_chunk);
        largest = hn::IfThenElse(s.apart, largest, Larger(s.values, Larger(s.keys, largest)));
      }
    }
    return hn::GetLane(hn::MaxOfLanes(d, largest));
  }

  // Rows are targets, k counts channels: (-b 2^.., a 2^..), to meet (e^k, e^k v).
  void pack_left(const Group& g, int64_t chunk, int64_t source_chunk, T scale, int64_t first, int64_t last,
                 T* to) const {
    const D d;
    const auto [low, high] = rows_of(*g.x, chunk);
    const int64_t row = chunk * kChunk;
    const V zero = hn::Zero(d);
    for (int64_t j = 0; j < g.panels; ++j) {
      const int64_t panel = g.first_panel + j;
      const Scales s = scales(*g.x, panel, chunk, source_chunk);
      const V common = hn::Set(d, scale);
      const V by_value = hn::IfThenZeroElse(s.apart, Pow2(d, hn::Sub(s.values, common)));
      const V by_key = hn::IfThenZeroElse(s.apart, hn::Neg(Pow2(d, hn::Sub(s.keys, common))));
      const T* from = targets_of(*g.x, panel);
      const int64_t begin = low;  // lambdas cannot take parts of a pair by their names
      const int64_t end = high;
      const auto at = [&](int64_t i, int64_t part, V by) {
        const int64_t t = row + i;
        return t < begin || t >= end ? zero
                                     : hn::Mul(by, hn::Load(d, from + (t - g.x->first) * kVectors + part * kLanes));
      };
      for (int64_t i = first; i < last; i += 2) {
        T* pair = to + i / 2 * kPairStride + 2 * j * kVectors;
        hn::StoreInterleaved2(at(i, 1, by_key), at(i + 1, 1, by_key), d, pair);
        hn::StoreInterleaved2(at(i, 0, by_value), at(i + 1, 0, by_value), d, pair + 2 * kLanes);
      }
    }
  }

  // Adds to the tile what pack_left left out: redone rows, and channels apart.
  void add_pairs(const Tiles<D>& tiles, const Group& g, int64_t chunk, int64_t source_chunk, int64_t count,
                 Exact* exact, T* product) const {
    const D d;
    const auto [low, high] = rows_of(*g.x, chunk);
    const int64_t begin = source_chunk * kChunk;
    for (int64_t panel = g.first_panel; low < high && panel < g.first_panel + g.panels; ++panel) {
      const auto apart = scales(*g.x, panel, chunk, source_chunk).apart;
      const bool has_redone = redone_of(*g.x, panel)[chunk] != 0;
      if (!has_redone && hn::AllFalse(d, apart)) continue;
      const Panel& c = panels[panel];
      const auto real = hn::FirstN(d, static_cast<size_t>(c.count));
      for (int64_t t = low; t < high; ++t) {
        V unused;
        const Target at = target(*g.x, c, t, unused);
        const auto wanted = hn::And(real, hn::Or(at.redone, apart));
        if (hn::AllFalse(d, wanted)) continue;
        const int64_t sees = std::min({count, g.x->sources - begin, shape.causal ? t + 1 - begin : count});
        tiles.exact_row(t, begin, begin + sees, exact);
        for (int64_t i = 0; i < sees; ++i) {
          if (exact[i].p == 0) continue;
          const V dk = pair_grad(*g.x, c, begin + i, exact[i], at).second;
          product[(t - chunk * kChunk) * kChunk + i] += hn::GetLane(hn::SumOfLanes(d, hn::IfThenElseZero(wanted, dk)));
        }
      }
    }
  }

  // du += dw v, dv += dw^T u, of one tile of dw.
  void add_factors(const WeightSet& set, const TileRange& at, const T* product, T* left, T* right, T* block, T* stripe,
                   int64_t padded) const {
    const int64_t width = p.weights.width;
    const T* u = p.weights.u + set.head * p.weights.u_head_stride + at.row * width;
    const T* v = p.weights.v + set.head * p.weights.v_head_stride + at.column * width;
    const auto multiply = [&](int64_t rows, int64_t depth, const auto& weight, const T* factor, T* to, int64_t stride) {
      const D d;
      for (int64_t i = 0; i < whole_row_blocks(rows); ++i) {
        T* packed = left + i / 2 * kPairStride + i % 2;
        for (int64_t k = 0; k < depth; ++k) packed[2 * k] = i < rows ? weight(i, k) : T(0);
      }
      for (int64_t c = 0; c < width; c += kVectors) {
        const int64_t n = std::min(kVectors, width - c);
        for (int64_t k = 0; k < depth; ++k) {
          for (int64_t l = 0; l < kVectors; ++l) right[k * kVectors + l] = l < n ? factor[k * width + c + l] : T(0);
        }
        for (int64_t i = 0; i < rows; i += kRowBlock) {
          Multiply(d, left + i / 2 * kPairStride, right, depth, block);
          for (int64_t r = 0; r < std::min(kRowBlock, rows - i); ++r) {
            for (int64_t l = 0; l < n; ++l) to[(i + r) * stride + c + l] += block[r * kVectors + l];
          }
        }
      }
    };
    if (p.grad_weights.u != nullptr) {
      multiply(
          at.rows, at.columns, [&](int64_t i, int64_t k) { return product[i * kChunk + k]; }, v,
          stripe + at.row * padded, padded);
    }
    if (p.grad_weights.v != nullptr) {
      multiply(
          at.columns, at.rows, [&](int64_t i, int64_t k) { return product[k * kChunk + i]; }, u,
          p.grad_weights.v + set.head * p.grad_weights.v_head_stride + at.column * width, width);
    }
  }

  const FullBackward<E>& p;
  const FullShape& shape;
  const ParallelFor& parallel;
  Sequences sequences;
  std::vector<Panel> panels;
  std::vector<WeightSet> sets;
  Sources<D, E> sources;
  int64_t saved_stride;
  T* targets = nullptr;         // [panels][targets of all sequences][2 vectors]
  T* source_entries = nullptr;  // [panels][sources of all sequences][2 vectors]
  T* target_scales = nullptr;   // [panels][chunks of all sequences][kEntryScale]
  T* source_scales = nullptr;
  T* reach = nullptr;  // [panels][chunks][vector]: the lowest exponent that a target of the chunk saw its keys under
  T* exponents = nullptr;     // [rows of all sets]: W
  uint8_t* redone = nullptr;  // [panels][chunks]: whether the forward redid a row
};

template <typename E>
void RunBackward(const FullBackward<E>& p, const ParallelFor& parallel) {
  Backward<hn::ScalableTag<Accumulate<E>>, E>(p, parallel).run();
}

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {

template <typename E>
void full_backward(const FullBackward<E>& p, const ParallelFor& parallel) {
  using T = Accumulate<E>;
  check_backward(p);
  const FullShape& s = p.shape;
  const auto zero = [](T* data, int64_t size) {
    if (data != nullptr) std::fill_n(data, size, T(0));
  };
  zero(p.grad_initial_state.den, s.batch * s.key_channels);
  zero(p.grad_initial_state.num, s.batch * s.channels);
  zero(p.grad_initial_state.ring_key, s.batch * s.capacity * s.key_channels);
  zero(p.grad_initial_state.ring_value, s.batch * s.capacity * s.channels);
  AFT_DISPATCH(RunBackward<E>)(p, parallel);
}

#define AFT_INSTANTIATE(E) template void full_backward<E>(const FullBackward<E>&, const ParallelFor&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
#endif

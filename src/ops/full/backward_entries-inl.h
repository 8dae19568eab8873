// What both parts of the dense backward start from: every target as an entry, and, where the weights' gradient is
// wanted, every source. Included by kernels inside foreach_target.

#if defined(AFT_OPS_FULL_BACKWARD_ENTRIES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_BACKWARD_ENTRIES_INL_H_
#undef AFT_OPS_FULL_BACKWARD_ENTRIES_INL_H_
#else
#define AFT_OPS_FULL_BACKWARD_ENTRIES_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "aft/ops/full.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/gate-inl.h"
#include "ops/common/scratch.h"
#include "ops/full/dense-inl.h"
#include "ops/full/entries-inl.h"
#include "ops/full/exponents-inl.h"
#include "ops/full/plan.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D, typename E>
class BackwardEntries {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  using Exact = typename Tiles<D>::Exact;
  static constexpr int64_t kLanes = hn::MaxLanes(D());
  static constexpr int64_t kVectors = 2 * kLanes;  // elements of an entry

  const FullBackward<E>& p;
  const FullShape& shape;
  const ParallelFor& parallel;
  const Sequences sequences;
  const std::vector<Panel> panels;
  const std::vector<WeightSet> sets;
  const Sources<D, E> sources;
  const bool wants_weights;

  BackwardEntries(const FullBackward<E>& params, const ParallelFor& parallel_for)
      : p(params),
        shape(params.in.shape),
        parallel(parallel_for),
        sequences(sequences_of(params.in)),
        panels(panels_of(params.in.shape, kLanes)),
        sets(weight_sets(params.in.shape, params.in.weights, sequences, panels)),
        sources(params.in),
        wants_weights(params.grad_weights.table != nullptr || params.grad_weights.u != nullptr ||
                      params.grad_weights.v != nullptr),
        saved_stride(sequences.target_rows * params.in.shape.channels) {
    targets = workspace.take<T>(target_size());
    source_entries = workspace.take<T>(source_size());
    target_scales = workspace.take<T>(target_chunks() * kEntryScale<D>);
    source_scales = workspace.take<T>(source_scale_size());
    reach = workspace.take<T>(target_chunks() * kLanes);
    exponents = workspace.take<T>(exponent_count());
    redone = workspace.take<uint8_t>(target_chunks());
    FindExponents(D(), p.in.weights, sets, shape.causal, exponents, parallel);
    pack();
  }

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
    const bool shared = sets.front().last_sequence == shape.batch;
    return sets[(shared ? 0 : sequence) * heads_of_sets() + (heads_of_sets() == 1 ? 0 : panels[panel].head)];
  }
  // Sets come batch row by batch row, these of each.
  int64_t heads_of_sets() const {
    return sets.front().last_panel == static_cast<int64_t>(panels.size()) ? 1 : shape.heads;
  }
  // Targets of a sequence within a chunk, as positions.
  static std::pair<int64_t, int64_t> rows_of(const Sequence& x, int64_t chunk) {
    return {std::max(x.first, chunk * kChunk), std::min(x.end(), (chunk + 1) * kChunk)};
  }

  // What one target leaves for its sources, where D = den 2^exponent, and the gradient of its query.
  struct Target {
    V a, b, query, exponent;
    hn::Mask<D> redone;
  };
  HWY_INLINE Target target(const Sequence& x, const Panel& c, int64_t t) const {
    const D d;
    const V zero = hn::Zero(d);
    const int64_t row = t - x.first;
    const int64_t in = x.token + row;
    const T* saved = p.saved + (x.target_rows + row) * shape.channels + c.begin;
    const V signed_den = LoadSome(d, saved, c.count);
    const V ratio = LoadSome(d, saved + 2 * saved_stride, c.count);
    const V gy =
        LoadSome(d, p.grad_y.data + x.batch * p.grad_y.batch_stride + in * p.grad_y.time_stride + c.begin, c.count);
    const V query =
        shape.gate == Gate::kNone
            ? zero
            : LoadSome(d, p.in.q.data + x.batch * p.in.q.batch_stride + in * p.in.q.time_stride + c.begin, c.count);
    const GateSlope<V> gate = EvaluateGate(d, shape.gate, query);
    const auto [a, b, grad_q] = GradOfTarget(d, gate, hn::Abs(signed_den), gy, ratio, gy, ratio);
    // What is not finite must not meet the weight 0 of a pair that is not seen.
    const auto finite = hn::And(hn::Eq(hn::Sub(a, a), zero), hn::Eq(hn::Sub(b, b), zero));
    return {a, b, grad_q, LoadSome(d, saved + saved_stride, c.count),
            hn::Or(hn::Lt(signed_den, zero), hn::Not(finite))};
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

  // A target's entry. under: W less the exponent of its D, which is -S, S the exponent that its keys were summed under.
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

 private:
  int64_t panel_count() const { return static_cast<int64_t>(panels.size()); }
  int64_t target_chunks() const { return panel_count() * sequences.target_chunks; }
  int64_t target_size() const { return panel_count() * sequences.target_rows * kVectors; }
  int64_t source_size() const { return wants_weights ? panel_count() * sequences.source_rows * kVectors : 0; }
  int64_t source_scale_size() const {
    return wants_weights ? panel_count() * sequences.source_chunks * kEntryScale<D> : 0;
  }
  int64_t exponent_count() const { return sets.empty() ? 0 : sets.back().exponents + sets.back().rows; }

  // Every target's entry and every source's, chunk by chunk; grad_q on the way.
  void pack() {
    struct Piece {
      int64_t sequence, chunk;
      bool is_source;
    };
    std::vector<Piece> pieces;
    for (int64_t b = 0; b < static_cast<int64_t>(sequences.all.size()); ++b) {
      const Sequence& x = sequences.all[b];
      for (int64_t i = first_chunk(x); i * kChunk < x.end() && x.targets > 0; ++i) pieces.push_back({b, i, false});
      for (int64_t i = 0; wants_weights && i < chunks_of(x.sources); ++i) pieces.push_back({b, i, true});
    }
    parallel.run(static_cast<int64_t>(pieces.size()), [&](int64_t i) {
      const Sequence& x = sequences.all[pieces[i].sequence];
      const int64_t chunk = pieces[i].chunk;
      Scratch scratch;
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
      const Target t = target(x, c, begin + i);
      if (shape.gate != Gate::kNone) {
        StoreSome(t.query, d,
                  p.grad_q.data + x.batch * p.grad_q.batch_stride +
                      (x.token + begin + i - x.first) * p.grad_q.time_stride + c.begin,
                  c.count);
      }
      if (!hn::AllFalse(d, t.redone)) any_redone = 1;
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

  const int64_t saved_stride;
  Scratch workspace;
  T* targets = nullptr;         // [panels][targets of all sequences][2 vectors]
  T* source_entries = nullptr;  // [panels][sources of all sequences][2 vectors]
  T* target_scales = nullptr;   // [panels][chunks of all sequences][kEntryScale]
  T* source_scales = nullptr;
  T* reach = nullptr;  // [panels][chunks][vector]: the lowest exponent that a target of the chunk saw its keys under
  T* exponents = nullptr;     // [rows of all sets]: W
  uint8_t* redone = nullptr;  // [panels][chunks]: whether the forward redid a row
};

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

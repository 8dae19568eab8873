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
#include "ops/common/vector_view.h"
#include "ops/full/call-inl.h"
#include "ops/full/dense-inl.h"
#include "ops/full/entries-inl.h"
#include "ops/full/plan.h"
#include "ops/full/sums-inl.h"
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

  const FullBackward<E>& p;
  const Call<D, E> call;
  const FullShape& shape = call.shape;
  const Sequences& sequences = call.sequences;
  const std::vector<Panel>& panels = call.panels;
  const Sources<D, E>& sources = call.sources;
  const bool wants_weights;
  const EntryTable<D, Axis::kTargets> targets;
  const EntryTable<D, Axis::kSources> source_entries;  // of no panel unless the weights' gradient is wanted

  BackwardEntries(const FullBackward<E>& params, const ParallelFor& parallel, Scratch& workspace)
      : p(params),
        call(params.in, parallel, workspace),
        wants_weights(params.grad_weights.table != nullptr || params.grad_weights.u != nullptr ||
                      params.grad_weights.v != nullptr),
        targets(sequences, std::ssize(panels), workspace),
        source_entries(sequences, wants_weights ? std::ssize(panels) : 0, workspace),
        saved_stride(sequences.target_rows * params.in.shape.channels) {
    const int64_t chunks = std::ssize(panels) * sequences.target_chunks;
    reaches = VectorView<T, 1, kLanes>(chunks, workspace);
    redone = workspace.take<uint8_t>(chunks);
    pack();
  }

  // The lowest exponent that a target of the chunk saw its keys under.
  V reach(const Sequence& x, int64_t panel, int64_t chunk) const {
    return hn::Load(D(), reaches.at(index(x, panel, chunk)));
  }
  // Whether a chunk has targets that the forward redid, or that are not finite.
  bool has_redone(const Sequence& x, int64_t panel, int64_t chunk) const {
    return !x.targets_in(chunk).empty() && redone[index(x, panel, chunk)] != 0;
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

  // A target that is redone pair by pair, or whose gradient is 0, gives the products nothing.
  static HWY_INLINE hn::Mask<D> absent_of(const Target& t) {
    const D d;
    return hn::Or(t.redone, hn::Eq(t.a, hn::Zero(d)));
  }

  // A target's entry. under: W less the exponent of its D, which is -S, S the exponent that its keys were summed under.
  HWY_INLINE Entry<D> entry_of(const Target& t, V under) const {
    const D d;
    const auto absent = absent_of(t);
    const V floor = hn::Set(d, 2 * kExponentFloor<T>);
    const V e0 = ModestExponentOf(d, t.a);
    const V e1 = ModestExponentOf(d, t.b);
    const V x0 = hn::Mul(t.a, Pow2(d, hn::Neg(e0)));
    const V x1 = hn::Mul(t.b, Pow2(d, hn::Neg(e1)));
    return {hn::IfThenZeroElse(absent, x0), hn::IfThenZeroElse(absent, x1),
            hn::IfThenElse(absent, floor, hn::Add(under, e0)), hn::IfThenElse(absent, floor, hn::Add(under, e1))};
  }

 private:
  int64_t index(const Sequence& x, int64_t panel, int64_t chunk) const {
    return panel * sequences.target_chunks + x.target_chunks + chunk;
  }

  // Every target's entry and every source's, chunk by chunk; grad_q on the way.
  void pack() const {
    struct Piece {
      int64_t sequence, chunk;
      Axis axis;
    };
    std::vector<Piece> pieces;
    for (int64_t b = 0; b < std::ssize(sequences.all); ++b) {
      const Range chunks = sequences.all[b].chunks_of_targets();
      for (int64_t i = chunks.begin; i < chunks.end; ++i) pieces.push_back({b, i, Axis::kTargets});
      const int64_t source_chunks = wants_weights ? chunks_of(sequences.all[b].sources) : 0;
      for (int64_t i = 0; i < source_chunks; ++i) pieces.push_back({b, i, Axis::kSources});
    }
    call.parallel.run(std::ssize(pieces), [&](int64_t i) {
      const Piece& piece = pieces[i];
      const Sequence& x = sequences.all[piece.sequence];
      Scratch scratch;
      const Pairs<D> exponents(kChunk, scratch);
      for (int64_t j = 0; j < std::ssize(panels); ++j) {
        if (piece.axis == Axis::kSources) {
          PackSources(call, source_entries, x, j, piece.chunk);
        } else {
          pack_targets(x, j, piece.chunk, call.exponents_of(call.set_of({piece.sequence, j})), exponents);
        }
      }
    });
  }

  // Entries of a chunk's targets, their scale and reach, and grad_q. entry_exponents: [kChunk], overwritten.
  void pack_targets(const Sequence& x, int64_t panel, int64_t chunk, const T* weight_exponents,
                    Pairs<D> entry_exponents) const {
    const D d;
    const Panel& c = panels[panel];
    const Range rows = x.targets_in(chunk);
    const Pairs<D> to = targets.from(x, panel, rows.begin);
    const V floor = hn::Set(d, kExponentFloor<T>);
    V lowest = hn::Neg(floor);
    bool any_redone = false;
    ExponentRange<D> range;
    for (int64_t i = 0; i < rows.size(); ++i) {
      const Target t = target(x, c, rows.begin + i);
      if (shape.gate != Gate::kNone) {
        StoreSome(t.query, d,
                  p.grad_q.data + x.batch * p.grad_q.batch_stride +
                      (x.token + rows.begin + i - x.first) * p.grad_q.time_stride + c.begin,
                  c.count);
      }
      if (!hn::AllFalse(d, t.redone)) any_redone = true;
      const V under = hn::Sub(hn::Set(d, weight_exponents[rows.begin + i]), t.exponent);
      const auto absent = absent_of(t);
      lowest = hn::IfThenElse(absent, lowest, hn::Min(lowest, hn::Neg(under)));
      const Entry<D> e = entry_of(t, under);
      range.include(e.n0, e.n1, hn::Eq(e.x0, hn::Zero(d)), hn::Eq(e.x1, hn::Zero(d)));
      hn::Store(e.x0, d, to.at(i, 0));
      hn::Store(e.x1, d, to.at(i, 1));
      hn::Store(e.n0, d, entry_exponents.at(i, 0));
      hn::Store(e.n1, d, entry_exponents.at(i, 1));
    }
    range.store(targets.scale(x, panel, chunk).data);
    for (int64_t i = 0; i < rows.size(); ++i) {
      const Entry<D> e = {hn::Load(d, to.at(i, 0)), hn::Load(d, to.at(i, 1)), hn::Load(d, entry_exponents.at(i, 0)),
                          hn::Load(d, entry_exponents.at(i, 1))};
      StoreEntry(d, e, range.most0, range.most1, to.at(i));
    }
    hn::Store(lowest, d, reaches.at(index(x, panel, chunk)));
    redone[index(x, panel, chunk)] = any_redone ? 1 : 0;
  }

  const int64_t saved_stride;
  VectorView<T, 1, kLanes> reaches;  // [panels][chunks of all sequences]
  uint8_t* redone = nullptr;         // [panels][chunks of all sequences]
};

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

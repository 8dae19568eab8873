// Backward with a band: what a task keeps from chunk to chunk, phase 1, and what serves one chunk. Included by kernels
// inside foreach_target.

#if defined(AFT_OPS_WINDOW_BAND_TASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_WINDOW_BAND_TASK_INL_H_
#undef AFT_OPS_WINDOW_BAND_TASK_INL_H_
#else
#define AFT_OPS_WINDOW_BAND_TASK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <optional>

#include "aft/ops/window.h"
#include "hwy/highway.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/window/backward-inl.h"
#include "ops/window/band_plan.h"
#include "ops/window/band_targets-inl.h"
#include "ops/window/stripe-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

// A task, and what it keeps from chunk to chunk.
template <class D, typename E>
class BandTask {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));

  // Not causal: what every chunk needs of the rows outside it, from a walk over all of them.
  struct Boundaries {
    Boundaries(int64_t chunks, int64_t vectors, Scratch& scratch)
        : whole(chunks, vectors, scratch),
          sources_before(chunks, vectors, scratch),
          targets_before(chunks, vectors, scratch) {}

    typename Stripe<D, E>::Whole whole;  // the scale, and the sources after the chunk's windows
    // [chunks][vectors]: the sources before the first window of the chunk, and b and a of the targets before the chunk.
    VectorMatrix<T, kBoundaryParts, lanes> sources_before, targets_before;
  };

  D d;
  const BackwardTask<D, E> tensors;
  const WindowShape shape;  // of the sequence alone
  const ChunkPlan chunks;
  const SourceRows<E> sources;
  const int64_t vectors, panel_vectors;
  const TargetRing<D> targets;
  const VectorView<T, kSumParts, lanes> later;  // [vectors]: sums of b and a of the targets after the windows
  const std::optional<Boundaries> boundaries;

  BandTask(const WindowBackward<E>& p, const WindowTask& task, Scratch& scratch)
      : tensors(p, task),
        shape(tensors.shape),
        chunks(shape),
        sources(SourceRowsOf(shape, task, p.in)),
        vectors(tensors.vectors),
        panel_vectors(std::min(vectors, kPanelChannels<E> / lanes)),
        targets(vectors, chunks.capacity, scratch),
        later(vectors, scratch),
        boundaries(shape.causal ? std::nullopt : std::make_optional<Boundaries>(chunks.count, vectors, scratch)) {
    for (int64_t j = 0; j < vectors; ++j) Channels<D, E>::store_sums(no_sum(), later.at(j));
  }

  // One more than the sequence has where the final state has a gradient: see leave_final.
  int64_t target_end() const { return shape.time + (tensors.has_final ? 1 : 0); }
  Range panel(int64_t first_vector) const { return {first_vector, std::min(first_vector + panel_vectors, vectors)}; }
  RunningSum<V> no_sum() const { return StartSum(d, hn::Set(d, kExponentFloor<T>)); }

  // For one chunk: K and KV of the sources in its windows, for a panel, and weights of the targets its sources see.
  Stripe<D, E> stripe(Scratch& scratch) const {
    const int64_t blocks = shape.causal ? 0 : chunks.rows / kRows;
    return {shape, tensors.task, tensors.p.in, {panel_vectors, chunks.capacity, chunks.capacity, blocks}, scratch};
  }

  // What a chunk reads of a block of rows. Inlined: GCC drops calls of a function that only prefetches.
  HWY_INLINE void prefetch_rows(int64_t j, int64_t t) const {
    using Rows = Channels<D, E>;
    Rows::prefetch(sources.k, sources.k_stride, tensors.key_per_head ? 0 : j, t);
    Rows::prefetch(sources.v, sources.v_stride, j, t);
    Rows::prefetch(tensors.gy, tensors.p.grad_y.time_stride, j, t);
    if (tensors.q != nullptr) Rows::prefetch(tensors.q, tensors.p.in.q.time_stride, j, t);
  }

  // Phase 1: the forward of a chunk's targets, from the sums in s of the sources before its first window, whose
  // weights are prepared. Leaves K, KV and their scale in s, a and b in `targets`, and writes dq where wanted.
  void recompute(Stripe<D, E>& s, const Chunk& chunk, Range panel, bool writes_query) const {
    const int64_t from = std::max(s.first_source, chunk.window.begin);
    s.place(chunk.window.begin, panel.begin);
    for (int64_t j = panel.begin; j < panel.end; ++j) {
      if (shape.causal) {
        s.start_scale(j, s.load_sums(s.sums_at(j)));
        s.preload(j, {from, chunk.targets.begin});
      } else {
        s.enter_chunk(j, chunk.index, {from, chunk.window.end}, boundaries->whole);
      }
    }
    for (int64_t tb = chunk.targets.begin; tb < chunk.targets.end; tb += kRows) {
      const Range block = {tb, std::min(tb + kRows, chunk.targets.end)};
      for (int64_t j = panel.begin; j < panel.end; ++j) {
        if (writes_query && tensors.grad_q != nullptr && !tensors.streams_q) {
          s.prefetch_to_write(tensors.grad_q, tensors.p.grad_q.time_stride, j, tb + kRows);
        }
        RowSums<V> row[kRows];
        if (shape.causal) {
          s.causal_block(j, block, from, row);
        } else {
          s.whole_block(j, block, row);
        }
        for (int64_t t = block.begin; t < block.end; ++t) {
          leave_row(t, j, row[t - block.begin], *s.weights.exponent(t), writes_query);
        }
      }
    }
  }

  // The virtual target at T: what the gradient of the final sums, whose maximum is `max`, asks of every source before
  // the ring.
  void leave_final(const Channels<D, E>& s, int64_t j, V max) const {
    const TargetGrad<V> grad = tensors.final_grad(s, j);
    const auto seen = hn::Gt(max, hn::Set(d, kExponentFloor<T>));
    targets.store(j, shape.time,
                  {hn::IfThenElseZero(seen, grad.a), hn::IfThenElseZero(seen, grad.b),
                   hn::IfThenElse(seen, hn::Neg(max), hn::Set(d, kExponentFloor<T>))});
  }

 private:
  // What a target's row leaves behind: a, b and their exponent, and dq. w is the exponent W of its weights.
  HWY_INLINE void leave_row(int64_t t, int64_t j, const RowSums<V>& row, T w, bool writes_query) const {
    const TargetGrad<V> grad = tensors.target_grad(t, j, row.den, row.num, row.value_scale);
    const auto empty = hn::Eq(row.den, hn::Zero(d));
    const V den_exponent = ExponentOf(d, row.den);
    const V normal = Pow2(d, den_exponent);
    const V exponent = hn::Sub(hn::Set(d, w), hn::Add(row.exponent, den_exponent));
    targets.store(j, t,
                  {hn::Mul(grad.a, normal), hn::Mul(grad.b, normal),
                   hn::IfThenElse(empty, hn::Set(d, kExponentFloor<T>), exponent)});
    if (writes_query) tensors.write_query(t, j, grad.query);
  }
};

// What serves one chunk of a task. Tasks that walk together take it one after another, so that all get the same memory:
// with room of its own for every head the backward gained nothing by walking them together.
template <class D, typename E>
struct BandChunk {
  BandChunk(const BandTask<D, E>& of, int64_t index, Scratch& scratch)
      : task(of),
        chunk(of.chunks.chunk(index)),
        seen{chunk.targets.begin, std::min(chunk.targets.begin + of.chunks.capacity, of.target_end())},
        stripe(of.stripe(scratch)),
        scaled(of.panel_vectors, of.chunks.capacity, scratch) {
    stripe.prepare_targets({seen.begin, std::min(seen.begin + of.chunks.capacity, of.shape.time + kRows)});
  }

  const BandTask<D, E>& task;
  const Chunk chunk;
  const Range seen;  // targets that its sources see
  Stripe<D, E> stripe;
  ScaledTargets<D> scaled;
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

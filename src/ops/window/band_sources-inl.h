// Backward with a band, phase 2: the gradients of a chunk's sources. Included by kernels inside foreach_target.

#if defined(AFT_OPS_WINDOW_BAND_SOURCES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_WINDOW_BAND_SOURCES_INL_H_
#undef AFT_OPS_WINDOW_BAND_SOURCES_INL_H_
#else
#define AFT_OPS_WINDOW_BAND_SOURCES_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/common/exp-inl.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/window/band_plan.h"
#include "ops/window/band_task-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

// The task that walks next, over the same rows or over those `rows` earlier: they are fetched ahead.
template <class D, typename E>
struct Follower {
  const BandTask<D, E>& task;
  int64_t rows;
};

// dk and dv of a chunk's sources, panel by panel. A source sees the targets whose windows hold it one by one; those
// before and after are in running sums.
template <class D, typename E>
class BandSources {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));

 public:
  BandSources(const BandChunk<D, E>& chunk, const Follower<D, E>& next, Scratch& scratch)
      : of(chunk),
        task(chunk.task),
        shape(task.shape),
        s(chunk.stripe),
        follower(next),
        before(shape.causal ? 0 : task.chunks.capacity / kRows, task.panel_vectors, scratch),
        keys_begin(of.chunk.sources.begin - task.chunks.reach),
        key_sums(scratch.take<T>(task.chunks.capacity)) {
    before.first_row = of.chunk.sources.begin / kRows;
    if (task.tensors.key_per_head) std::fill_n(key_sums, task.chunks.capacity, T(0));
  }

  // All of the chunk's sources, last to first; with the first chunk also those in the ring of the initial state.
  void run(Range panel) {
    if (!shape.causal) sum_before(panel);
    const Range sources = of.chunk.sources;
    int64_t later_from = std::min(task.target_end(), sources.end + task.chunks.reach + kRows);
    for (int64_t sb = whole_blocks(sources.end) - kRows; sb >= sources.begin; sb -= kRows) {
      later_from = write_block(panel, {sb, std::min(sb + kRows, sources.end)}, later_from);
    }
    if (of.chunk.index == 0 && task.tensors.p.in.initial_state.position != nullptr) {
      write_initial_state(panel, later_from);
    }
  }

  // dk where a head shares its key, once all its panels are in.
  void write_keys() const {
    const Range sources = of.chunk.sources;
    const bool ring_too = of.chunk.index == 0 && task.tensors.p.in.initial_state.position != nullptr;
    for (int64_t source = ring_too ? s.first_source : sources.begin; source < sources.end; ++source) {
      task.tensors.write_key(s, source, key_sums[source - keys_begin]);
    }
  }

  // T = 0: the final state is the initial one.
  void pass_state() {
    for (int64_t j = 0; j < task.vectors; ++j) {
      for (int64_t source = s.first_source; source < 0; ++source) {
        task.tensors.write_source(s, j, source, hn::Zero(d), hn::Zero(d), hn::Zero(d), key_sum(source));
      }
      RunningSum<V> sum = task.no_sum();
      if (task.tensors.has_final) {
        task.leave_final(s, j, s.initial_sums(task.tensors.p.in.initial_state, j).max);
        task.targets.add(sum, j, 0, T(0));
      }
      write_initial_sums(j, sum);
    }
    if (task.tensors.key_per_head) write_keys();
  }

 private:
  const BandChunk<D, E>& of;
  const BandTask<D, E>& task;
  const WindowShape& shape;
  const Stripe<D, E>& s;
  const Follower<D, E> follower;
  D d;
  VectorMatrix<T, kSumParts, lanes> before;  // not causal: [blocks][panel], the targets before each block's window
  int64_t keys_begin;
  T* key_sums;    // [capacity]: dk of the sources from keys_begin on, where a head shares its key
  T den_sum = 0;  // gradient of the initial den, where a head shares it
  T unused = 0;

  T& key_sum(int64_t source) { return task.tensors.key_per_head ? key_sums[source - keys_begin] : unused; }

  // Not causal: the targets before the windows of each block, from those before the chunk.
  void sum_before(Range panel) {
    before.first_column = panel.begin;
    const Range sources = of.chunk.sources;
    for (int64_t j = panel.begin; j < panel.end; ++j) {
      RunningSum<V> sum = s.load_boundary(task.boundaries->targets_before.at(of.chunk.index, j));
      int64_t next = of.chunk.targets.begin;
      for (int64_t sb = sources.begin; sb < sources.end; sb += kRows) {
        for (; next < sb - shape.right; ++next) task.targets.add(sum, j, next, *s.weights.exponent(next));
        s.store_sums(sum, before.at(sb / kRows, j));
      }
    }
  }

  // While a block of sources is done: the rows that the next panel's block at this place will read, and where the
  // block below will write.
  HWY_INLINE void prefetch_block(Range panel, int64_t j, int64_t sb) const {
    if (shape.causal && sb >= 0 && panel.end < task.vectors) {
      task.prefetch_rows(j + task.panel_vectors, sb);
    } else if (shape.causal && sb >= follower.rows) {
      follower.task.prefetch_rows(j - panel.begin, sb - follower.rows);
    }
    if (sb < kRows) return;
    const SourceGradRows<E>& grads = task.tensors.grads;
    if (!grads.streams_v) s.prefetch_to_write(grads.v, grads.v_stride, j, sb - kRows);
    if (!grads.streams_k && !task.tensors.key_per_head) s.prefetch_to_write(grads.k, grads.k_stride, j, sb - kRows);
  }

  // The sources of a block; negative ones are in the ring of the initial state. Targets from later_from on are in
  // `later`; returns from where on they are afterwards.
  int64_t write_block(Range panel, Range block, int64_t later_from) {
    const int64_t beyond = block.begin + kRows + shape.left;  // targets from here on see none of it in their windows
    const Range seen = {std::max<int64_t>(0, shape.causal ? block.begin : block.begin - shape.right),
                        std::min(task.target_end(), beyond)};
    for (int64_t j = panel.begin; j < panel.end; ++j) {
      prefetch_block(panel, j, block.begin);
      RunningSum<V> after = s.load_sums(task.later.at(j));
      if (HWY_LIKELY(later_from - beyond == kRows && beyond >= 0)) {
        task.targets.add_block(after, j, beyond, s.weights.exponent(beyond));
      } else {
        for (int64_t t = later_from - 1; t >= beyond; --t) task.targets.add(after, j, t, *s.weights.exponent(t));
      }
      s.store_sums(after, task.later.at(j));
      const RunningSum<V> sooner = shape.causal ? task.no_sum() : s.load_sums(before.at(block.begin / kRows, j));
      const V m = hn::Load(d, s.scale.at(j));
      const V outside = hn::Add(hn::Max(after.max, sooner.max), m);
      const bool in_range = hn::AllFalse(d, hn::Gt(outside, hn::Set(d, kRangeLimit<T>)));
      const int64_t first = std::max(block.begin, s.first_source);
      if (HWY_LIKELY((!of.scaled.exact(j) && in_range) || !s.redo)) {
        V sum_a[kRows], sum_b[kRows];
        window_sums(j, block.begin, seen, sum_a, sum_b);
        const Beyond later_sums = scale_beyond(after, m);
        const Beyond earlier_sums = scale_beyond(sooner, m);
        for (int64_t source = first; source < block.end; ++source) {
          const int64_t r = source - block.begin;
          const V a = hn::Add(hn::Add(sum_a[r], later_sums.a), earlier_sums.a);
          const V b = hn::Add(hn::Add(sum_b[r], later_sums.b), earlier_sums.b);
          const V key = hn::Load(d, s.window.at(j, source));
          task.tensors.write_source(s, j, source, key, a, b, key_sum(source));
        }
      } else {
        for (int64_t source = first; source < block.end; ++source) write_exactly(j, source, seen, after, sooner);
      }
    }
    return std::min(later_from, std::max<int64_t>(0, beyond));
  }

  // What lies beyond the window, under the chunk's scale.
  struct Beyond {
    V a, b;
  };
  Beyond scale_beyond(const RunningSum<V>& sum, V m) const {
    const V scale = Pow2(d, hn::Min(hn::Add(sum.max, m), hn::Set(d, kRangeLimit<T>)));
    return {hn::Mul(sum.num, scale), hn::Mul(sum.den, scale)};
  }

  // sum over the targets `seen` of w~ a' and w~ b' for the kRows sources from sb on.
  HWY_NOINLINE void window_sums(int64_t j, int64_t sb, Range seen, V* out_a, V* out_b) const {
    V sum_a[kRows], sum_b[kRows];
    const auto put = [&] {
      for (int64_t r = 0; r < kRows; ++r) out_a[r] = sum_a[r], out_b[r] = sum_b[r];
    };
    const int64_t own = shape.causal ? std::min(seen.end, std::max(seen.begin, sb + kRows)) : seen.begin;
    s.accumulate(s.weights.sources_over_targets(own, sb), of.scaled.at(j, own), seen.end - own, sum_a, sum_b);
    // Causal: the block's own targets. Target sb + m is seen by the sources r <= m, and must not touch the others.
    if (HWY_LIKELY(own - seen.begin == kRows && own <= shape.time)) {
      const T* x = of.scaled.at(j, seen.begin);
      const T* w = s.weights.at(seen.begin, seen.begin);
      for (int64_t m = 0; m < kRows; ++m, x += 2 * lanes, w += s.weights.next_target()) {
        const V a = hn::Load(d, x);
        const V b = hn::Load(d, x + lanes);
        for (int64_t r = 0; r <= m; ++r) add_own(w[r], a, b, sum_a[r], sum_b[r]);
      }
      put();
      return;
    }
    for (int64_t t = seen.begin; t < own; ++t) {
      const T* x = of.scaled.at(j, t);
      const T* w = s.weights.at(t, sb);
      const int64_t last = t == shape.time ? kRows - 1 : t - sb;
      for (int64_t r = 0; r <= last; ++r) add_own(w[r], hn::Load(d, x), hn::Load(d, x + lanes), sum_a[r], sum_b[r]);
    }
    put();
  }

  HWY_INLINE void add_own(T w, V a, V b, V& sum_a, V& sum_b) const {
    const V weight = hn::Set(d, w);
    sum_a = hn::MulAdd(weight, a, sum_a);
    sum_b = hn::MulAdd(weight, b, sum_b);
  }

  // One source, every pair from its p and n.
  HWY_NOINLINE void write_exactly(int64_t j, int64_t source, Range seen, const RunningSum<V>& after,
                                  const RunningSum<V>& sooner) {
    const SplitExp<V> e = Split(d, s.source_key(source, j));
    V a = hn::Zero(d);
    V b = a;
    for (int64_t t = seen.begin; t < seen.end; ++t) {
      const int64_t at = source - t + shape.left;
      const bool is_final = t == shape.time;
      if (is_final ? source >= shape.time - shape.left : (shape.causal && source > t)) continue;
      const bool inside = !is_final && at >= 0 && at < s.span;
      const SplitExp<V> w = Split(d, hn::Set(d, inside ? s.band[t * s.band_stride + at] : T(0)));
      const auto target = task.targets.load(j, t);
      const V exponent = hn::Sub(target.exponent, hn::Set(d, *s.weights.exponent(t)));
      AddPair(d, hn::Mul(e.p, w.p), hn::Add(hn::Add(e.n, w.n), exponent), target.a, target.b, a, b);
    }
    AddPair(d, e.p, hn::Add(e.n, after.max), after.num, after.den, a, b);
    AddPair(d, e.p, hn::Add(e.n, sooner.max), sooner.num, sooner.den, a, b);
    task.tensors.write_source(s, j, source, hn::Set(d, T(1)), a, b, key_sum(source));
  }

  // The initial state: its ring are sources before 0, its sums are seen by every target.
  void write_initial_state(Range panel, int64_t later_from) {
    for (int64_t sb = -kRows; sb + kRows > s.first_source; sb -= kRows) {
      later_from = write_block(panel, {sb, sb + kRows}, later_from);
    }
    for (int64_t j = panel.begin; j < panel.end; ++j) {
      RunningSum<V> sum = s.load_sums(task.later.at(j));
      for (int64_t t = later_from - 1; t >= 0; --t) task.targets.add(sum, j, t, *s.weights.exponent(t));
      write_initial_sums(j, sum);
    }
  }

  // sum: of all targets.
  void write_initial_sums(int64_t j, const RunningSum<V>& sum) {
    const RunningSum<V> initial = s.initial_sums(task.tensors.p.in.initial_state, j);
    const V seen = Pow2(d, hn::Min(hn::Add(sum.max, initial.max), hn::Set(d, kPairExponentLimit<T>)));
    task.tensors.write_initial_sums(j, hn::Mul(sum.num, seen), hn::Neg(hn::Mul(sum.den, seen)), den_sum);
  }
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

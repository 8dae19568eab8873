// Backward of the windowed operator with a band. Cost and layout: README.md.
//
// With a[t] = gy gate / D and b[t] = a N/D:   dv[t'] = e^k sum_t e^w a[t]    dk[t'] = v dv - e^k sum_t e^w b[t]
// and dw[t,t'] = e^w sum_c e^k (v a[t] - b[t]): the sums over t are the operator run backwards with key -log D.
//
// Chunks of targets are walked right to left, a chunk's channels panel by panel. In each, the forward is recomputed
// from the sums at its start (phase 1), leaving a, b and an exponent per row, normalised so that a row is worth a
// 2^exponent. Then everything is brought to the chunk's scale: K = e^k 2^-M as in the forward, a' = a 2^(exponent + M).
// K is at most sqrt(2), so what a product loses is harmless as long as a' stays below 2^kRangeLimit; a vector of
// channels that exceeds it is computed exactly in this chunk. Sources follow as soon as all targets whose windows hold
// them are there (phase 2): causal, those of the chunk; without `causal`, `lag` rows later.
//
// Without `causal` the sums at the chunks' starts, of sources and of targets, come from a walk over all chunks before.

#include <algorithm>
#include <optional>
#include <vector>

#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/window/backward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/window/cpu_backward_band.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/window/band_gradient-inl.h"
#include "ops/window/band_targets-inl.h"
#include "ops/window/stripe-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

template <class D, typename E>
class BackwardBand : BandTargets<D, E> {
  using Base = BandTargets<D, E>;
  using Base::add_pair, Base::add_target, Base::add_targets, Base::chunk, Base::d, Base::exact, Base::first, Base::gy,
      Base::has_final, Base::key_per_head, Base::lag, Base::lanes, Base::last, Base::leave_final, Base::leave_row,
      Base::p, Base::panel_vectors, Base::q, Base::reach, Base::rows_capacity, Base::scaled_row, Base::shape,
      Base::target_end, Base::target_row, Base::task, Base::vectors;
  using typename Base::T;
  using typename Base::V;

 public:
  BackwardBand(const WindowBackward<E>& params, const WindowTask& window_task, const BandPart<T>& band_part)
      : Base(params, window_task), part(band_part), gradient(band_part, params.grad_band.row_stride == 0) {
    chunks = chunk_count(shape, shape.time);
    room = {panel_vectors, rows_capacity, rows_capacity, shape.causal ? 0 : chunk / kRows};
  }

  // What the task must remember from chunk to chunk.
  size_t kept_bytes() const {
    const int64_t boundary = shape.causal ? 0 : chunks * vectors * kBoundaryParts * lanes;
    return (shape.causal ? 0 : Stripe<D, E>::bytes(shape, task, room)) + Base::kept_bytes() +
           2 * Room::padded<T>(vectors * kSumParts * lanes) + 3 * Room::padded<T>(boundary);
  }
  // What serves one chunk: tasks that walk together share it.
  size_t chunk_bytes() const {
    return (shape.causal ? Stripe<D, E>::bytes(shape, task, room) : 0) + Base::chunk_bytes() + gradient.bytes(*this) +
           Room::padded<T>(rows_capacity / kRows * panel_vectors * kSumParts * lanes) + Room::padded<T>(rows_capacity);
  }

  // Before the first of the part's chunks.
  void enter(Room& kept, Room for_chunk) {
    // A causal chunk restores the sums it starts from.
    Stripe<D, E>& s = stripe.emplace(shape, task, p.in, room, shape.causal ? for_chunk : kept);
    take(kept, for_chunk);
    s.redo = redo_enabled();
    if (part.last_chunk < chunks) return;
    for (int64_t j = 0; j < vectors; ++j) s.store_sums(no_sum(), later + j * kSumParts * lanes);
    if (shape.time == 0) ring_passes(s);
    if (!shape.causal) sum_boundaries(s);
  }

  // Afterwards `next`, of as many vectors, walks: the same chunk or, `wraps`, the one before.
  void walk_chunk(int64_t index, const BackwardBand& next, bool wraps) {
    Stripe<D, E>& s = *stripe;
    follower = &next;
    follower_rows = wraps ? chunk : 0;
    const int64_t begin = index * chunk;
    const int64_t end = std::min(begin + chunk, shape.time);
    s.base = begin - reach;
    s.prepare_rows(begin, std::min(shape.time + kRows, begin + rows_capacity));
    first_source = source_begin(index);
    last_source = source_begin(index + 1);
    if (key_per_head) std::fill_n(key_sums, rows_capacity, T(0));
    for (int64_t panel = 0; panel < vectors; panel += panel_vectors) run_panel(s, panel, index, begin, end);
    if (key_per_head) write_keys(s);
  }

  void leave() const {
    count_redone(part.redone, stripe->redone,
                 (std::min(shape.time, part.last_chunk * chunk) - part.first_chunk * chunk) * stripe->width);
    Base::flush();
  }

 private:
  const BandPart<T>& part;
  BandGradient<D, E> gradient;
  int64_t chunks = 0;
  typename Stripe<D, E>::Sizes room;
  std::optional<Stripe<D, E>> stripe;
  const BackwardBand* follower = nullptr;  // walks next, follower_rows before this one
  int64_t follower_rows = 0;
  T* later = nullptr;     // [vectors][kSumParts][lanes]: sums of b and a of the targets after the window
  T* earlier = nullptr;   // not causal: the same of those before a chunk
  T* before = nullptr;    // not causal: [blocks][panel][kSumParts][lanes], those before each block's window
  T* key_sums = nullptr;  // [rows_capacity]: dk of source first_source - reach + i where a head shares its key
  // Not causal, boundaries of every chunk: the sources after its windows, the sources before its first window, the
  // targets before it.
  T* ends = nullptr;
  T* starts = nullptr;
  T* targets_before = nullptr;
  int64_t first_source = 0, last_source = 0;  // the chunk's sources
  int64_t later_from = 0;                     // targets >= this are in `later`
  T den_sum = 0;                              // gradient of the initial den where a head shares it

  // First source done with chunk `index`; later ones are done.
  int64_t source_begin(int64_t index) const {
    return index == 0 ? 0 : index == chunks ? shape.time : std::min(shape.time, index * chunk + lag);
  }
  T* before_row(int64_t sb, int64_t j) const {
    return before + ((sb - first_source) / kRows * panel_vectors + j - first) * kSumParts * lanes;
  }

  void take(Room& kept, Room& for_chunk) {
    const int64_t boundary = shape.causal ? 0 : chunks * vectors * kBoundaryParts * lanes;
    Base::take(kept, for_chunk);
    gradient.take(*this, for_chunk);
    later = kept.take<T>(vectors * kSumParts * lanes);
    earlier = kept.take<T>(vectors * kSumParts * lanes);
    ends = kept.take<T>(boundary);
    starts = kept.take<T>(boundary);
    targets_before = kept.take<T>(boundary);
    before = for_chunk.take<T>(rows_capacity / kRows * panel_vectors * kSumParts * lanes);
    key_sums = for_chunk.take<T>(rows_capacity);
  }

  RunningSum<V> no_sum() const { return StartSum(d, hn::Set(d, kExponentFloor<T>)); }

  void take_panel(Stripe<D, E>& s, int64_t panel) {
    first = panel;
    last = std::min(panel + panel_vectors, vectors);
    s.first_vector = panel;
  }

  void run_panel(Stripe<D, E>& s, int64_t panel, int64_t index, int64_t begin, int64_t end) {
    take_panel(s, panel);
    later_from = std::min(target_end(), last_source + reach + kRows);
    if (shape.causal) {
      Base::restore_sums(s, index, first, last);
    } else {
      for (int64_t j = first; j < last; ++j) {
        s.store_sums(s.load_boundary(s.boundary_row(starts, index, j)), s.sums + j * kSumParts * lanes);
      }
    }
    recompute(s, index, begin, end, true);
    if (end == shape.time && has_final) {
      for (int64_t j = first; j < last; ++j) leave_final(s, j, hn::Load(d, s.sums + j * kSumParts * lanes));
    }
    Base::scale_targets(s, begin, end);
    if (!shape.causal) sum_before(s, index, begin);
    if (gradient.wanted()) gradient.add_chunk(*this, s, begin, end);
    for (int64_t source = first_source + (last_source - first_source - 1) / kRows * kRows;
         last_source > first_source && source >= first_source; source -= kRows) {
      source_block(s, source, std::min(kRows, last_source - source), begin);
    }
    if (begin == 0 && p.in.initial_state.position != nullptr) initial_gradient(s);
  }

  // Not causal, before everything else: first chunk to last, what each will need of the rows before it. The rows' a and
  // b are formed here a first time: to keep them would take three tensors.
  void sum_boundaries(Stripe<D, E>& s) {
    s.scan_whole(ends);
    for (int64_t j = 0; j < vectors; ++j) {
      s.store_sums(no_sum(), s.sums + j * kSumParts * lanes);
      s.store_sums(no_sum(), earlier + j * kSumParts * lanes);
    }
    for (int64_t index = 0; index < chunks; ++index) {
      for (int64_t j = 0; j < vectors; ++j) {
        s.store_boundary(s.load_sums(s.sums + j * kSumParts * lanes), s.boundary_row(starts, index, j));
        s.store_boundary(s.load_sums(earlier + j * kSumParts * lanes), s.boundary_row(targets_before, index, j));
      }
      if (index + 1 == chunks) break;  // the last chunk is before no other
      const int64_t begin = index * chunk;
      const int64_t end = begin + chunk;
      s.base = begin - reach;
      s.prepare_rows(begin, end);
      for (int64_t panel = 0; panel < vectors; panel += panel_vectors) {
        take_panel(s, panel);
        recompute(s, index, begin, end, false);
        for (int64_t j = first; j < last; ++j) {
          RunningSum<V> sum = s.load_sums(earlier + j * kSumParts * lanes);
          for (int64_t t = begin; t < end; t += kRows) add_targets(sum, j, t, s.weights.exponent + t - begin);
          s.store_sums(sum, earlier + j * kSumParts * lanes);
        }
      }
    }
  }

  void prefetch_rows(int64_t j, int64_t t) const {
    stripe->prefetch_sources(j, t);
    stripe->prefetch(gy, p.grad_y.time_stride, j, t);
    if (q != nullptr) stripe->prefetch(q, p.in.q.time_stride, j, t);
  }

  // While a block of sources is done: the rows that the next panel's block at this place will read, and where the
  // block below will write.
  void prefetch_block(const Stripe<D, E>& s, int64_t j, int64_t sb) const {
    if (shape.causal && sb >= 0 && last < vectors) {
      prefetch_rows(j + panel_vectors, sb);
    } else if (shape.causal && sb >= follower_rows) {
      follower->prefetch_rows(j - first, sb - follower_rows);
    }
    if (sb < kRows) return;
    if (!Base::grads.streams_v) s.prefetch_to_write(Base::grads.v, p.grad_v.time_stride, j, sb - kRows);
    if (!Base::grads.streams_k && !key_per_head)
      s.prefetch_to_write(Base::grads.k, p.grad_k.time_stride, j, sb - kRows);
  }

  // Phase 1: the forward of the chunk's rows, from the sums at its start.
  void recompute(Stripe<D, E>& s, int64_t index, int64_t begin, int64_t end, bool writes_query) {
    for (int64_t j = first; j < last; ++j) {
      const int64_t from = std::max(s.first_source, begin - reach);
      if (shape.causal) {
        s.keep_from = from;
        s.start_scale(j, s.load_sums(s.sums + j * kSumParts * lanes));
        s.preload(j, from, begin);
      } else {
        s.enter_chunk(j, index, from, std::min(shape.time, begin + chunk + lag), ends);
      }
    }
    for (int64_t tb = begin; tb < end; tb += kRows) {
      const int64_t rows = std::min(kRows, end - tb);
      for (int64_t j = first; j < last; ++j) {
        if (writes_query && Base::grad_q != nullptr && !Base::streams_q) {
          s.prefetch_to_write(Base::grad_q, p.grad_q.time_stride, j, tb + kRows);
        }
        const auto leave = [&](int64_t r, int64_t n, const RowSums<V>* row) {
          for (int64_t t = tb + r; t < tb + r + n; ++t, ++row) {
            leave_row(t, j, *row, s.weights.exponent[t - begin], writes_query);
          }
        };
        if (shape.causal) {
          s.causal_block(j, tb, rows, begin, leave);
        } else {
          s.whole_block(j, tb, rows, begin, (tb - begin) / kRows, leave);
        }
      }
    }
  }

  // Not causal: the targets before each source block's window.
  void sum_before(const Stripe<D, E>& s, int64_t index, int64_t begin) const {
    for (int64_t j = first; j < last; ++j) {
      RunningSum<V> sum = s.load_boundary(s.boundary_row(targets_before, index, j));
      int64_t next = begin;
      for (int64_t sb = first_source; sb < last_source; sb += kRows) {
        for (; next < sb - shape.right; ++next) add_target(sum, j, next, s.weights.exponent[next - begin]);
        s.store_sums(sum, before_row(sb, j));
      }
    }
  }

  // Phase 2: dk and dv of the sources sb .. sb + rows - 1; negative ones are in the ring of the initial state. They see
  // the targets [low, high) one by one; what lies beyond is in the running sums.
  void source_block(Stripe<D, E>& s, int64_t sb, int64_t rows, int64_t begin) {
    const int64_t beyond = sb + kRows + shape.left;
    const int64_t low = std::max<int64_t>(0, shape.causal ? sb : sb - shape.right);
    const int64_t high = std::min(target_end(), beyond);
    T unused = 0;
    for (int64_t j = first; j < last; ++j) {
      prefetch_block(s, j, sb);
      RunningSum<V> after = s.load_sums(later + j * kSumParts * lanes);
      if (HWY_LIKELY(later_from - beyond == kRows && beyond >= 0)) {
        add_targets(after, j, beyond, s.weights.exponent + beyond - begin);
      } else {
        for (int64_t t = later_from - 1; t >= beyond; --t) add_target(after, j, t, s.weights.exponent[t - begin]);
      }
      s.store_sums(after, later + j * kSumParts * lanes);
      const RunningSum<V> sooner = shape.causal ? no_sum() : s.load_sums(before_row(sb, j));
      const V m = hn::Load(d, s.scale + j * 2 * lanes);
      const V outside = hn::Add(hn::Max(after.max, sooner.max), m);
      const bool in_range = hn::AllFalse(d, hn::Gt(outside, hn::Set(d, kRangeLimit<T>)));
      const auto key_sum = [&](int64_t r) -> T& {
        return key_per_head ? key_sums[sb + r - first_source + reach] : unused;
      };
      if (HWY_LIKELY((!exact[j - first] && in_range) || !s.redo)) {
        V sum_a[kRows], sum_b[kRows];
        window_sums(s, j, sb, begin, low, high, sum_a, sum_b);
        const Beyond later_sums = scale_beyond(after, m);
        const Beyond earlier_sums = scale_beyond(sooner, m);
        for (int64_t r = 0; r < rows; ++r) {
          if (sb + r < s.first_source) continue;
          const V a = hn::Add(hn::Add(sum_a[r], later_sums.a), earlier_sums.a);
          const V b = hn::Add(hn::Add(sum_b[r], later_sums.b), earlier_sums.b);
          Base::write_source(s, j, sb + r, hn::Load(d, s.slot(j, sb + r)), a, b, key_sum(r));
        }
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          if (sb + r >= s.first_source) exact_source(s, j, sb + r, begin, low, high, after, sooner, key_sum(r));
        }
      }
    }
    later_from = std::min(later_from, std::max<int64_t>(0, beyond));
  }

  // What lies beyond the window, under the chunk's scale.
  struct Beyond {
    V a, b;
  };
  Beyond scale_beyond(const RunningSum<V>& sum, V m) const {
    const V scale = Pow2(d, hn::Min(hn::Add(sum.max, m), hn::Set(d, kRangeLimit<T>)));
    return {hn::Mul(sum.num, scale), hn::Mul(sum.den, scale)};
  }

  // sum over the targets [low, high) of w~ a' and w~ b' for the kRows sources of the block.
  HWY_NOINLINE void window_sums(const Stripe<D, E>& s, int64_t j, int64_t sb, int64_t begin, int64_t low, int64_t high,
                                V* out_a, V* out_b) const {
    V sum_a[kRows], sum_b[kRows];
    const auto put = [&] {
      for (int64_t r = 0; r < kRows; ++r) out_a[r] = sum_a[r], out_b[r] = sum_b[r];
    };
    // Weight of target t on source sb + r: weights.at(t - begin, sb - t + left)[r].
    const int64_t own = shape.causal ? std::min(high, std::max(low, sb + kRows)) : low;
    s.accumulate(s.weights.at(own - begin, sb - own + shape.left), 1, s.weights.next_row(), scaled_row(j, own - begin),
                 high - own, sum_a, sum_b);
    // Causal: the block's own targets. Target sb + m is seen by the sources r <= m, and must not touch the others.
    if (HWY_LIKELY(own - low == kRows && own <= shape.time)) {
      const T* x = scaled_row(j, low - begin);
      const T* w = s.weights.at(low - begin, shape.left);
      for (int64_t m = 0; m < kRows; ++m, x += 2 * lanes, w += s.weights.next_row()) {
        const V a = hn::Load(d, x);
        const V b = hn::Load(d, x + lanes);
        for (int64_t r = 0; r <= m; ++r) add_own(w[r], a, b, sum_a[r], sum_b[r]);
      }
      put();
      return;
    }
    for (int64_t t = low; t < own; ++t) {
      const T* x = scaled_row(j, t - begin);
      const T* w = s.weights.at(t - begin, sb - t + shape.left);
      const int64_t seen = t == shape.time ? kRows - 1 : t - sb;
      for (int64_t r = 0; r <= seen; ++r) add_own(w[r], hn::Load(d, x), hn::Load(d, x + lanes), sum_a[r], sum_b[r]);
    }
    put();
  }

  HWY_INLINE void add_own(T w, V a, V b, V& sum_a, V& sum_b) const {
    const V weight = hn::Set(d, w);
    sum_a = hn::MulAdd(weight, a, sum_a);
    sum_b = hn::MulAdd(weight, b, sum_b);
  }

  // dv = e^k sum a and e^k sum b of one source, every pair from its p and n.
  HWY_NOINLINE void exact_source(const Stripe<D, E>& s, int64_t j, int64_t source, int64_t begin, int64_t low,
                                 int64_t high, const RunningSum<V>& after, const RunningSum<V>& sooner,
                                 T& key_sum) const {
    const SplitExp<V> e = Split(d, s.source_key(source, j));
    V a = hn::Zero(d);
    V b = a;
    for (int64_t t = low; t < high; ++t) {
      const int64_t at = source - t + shape.left;
      const bool is_final = t == shape.time;
      if (is_final ? source >= shape.time - shape.left : (shape.causal && source > t)) continue;
      const bool inside = !is_final && at >= 0 && at < s.weights.span;
      const SplitExp<V> w = Split(d, hn::Set(d, inside ? s.band[t * s.band_stride + at] : T(0)));
      const T* from = target_row(j, t);
      const V exponent = hn::Sub(hn::Load(d, from + 2 * lanes), hn::Set(d, s.weights.exponent[t - begin]));
      add_pair(hn::Mul(e.p, w.p), hn::Add(hn::Add(e.n, w.n), exponent), hn::Load(d, from), hn::Load(d, from + lanes), a,
               b);
    }
    add_pair(e.p, hn::Add(e.n, after.max), after.num, after.den, a, b);
    add_pair(e.p, hn::Add(e.n, sooner.max), sooner.num, sooner.den, a, b);
    Base::write_source(s, j, source, hn::Set(d, T(1)), a, b, key_sum);
  }

  // dk where a head shares its key, once all its channels are in; with the first chunk also of the ring's sources.
  void write_keys(const Stripe<D, E>& s) const {
    const bool ring_too = first_source == 0 && p.in.initial_state.position != nullptr;
    for (int64_t source = ring_too ? s.first_source : first_source; source < last_source; ++source) {
      Base::write_key(s, source, key_sums[source - first_source + reach]);
    }
  }

  // Gradient of the initial state: its ring are sources before 0, its sums are seen by every target.
  void initial_gradient(Stripe<D, E>& s) {
    for (int64_t sb = -kRows; sb + kRows > s.first_source; sb -= kRows) source_block(s, sb, kRows, 0);
    for (int64_t j = first; j < last; ++j) {
      RunningSum<V> sum = s.load_sums(later + j * kSumParts * lanes);
      for (int64_t t = later_from - 1; t >= 0; --t) add_target(sum, j, t, s.weights.exponent[t]);
      initial_sums_gradient(s, j, sum);
    }
  }

  void initial_sums_gradient(const Stripe<D, E>& s, int64_t j, const RunningSum<V>& sum) {
    const RunningSum<V> initial = s.initial_sums(p.in.initial_state, j);
    const V seen = Pow2(d, hn::Min(hn::Add(sum.max, initial.max), hn::Set(d, kPairExponentLimit<T>)));
    Base::write_initial_sums(j, hn::Mul(sum.num, seen), hn::Neg(hn::Mul(sum.den, seen)), den_sum);
  }

  // T = 0: the final state is the initial one.
  void ring_passes(Stripe<D, E>& s) {
    if (p.in.initial_state.position == nullptr) return;
    std::fill_n(key_sums, reach, T(0));
    for (int64_t j = 0; j < vectors; ++j) {
      for (int64_t source = s.first_source; source < 0; ++source) {
        T zero = 0;
        Base::write_source(s, j, source, hn::Zero(d), hn::Zero(d), hn::Zero(d), zero);
      }
      RunningSum<V> sum = no_sum();
      if (has_final) {
        leave_final(s, j, s.initial_sums(p.in.initial_state, j).max);
        add_target(sum, j, 0, T(0));
      }
      initial_sums_gradient(s, j, sum);
    }
    first_source = last_source = 0;
    if (key_per_head) write_keys(s);
  }
};

template <typename E>
void Banded(const WindowBackward<E>& p, const WindowTask* tasks, const BandPart<Accumulate<E>>* parts, int64_t count) {
  std::vector<BackwardBand<hn::ScalableTag<Accumulate<E>>, E>> bands;
  bands.reserve(count);
  size_t kept = 0;
  size_t for_chunk = 0;
  for (int64_t i = 0; i < count; ++i) {
    bands.emplace_back(p, tasks[i], parts[i]);
    if (parts[i].memory == nullptr) kept += bands[i].kept_bytes();
    for_chunk = std::max(for_chunk, bands[i].chunk_bytes());
  }
  Scratch scratch;
  Room all(scratch.take<std::byte>(static_cast<int64_t>(kept)));
  auto* const room = scratch.take<std::byte>(static_cast<int64_t>(for_chunk));
  for (int64_t i = 0; i < count; ++i) {
    Room own(parts[i].memory);
    bands[i].enter(parts[i].memory == nullptr ? all : own, Room(room));
  }
  for (int64_t index = parts->last_chunk - 1; index >= parts->first_chunk; --index) {
    for (int64_t i = 0; i < count; ++i) {
      const bool wraps = i + 1 == count;
      bands[i].walk_chunk(index, bands[wraps ? 0 : i + 1], wraps);
    }
  }
  for (const auto& band : bands) band.leave();
}

template <typename E>
size_t BandBytes(const WindowBackward<E>& p, const WindowTask& task) {
  const BandPart<Accumulate<E>> part;
  return BackwardBand<hn::ScalableTag<Accumulate<E>>, E>(p, task, part).kept_bytes();
}

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops::window {

template <typename E>
void backward_band_tasks(const WindowBackward<E>& p, const WindowTask* tasks, const BandPart<Accumulate<E>>* parts,
                         int64_t count) {
  AFT_DISPATCH(Banded<E>)(p, tasks, parts, count);
}

template <typename E>
size_t band_task_bytes(const WindowBackward<E>& p, const WindowTask& task) {
  return AFT_DISPATCH(BandBytes<E>)(p, task);
}

#define AFT_INSTANTIATE(E)                                                                                          \
  template void backward_band_tasks<E>(const WindowBackward<E>&, const WindowTask*, const BandPart<Accumulate<E>>*, \
                                       int64_t);                                                                    \
  template size_t band_task_bytes<E>(const WindowBackward<E>&, const WindowTask&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window
#endif

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

#include <bit>
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
#include "ops/window/backward-inl.h"
#include "ops/window/stripe-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

template <typename T>
constexpr T kRangeLimit = sizeof(T) == 4 ? T(60) : T(900);

// The sums of the lanes of four vectors, by transposing: a third of the instructions of four separate sums.
template <class D, class V = hn::Vec<D>, typename T = hn::TFromD<D>>
HWY_INLINE void SumLanesOf4(D d, V v0, V v1, V v2, V v3, T* sums) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (sizeof(T) == 4) {
    const hn::Repartition<double, D> dd;
    // Blocks of four lanes: [v0 v1 v0 v1] of lanes 0 + 2 and 1 + 3, then [v0 v1 v2 v3].
    const V v01 = hn::Add(hn::InterleaveLower(d, v0, v1), hn::InterleaveUpper(d, v0, v1));
    const V v23 = hn::Add(hn::InterleaveLower(d, v2, v3), hn::InterleaveUpper(d, v2, v3));
    const auto low = hn::InterleaveLower(dd, hn::BitCast(dd, v01), hn::BitCast(dd, v23));
    const auto high = hn::InterleaveUpper(dd, hn::BitCast(dd, v01), hn::BitCast(dd, v23));
    HWY_ALIGN T lanes[HWY_MAX_BYTES / sizeof(T)];
    hn::Store(hn::Add(hn::BitCast(d, low), hn::BitCast(d, high)), d, lanes);
    const hn::FixedTag<T, 4> d4;
    auto total = hn::Load(d4, lanes);
    for (size_t i = 4; i < hn::Lanes(d); i += 4) total = hn::Add(total, hn::Load(d4, lanes + i));
    hn::StoreU(total, d4, sums);
    return;
  }
#endif
  sums[0] = hn::GetLane(hn::SumOfLanes(d, v0));
  sums[1] = hn::GetLane(hn::SumOfLanes(d, v1));
  sums[2] = hn::GetLane(hn::SumOfLanes(d, v2));
  sums[3] = hn::GetLane(hn::SumOfLanes(d, v3));
}

template <class D, typename E>
class BackwardBand : BackwardTask<D, E> {
  using Base = BackwardTask<D, E>;
  using Base::chunk, Base::d, Base::gy, Base::has_final, Base::key_per_head, Base::lanes, Base::p, Base::q, Base::shape,
      Base::task, Base::vectors, Base::width;
  using typename Base::T;
  using typename Base::V;

 public:
  BackwardBand(const WindowBackward<E>& params, const WindowTask& window_task, const BandPart<T>& band_part)
      : Base(params, window_task), part(band_part), shares_row(params.grad_band.row_stride == 0) {
    panel_vectors = std::min(vectors, kPanelChannels<E> / lanes);
    chunks = chunk_count(shape, shape.time);
    reach = shape.causal ? shape.left : std::min(shape.left, shape.time);
    lag = whole_blocks(std::min(shape.right, shape.time));
    rows_capacity = reach + chunk + lag + kRows;
    ring = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows_capacity)));
    room = {panel_vectors, rows_capacity, rows_capacity, shape.causal ? 0 : chunk / kRows};
  }

  // What the task must remember from chunk to chunk.
  size_t kept_bytes() const {
    const int64_t boundary = shape.causal ? 0 : chunks * vectors * kBoundaryParts * lanes;
    return (shape.causal ? 0 : Stripe<D, E>::bytes(shape, task, room)) +
           Scratch::padded<T>(vectors * ring * 3 * lanes) + 2 * Scratch::padded<T>(vectors * kSumParts * lanes) +
           3 * Scratch::padded<T>(boundary);
  }
  // What serves one chunk: tasks that walk together share it.
  size_t chunk_bytes() const {
    return (shape.causal ? Stripe<D, E>::bytes(shape, task, room) : 0) +
           Scratch::padded<T>(panel_vectors * rows_capacity * 2 * lanes) +
           Scratch::padded<T>(rows_capacity / kRows * panel_vectors * kSumParts * lanes) +
           Scratch::padded<T>(panel_vectors * kRows * 2 * lanes) + Scratch::padded<bool>(panel_vectors) +
           Scratch::padded<T>(rows_capacity) + Scratch::padded<T>(shape.left + 1 + shape.right);
  }

  // Before the first of the part's chunks.
  void enter(Scratch& kept, Scratch for_chunk) {
    // A causal chunk restores the sums it starts from.
    Stripe<D, E>& s =
        stripe.emplace(shape, task, p, p.key_mask, p.initial_state, room, shape.causal ? for_chunk : kept);
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
    count_redone(RedoFamily::kWindow, stripe->redone,
                 (std::min(shape.time, part.last_chunk * chunk) - part.first_chunk * chunk) * stripe->width);
    Base::flush();
  }

 private:
  const BandPart<T>& part;
  bool shares_row;
  int64_t panel_vectors = 0;
  int64_t first = 0, last = 0;  // vectors of the panel at hand
  int64_t chunks = 0;
  int64_t reach = 0;          // how far windows reach to earlier sources
  int64_t lag = 0;            // how far, in whole blocks, they reach to later ones
  int64_t rows_capacity = 0;  // targets that the sources of a chunk see; sources that its targets see
  int64_t ring = 0;
  typename Stripe<D, E>::Room room;
  std::optional<Stripe<D, E>> stripe;
  const BackwardBand* follower = nullptr;  // walks next, follower_rows before this one
  int64_t follower_rows = 0;
  T* target = nullptr;      // [vectors][ring][3][lanes]: a, b, exponent of target t at t % ring
  T* scaled = nullptr;      // [panel][rows_capacity][2][lanes]: a', b'
  T* later = nullptr;       // [vectors][kSumParts][lanes]: sums of b and a of the targets after the window
  T* earlier = nullptr;     // not causal: the same of those before a chunk
  T* before = nullptr;      // not causal: [blocks][panel][kSumParts][lanes], those before each block's window
  T* dw_rows = nullptr;     // [panel][kRows][2][lanes]: a' 2^X, b' of a block of targets
  bool* exact = nullptr;    // [panel]: out of range in this chunk
  T* chunk_band = nullptr;  // [J]: the chunk's part of the gradient of a shared row
  T* key_sums = nullptr;    // [rows_capacity]: dk of source first_source - reach + i where a head shares its key
  // Not causal, boundaries of every chunk: the sources after its windows, the sources before its first window, the
  // targets before it.
  T* ends = nullptr;
  T* starts = nullptr;
  T* targets_before = nullptr;
  int64_t first_source = 0, last_source = 0;  // the chunk's sources
  int64_t later_from = 0;                     // targets >= this are in `later`
  T den_sum = 0;                              // gradient of the initial den where a head shares it

  int64_t target_end() const { return shape.time + (has_final ? 1 : 0); }
  // First source done with chunk `index`; later ones are done.
  int64_t source_begin(int64_t index) const {
    return index == 0 ? 0 : index == chunks ? shape.time : std::min(shape.time, index * chunk + lag);
  }
  T* target_row(int64_t j, int64_t t) const { return target + (j * ring + (t & (ring - 1))) * 3 * lanes; }
  T* before_row(int64_t sb, int64_t j) const {
    return before + ((sb - first_source) / kRows * panel_vectors + j - first) * kSumParts * lanes;
  }
  T* scaled_row(int64_t j, int64_t i) const { return scaled + ((j - first) * rows_capacity + i) * 2 * lanes; }

  void take(Scratch& kept, Scratch& for_chunk) {
    const int64_t boundary = shape.causal ? 0 : chunks * vectors * kBoundaryParts * lanes;
    target = kept.take<T>(vectors * ring * 3 * lanes);
    later = kept.take<T>(vectors * kSumParts * lanes);
    earlier = kept.take<T>(vectors * kSumParts * lanes);
    ends = kept.take<T>(boundary);
    starts = kept.take<T>(boundary);
    targets_before = kept.take<T>(boundary);
    scaled = for_chunk.take<T>(panel_vectors * rows_capacity * 2 * lanes);
    before = for_chunk.take<T>(rows_capacity / kRows * panel_vectors * kSumParts * lanes);
    dw_rows = for_chunk.take<T>(panel_vectors * kRows * 2 * lanes);
    exact = for_chunk.take<bool>(panel_vectors);
    key_sums = for_chunk.take<T>(rows_capacity);
    chunk_band = for_chunk.take<T>(shape.left + 1 + shape.right);
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
    scale_targets(s, begin, end);
    if (!shape.causal) sum_before(s, index, begin);
    if (part.sums != nullptr) {
      if (shares_row) std::fill_n(chunk_band, s.weights.span, T(0));
      band_gradient(s, begin, end);
      if (shares_row) add_chunk_band(s.weights.span);
    }
    for (int64_t source = first_source + (last_source - first_source - 1) / kRows * kRows;
         last_source > first_source && source >= first_source; source -= kRows) {
      source_block(s, source, std::min(kRows, last_source - source), begin);
    }
    if (begin == 0 && p.initial_state.position != nullptr) initial_gradient(s);
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

  // What a target's row leaves behind: a, b and their exponent (times 2^W, which the window's weights w~ lack), and dq.
  HWY_INLINE void leave_row(int64_t t, int64_t j, const RowSums<V>& row, T w, bool writes_query) const {
    const TargetGrad<V> grad = Base::target_grad(t, j, row.den, row.num, row.value_scale);
    const auto empty = hn::Eq(row.den, hn::Zero(d));
    const V den_exponent = ExponentOf(d, row.den);
    const V normal = Pow2(d, den_exponent);
    const V exponent = hn::Sub(hn::Set(d, w), hn::Add(row.exponent, den_exponent));
    T* to = target_row(j, t);
    hn::Store(hn::Mul(grad.a, normal), d, to);
    hn::Store(hn::Mul(grad.b, normal), d, to + lanes);
    hn::Store(hn::IfThenElse(empty, hn::Set(d, kExponentFloor<T>), exponent), d, to + 2 * lanes);
    if (writes_query) Base::write_query(t, j, grad.grad_q);
  }

  // The virtual target at T: what the gradient of the final sums, whose maximum is `max`, asks of every source before
  // the ring.
  void leave_final(const Stripe<D, E>& s, int64_t j, V max) const {
    const TargetGrad<V> grad = Base::final_grad(s, j);
    const auto seen = hn::Gt(max, hn::Set(d, kExponentFloor<T>));
    T* to = target_row(j, shape.time);
    hn::Store(hn::IfThenElseZero(seen, grad.a), d, to);
    hn::Store(hn::IfThenElseZero(seen, grad.b), d, to + lanes);
    hn::Store(hn::IfThenElse(seen, hn::Neg(max), hn::Set(d, kExponentFloor<T>)), d, to + 2 * lanes);
  }

  void prefetch_rows(int64_t j, int64_t t) const {
    stripe->prefetch_sources(j, t);
    stripe->prefetch(gy, p.grad_y.time_stride, j, t);
    if (q != nullptr) stripe->prefetch(q, p.q.time_stride, j, t);
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
    if (!Base::streams_v) s.prefetch_to_write(Base::grad_v, p.grad_v.time_stride, j, sb - kRows);
    if (!Base::streams_k && !key_per_head) s.prefetch_to_write(Base::grad_k, p.grad_k.time_stride, j, sb - kRows);
  }

  // Phase 1: the forward of the chunk's rows, from the sums at its start.
  void recompute(Stripe<D, E>& s, int64_t index, int64_t begin, int64_t end, bool writes_query) {
    for (int64_t j = first; j < last; ++j) {
      const int64_t from = std::max(s.sources.first, begin - reach);
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

  // a' and b' of the chunk's rows and of the later ones its sources see; which vectors are out of range.
  void scale_targets(Stripe<D, E>& s, int64_t begin, int64_t end) const {
    const V limit = hn::Set(d, kRangeLimit<T>);
    const int64_t rows = std::min(rows_capacity, target_end() - begin);
    for (int64_t j = first; j < last; ++j) {
      const V m = hn::Load(d, s.scale + j * 2 * lanes);
      V peak = hn::Neg(limit);
      T* to = scaled_row(j, 0);
      for (int64_t i = 0; i < rows; ++i, to += 2 * lanes) {
        const T* from = target_row(j, begin + i);
        const V exponent = hn::Add(hn::Load(d, from + 2 * lanes), m);
        peak = hn::Max(exponent, peak);
        const V scale = Pow2(d, hn::Min(exponent, limit));
        hn::Store(hn::Mul(hn::Load(d, from), scale), d, to);
        hn::Store(hn::Mul(hn::Load(d, from + lanes), scale), d, to + lanes);
      }
      // The band's gradient takes a' 2^X: it must not overflow either.
      const V x = hn::Load(d, s.scale + j * 2 * lanes + lanes);
      const auto beyond = hn::Gt(hn::Add(peak, hn::Max(x, hn::Zero(d))), limit);
      exact[j - first] = s.redo && !hn::AllFalse(d, beyond);
      if (exact[j - first]) s.redone += (end - begin) * static_cast<int64_t>(hn::CountTrue(d, beyond));
    }
  }

  // w: the exponent W of the target's weights.
  void add_target(RunningSum<V>& sum, int64_t j, int64_t t, T w) const {
    const T* from = target_row(j, t);
    AddTerm(d, sum, hn::Sub(hn::Load(d, from + 2 * lanes), hn::Set(d, w)), hn::Load(d, from + lanes),
            hn::Load(d, from));
  }

  // The targets [begin, begin + kRows), added to each other first (see Stripe::pass_out).
  void add_targets(RunningSum<V>& sum, int64_t j, int64_t begin, const T* w) const {
    V exponent[kRows];
    V max = sum.max;
    for (int64_t r = 0; r < kRows; ++r) {
      exponent[r] = hn::Sub(hn::Load(d, target_row(j, begin + r) + 2 * lanes), hn::Set(d, w[r]));
      max = hn::Max(exponent[r], max);
    }
    if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Eq(max, sum.max)))) Rescale(d, sum, max);
    V a = hn::Zero(d), b = a;
    for (int64_t r = 0; r < kRows; ++r) {
      const T* from = target_row(j, begin + r);
      const V scale = Pow2(d, hn::Sub(exponent[r], max));
      a = hn::MulAdd(hn::Load(d, from), scale, a);
      b = hn::MulAdd(hn::Load(d, from + lanes), scale, b);
    }
    const V one = hn::Set(d, T(1));
    AddCompensated(a, one, sum.num, sum.num_low);
    AddCompensated(b, one, sum.den, sum.den_low);
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
          if (sb + r < s.sources.first) continue;
          const V a = hn::Add(hn::Add(sum_a[r], later_sums.a), earlier_sums.a);
          const V b = hn::Add(hn::Add(sum_b[r], later_sums.b), earlier_sums.b);
          Base::write_source(s, j, sb + r, hn::Load(d, s.slot(j, sb + r)), a, b, key_sum(r));
        }
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          if (sb + r >= s.sources.first) exact_source(s, j, sb + r, begin, low, high, after, sooner, key_sum(r));
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

  void add_pair(V p_pair, V n, V a, V b, V& sum_a, V& sum_b) const {
    const V scale = hn::Mul(p_pair, Pow2(d, hn::Min(n, hn::Set(d, T(120)))));
    sum_a = hn::MulAdd(scale, a, sum_a);
    sum_b = hn::MulAdd(scale, b, sum_b);
  }

  // dk where a head shares its key, once all its channels are in; with the first chunk also of the ring's sources.
  void write_keys(const Stripe<D, E>& s) const {
    const bool ring_too = first_source == 0 && p.initial_state.position != nullptr;
    for (int64_t source = ring_too ? s.sources.first : first_source; source < last_source; ++source) {
      Base::write_key(s, source, 0, hn::Set(d, key_sums[source - first_source + reach]), 1);
    }
  }

  // Phase 3: dw of the chunk's targets, summed over the channels of the panel.
  void band_gradient(const Stripe<D, E>& s, int64_t begin, int64_t end) const {
    for (int64_t tb = begin; tb < end; tb += kRows) {
      const int64_t rows = std::min(kRows, end - tb);
      for (int64_t j = first; j < last; ++j) {
        const V x = Pow2(d, hn::Load(d, s.scale + j * 2 * lanes + lanes));
        const T* from = scaled_row(j, tb - begin);
        T* to = dw_rows + (j - first) * kRows * 2 * lanes;
        for (int64_t r = 0; r < kRows; ++r, from += 2 * lanes, to += 2 * lanes) {
          const bool used = r < rows && !exact[j - first];
          hn::Store(used ? hn::Mul(hn::Load(d, from), x) : hn::Zero(d), d, to);
          hn::Store(used ? hn::Load(d, from + lanes) : hn::Zero(d), d, to + lanes);
        }
      }
      const int64_t low = std::max(s.sources.first, tb - shape.left);
      const int64_t high = std::min(shape.time, tb + rows + shape.right);
      for (int64_t source = low; source < high; source += kRows) pair_sums(s, tb, rows, begin, source, high);
      for (int64_t j = first; j < last; ++j) {
        if (exact[j - first]) exact_band(s, j, tb, rows, begin);
      }
    }
  }

  // Row t of the panel's gradient; where all positions share a row, the chunk's part of it.
  T* band_row(const Stripe<D, E>& s, int64_t t) const {
    if (shares_row) return chunk_band;
    return part.sums + (first / panel_vectors * part.rows + t - part.first_chunk * chunk) * s.weights.span;
  }

  // Chunk by chunk: one long sum over all positions would lose more to rounding.
  void add_chunk_band(int64_t span) const {
    T* to = part.sums + first / panel_vectors * span;
    for (int64_t i = 0; i < span; ++i) to[i] += chunk_band[i];
  }

  // dw of targets tb .. tb + rows - 1 against the kRows sources from `source` on, of which those before `high` count.
  HWY_INLINE void pair_sums(const Stripe<D, E>& s, int64_t tb, int64_t rows, int64_t begin, int64_t source,
                            int64_t high) const {
    V sum[kRows][kRows];
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t i = 0; i < kRows; ++i) sum[r][i] = hn::Zero(d);
    }
    for (int64_t j = first; j < last; ++j) {
      const T* x = s.slot(j, source);
      const T* g = dw_rows + (j - first) * kRows * 2 * lanes;
      for (int64_t r = 0; r < kRows; ++r) {
        const V a = hn::Load(d, g + r * 2 * lanes);
        const V b = hn::Load(d, g + r * 2 * lanes + lanes);
        for (int64_t i = 0; i < kRows; ++i) {
          sum[r][i] = hn::MulAdd(hn::Load(d, x + i * 2 * lanes + lanes), a, sum[r][i]);
          sum[r][i] = hn::NegMulAdd(hn::Load(d, x + i * 2 * lanes), b, sum[r][i]);
        }
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      T total[kRows];
      SumLanesOf4(d, sum[r][0], sum[r][1], sum[r][2], sum[r][3], total);
      const int64_t at = source - tb - r + shape.left;
      const T* HWY_RESTRICT w = s.weights.at(tb + r - begin, 0);
      T* HWY_RESTRICT to = band_row(s, tb + r);
      if (HWY_LIKELY(at >= 0 && at + kRows <= s.weights.span && source + kRows <= high)) {
        for (int64_t i = 0; i < kRows; ++i) to[at + i] += w[at + i] * total[i];
      } else {
        const int64_t from = std::max<int64_t>(0, -at);
        const int64_t until = std::min({kRows, s.weights.span - at, high - source});
        for (int64_t i = from; i < until; ++i) to[at + i] += w[at + i] * total[i];
      }
    }
  }

  HWY_NOINLINE void exact_band(const Stripe<D, E>& s, int64_t j, int64_t tb, int64_t rows, int64_t begin) const {
    for (int64_t t = tb; t < tb + rows; ++t) {
      const T* from = target_row(j, t);
      const V a = hn::Load(d, from);
      const V b = hn::Load(d, from + lanes);
      const V exponent = hn::Sub(hn::Load(d, from + 2 * lanes), hn::Set(d, s.weights.exponent[t - begin]));
      const int64_t low = std::max(s.sources.first, t - shape.left);
      const int64_t high = std::min(shape.time, t + 1 + shape.right);
      for (int64_t source = low; source < high; ++source) {
        const int64_t at = source - t + shape.left;
        const V key = s.source_key(source, j);
        const V value = MaskAbsent(d, key, s.source_value(source, j));
        const SplitExp<V> e = Split(d, key);
        const SplitExp<V> w = Split(d, hn::Set(d, s.band[t * s.band_stride + at]));
        V sum_a = hn::Zero(d), sum_b = sum_a;
        add_pair(hn::Mul(e.p, w.p), hn::Add(hn::Add(e.n, w.n), exponent), a, b, sum_a, sum_b);
        const V terms = hn::MulSub(value, sum_a, sum_b);
        band_row(s, t)[at] += hn::GetLane(hn::SumOfLanes(d, terms));
      }
    }
  }

  // Gradient of the initial state: its ring are sources before 0, its sums are seen by every target.
  void initial_gradient(Stripe<D, E>& s) {
    for (int64_t sb = -kRows; sb + kRows > s.sources.first; sb -= kRows) source_block(s, sb, kRows, 0);
    for (int64_t j = first; j < last; ++j) {
      RunningSum<V> sum = s.load_sums(later + j * kSumParts * lanes);
      for (int64_t t = later_from - 1; t >= 0; --t) add_target(sum, j, t, s.weights.exponent[t]);
      initial_sums_gradient(s, j, sum);
    }
  }

  void initial_sums_gradient(const Stripe<D, E>& s, int64_t j, const RunningSum<V>& sum) {
    const RunningSum<V> initial = s.initial_sums(p.initial_state, j);
    const V seen = Pow2(d, hn::Min(hn::Add(sum.max, initial.max), hn::Set(d, T(120))));
    Base::write_initial_sums(j, hn::Mul(sum.num, seen), hn::Neg(hn::Mul(sum.den, seen)), den_sum);
  }

  // T = 0: the final state is the initial one.
  void ring_passes(Stripe<D, E>& s) {
    if (p.initial_state.position == nullptr) return;
    std::fill_n(key_sums, reach, T(0));
    for (int64_t j = 0; j < vectors; ++j) {
      for (int64_t source = s.sources.first; source < 0; ++source) {
        T zero = 0;
        Base::write_source(s, j, source, hn::Zero(d), hn::Zero(d), hn::Zero(d), zero);
      }
      RunningSum<V> sum = no_sum();
      if (has_final) {
        leave_final(s, j, s.initial_sums(p.initial_state, j).max);
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
  Scratch scratch(kept + Scratch::padded<std::byte>(static_cast<int64_t>(for_chunk)));
  auto* const room = scratch.take<std::byte>(static_cast<int64_t>(for_chunk));
  for (int64_t i = 0; i < count; ++i) {
    Scratch own(parts[i].memory);
    bands[i].enter(parts[i].memory == nullptr ? scratch : own, Scratch(room));
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

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {

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

}  // namespace aft::ops
#endif

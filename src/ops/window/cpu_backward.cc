// Backward of the windowed operator on the CPU. Cost and layout: README.md.
//
// With a[t] = gy gate / D and b[t] = a N/D:   dv[t'] = e^k sum_t e^w a[t]    dk[t'] = v dv - e^k sum_t e^w b[t]
// and dw[t,t'] = e^w sum_c e^k (v a[t] - b[t]): the sums over t are the operator run backwards with key -log D.
//
// Chunks are walked right to left. In each, the forward is recomputed from the saved sums (phase 1), leaving a, b and
// an exponent per row, normalised so that a row is worth a 2^exponent. Then everything is brought to the chunk's scale:
// K = e^k 2^-M as in the forward, a' = a 2^(exponent + M). K is at most sqrt(2), so what a product loses is harmless as
// long as a' stays below 2^kRangeLimit; a vector of channels that exceeds it is computed exactly in this chunk.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aft/ops/window.h"
#include "ops/common/scratch.h"
#include "ops/window/check.h"
#include "ops/window/plan.h"
#include "ops/window/redo.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/window/cpu_backward.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/exp-inl.h"
#include "ops/window/gate-inl.h"
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

template <class D>
class BackwardTask {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  // grad_band: [pieces][T][J] of this task alone, zeroed; null: not wanted.
  BackwardTask(const WindowBackward<T>& params, const WindowTask& window_task, T* band_gradient)
      : p(params), shape(params.shape), task(window_task), grad_band(band_gradient) {
    const int64_t b = task.batch;
    if (shape.gate != Gate::kNone) {
      q = p.q.data + b * p.q.batch_stride + task.begin;
      grad_q = p.grad_q.data + b * p.grad_q.batch_stride + task.begin;
    }
    gy = p.grad_y.data + b * p.grad_y.batch_stride + task.begin;
    key_per_head = shape.key_channels != shape.channels;
    key_begin = key_per_head ? task.head : task.begin;
    grad_k = p.grad_k.data + b * p.grad_k.batch_stride + key_begin;
    grad_v = p.grad_v.data + b * p.grad_v.batch_stride + task.begin;
    lanes = static_cast<int64_t>(hn::Lanes(d));
    vectors = (task.end - task.begin + lanes - 1) / lanes;
    chunk = shape.causal ? chunk_rows(shape) : std::max<int64_t>(1, shape.time);
    const int64_t task_width = task.end - task.begin;
    streams_q = grad_q != nullptr && streams_past_caches(shape, grad_q, p.grad_q.time_stride, task_width);
    streams_k = !key_per_head && streams_past_caches(shape, grad_k, p.grad_k.time_stride, task_width);
    streams_v = streams_past_caches(shape, grad_v, p.grad_v.time_stride, task_width);
    has_final = p.grad_final_state.num != nullptr || p.grad_final_state.den != nullptr;
  }

  void run() {
    if (shape.has_band) {
      banded();
    } else if (shape.causal) {
      simple_causal();
    } else {
      simple_whole();
    }
    if (streams_q || streams_k || streams_v) hwy::FlushStream();
  }

 private:
  const WindowBackward<T>& p;
  const WindowShape& shape;
  const WindowTask& task;
  T* grad_band;
  const T* q = nullptr;
  T* grad_q = nullptr;
  const T* gy = nullptr;
  T* grad_k = nullptr;
  T* grad_v = nullptr;
  bool key_per_head = false;
  int64_t key_begin = 0;
  D d;
  int64_t lanes = 0, vectors = 0, chunk = 0;
  bool streams_q = false, streams_k = false, streams_v = false;
  bool has_final = false;  // a virtual target at T carries the gradient of the final sums

  int64_t rows_capacity = 0;
  T* target = nullptr;     // [vectors][rows_capacity][3][lanes]: a, b, exponent
  T* scaled = nullptr;     // [vectors][rows_capacity][2][lanes]: a', b'
  T* later = nullptr;      // [vectors][kSumParts][lanes]: sums of b and a of the targets after the window
  T* earlier = nullptr;    // not causal: [blocks][vectors][kSumParts][lanes], targets before each block's window
  T* block = nullptr;      // [left + right + kRows][kRows]: target i of the block against its sources
  T* dw_rows = nullptr;    // [vectors][kRows][2][lanes]: a' 2^X, b' of a block of targets
  bool* exact = nullptr;   // [vectors]: out of range in this chunk
  int64_t later_from = 0;  // targets >= this are in `later`

  int64_t target_end() const { return shape.time + (has_final ? 1 : 0); }
  T* target_row(int64_t j, int64_t i) const { return target + (j * rows_capacity + i) * 3 * lanes; }
  T* scaled_row(int64_t j, int64_t i) const { return scaled + (j * rows_capacity + i) * 2 * lanes; }

  size_t bytes(int64_t window_rows, int64_t weight_rows, int64_t blocks) const {
    const int64_t reach = shape.left + shape.right + kRows;
    return Stripe<D>::bytes(shape, task.end - task.begin, window_rows, weight_rows, blocks) +
           Scratch::padded<T>(vectors * rows_capacity * 3 * lanes) +
           Scratch::padded<T>(vectors * rows_capacity * 2 * lanes) + Scratch::padded<T>(vectors * kSumParts * lanes) +
           Scratch::padded<T>(blocks * vectors * kSumParts * lanes) + Scratch::padded<T>(reach * kRows) +
           Scratch::padded<T>(vectors * kRows * 2 * lanes) + Scratch::padded<bool>(vectors);
  }

  void take(Scratch& scratch, int64_t blocks) {
    const int64_t reach = shape.left + shape.right + kRows;
    target = scratch.take<T>(vectors * rows_capacity * 3 * lanes);
    scaled = scratch.take<T>(vectors * rows_capacity * 2 * lanes);
    later = scratch.take<T>(vectors * kSumParts * lanes);
    earlier = scratch.take<T>(blocks * vectors * kSumParts * lanes);
    block = scratch.take<T>(reach * kRows);
    dw_rows = scratch.take<T>(vectors * kRows * 2 * lanes);
    exact = scratch.take<bool>(vectors);
  }

  RunningSum<V> no_sum() const { return StartSum(d, hn::Set(d, kExponentFloor<T>)); }

  // What a target's row leaves behind: a, b and their exponent (times 2^W, which the window's weights w~ lack), and dq.
  void leave_row(const Stripe<D>& s, int64_t t, int64_t j, int64_t i, const RowSums<V>& row, T w) const {
    const int64_t at = j * lanes;
    const int64_t n = s.count(j);
    const V g = LoadSome(d, gy + t * p.grad_y.time_stride + at, n);
    const V query = shape.gate == Gate::kNone ? hn::Zero(d) : LoadSome(d, q + t * p.q.time_stride + at, n);
    const GateValue<V> gate = EvaluateGate(d, shape.gate, query);
    const auto empty = hn::Eq(row.den, hn::Zero(d));
    const V inverse = hn::IfThenZeroElse(empty, hn::Div(hn::Set(d, T(1)), row.den));
    const V ratio = hn::Mul(hn::IfThenZeroElse(empty, hn::Div(row.num, row.den)), row.value_scale);
    const V den_exponent = hn::IfThenZeroElse(empty, ExponentOf(d, row.den));
    const V a = hn::Mul(hn::Mul(g, gate.value), hn::Mul(inverse, Pow2(d, den_exponent)));
    T* to = target_row(j, i);
    hn::Store(a, d, to);
    hn::Store(hn::Mul(a, ratio), d, to + lanes);
    const V exponent = hn::Sub(hn::Set(d, w), hn::Add(row.exponent, den_exponent));
    hn::Store(hn::IfThenElse(empty, hn::Set(d, kExponentFloor<T>), exponent), d, to + 2 * lanes);
    if (grad_q != nullptr) {
      StoreOut(hn::Mul(hn::Mul(g, ratio), gate.slope), d, grad_q + t * p.grad_q.time_stride + at, n, streams_q);
    }
  }

  // The virtual target at T: what the gradient of the final sums asks of every source before the ring.
  void leave_final(const Stripe<D>& s, int64_t j, int64_t i, V max) const {
    V g_num = hn::Zero(d);
    V g_den = g_num;
    if (p.grad_final_state.num != nullptr) {
      g_num = s.load_value(p.grad_final_state.num + task.batch * shape.channels + task.begin, j);
    }
    if (p.grad_final_state.den != nullptr) {
      g_den = s.load_key(p.grad_final_state.den + task.batch * shape.key_channels + key_begin, j);
      if (key_per_head) g_den = j == 0 ? hn::IfThenElseZero(hn::FirstN(d, 1), g_den) : hn::Zero(d);
    }
    const auto seen = hn::Gt(max, hn::Set(d, kExponentFloor<T>));
    T* to = target_row(j, i);
    hn::Store(hn::IfThenElseZero(seen, g_num), d, to);
    hn::Store(hn::IfThenElseZero(seen, hn::Neg(g_den)), d, to + lanes);
    hn::Store(hn::IfThenElse(seen, hn::Neg(max), hn::Set(d, kExponentFloor<T>)), d, to + 2 * lanes);
  }

  void restore_sums(const Stripe<D>& s, int64_t index) const {
    const T* from = p.saved + (task.batch * chunk_count(shape) + index) * 3 * shape.channels + task.begin;
    for (int64_t j = 0; j < vectors; ++j) {
      const int64_t n = s.count(j);
      RunningSum<V> sum = StartSum(d, LoadSome(d, from + j * lanes, n));
      sum.den = LoadSome(d, from + shape.channels + j * lanes, n);
      sum.num = LoadSome(d, from + 2 * shape.channels + j * lanes, n);
      s.store_sums(sum, s.sums + j * kSumParts * lanes);
    }
  }

  void banded() {
    const bool causal = shape.causal;
    const int64_t blocks = causal ? 0 : (shape.time + kRows - 1) / kRows;
    const int64_t window_rows = (causal ? shape.left : 0) + chunk + kRows;
    const int64_t weight_rows = causal ? chunk + shape.left + kRows : shape.time;
    rows_capacity = chunk + shape.left + kRows;
    Scratch scratch(bytes(window_rows, weight_rows, blocks));
    Stripe<D> s(shape, task, p.k, p.v, p.band, p.initial_state, window_rows, weight_rows, blocks, scratch);
    take(scratch, blocks);
    s.redo = redo_enabled();
    for (int64_t j = 0; j < vectors; ++j) s.store_sums(no_sum(), later + j * kSumParts * lanes);
    later_from = target_end();

    int64_t begin = (shape.time - 1) / chunk * chunk;
    for (; shape.time > 0 && begin >= 0; begin -= chunk) {
      const int64_t end = std::min(begin + chunk, shape.time);
      if (end < shape.time) keep_targets();
      recompute(s, begin, end);
      if (end == shape.time && has_final) {
        for (int64_t j = 0; j < vectors; ++j)
          leave_final(s, j, end - begin, hn::Load(d, s.sums + j * kSumParts * lanes));
      }
      scale_targets(s, begin, end, std::min(rows_capacity, target_end() - begin));
      if (!causal) sum_earlier(s, blocks);
      if (grad_band != nullptr) band_gradient(s, begin, end);
      for (int64_t source = begin + (end - begin - 1) / kRows * kRows; source >= begin; source -= kRows) {
        source_block(s, source, std::min(kRows, end - source), begin);
      }
    }
    if (p.initial_state.position != nullptr) initial_gradient(s);
    count_redone(s.redone, shape.time * s.width);
  }

  // The first targets of the chunk just done are seen by the sources of the one before it.
  void keep_targets() const {
    const int64_t keep = std::min(shape.left + kRows, rows_capacity - chunk);
    for (int64_t j = 0; j < vectors; ++j) {
      const T* from = target_row(j, 0);
      std::copy_backward(from, from + keep * 3 * lanes, target_row(j, chunk) + keep * 3 * lanes);
    }
  }

  void prefetch_rows(const Stripe<D>& s, int64_t j, int64_t t) const {
    s.prefetch(gy, p.grad_y.time_stride, j, t);
    if (q != nullptr) s.prefetch(q, p.q.time_stride, j, t);
  }

  // Phase 1: the forward of the chunk's rows.
  void recompute(Stripe<D>& s, int64_t begin, int64_t end) {
    if (!shape.causal) {
      s.prepare_whole();
      for (int64_t tb = 0; tb < shape.time; tb += kRows) {
        const int64_t rows = std::min(kRows, shape.time - tb);
        s.prepare_block(tb, rows, 0);
        for (int64_t j = 0; j < vectors; ++j) {
          s.whole_block(j, tb, rows, 0, tb / kRows, [&](int64_t r, const RowSums<V>& row) {
            leave_row(s, tb + r, j, tb + r, row, s.weights.exponent[tb + r]);
          });
        }
      }
      return;
    }
    restore_sums(s, begin / chunk);
    s.base = begin - shape.left;
    const int64_t first = std::max(s.sources.first, begin - shape.left);
    s.keep_from = first;
    for (int64_t j = 0; j < vectors; ++j) {
      s.start_scale(j, s.load_sums(s.sums + j * kSumParts * lanes));
      s.preload(j, first, begin);
    }
    s.prepare_rows(begin, std::min(shape.time, end + shape.left + kRows));
    for (int64_t tb = begin; tb < end; tb += kRows) {
      const int64_t rows = std::min(kRows, end - tb);
      s.prepare_block(tb, rows, begin);
      for (int64_t j = 0; j < vectors; ++j) {
        prefetch_rows(s, j, tb + kRows);
        s.causal_block(j, tb, rows, begin, [&](int64_t r, const RowSums<V>& row) {
          leave_row(s, tb + r, j, tb + r - begin, row, s.weights.exponent[tb + r - begin]);
        });
      }
    }
  }

  // a' and b' of the chunk's rows and of the later ones its sources see; which vectors are out of range.
  void scale_targets(Stripe<D>& s, int64_t begin, int64_t end, int64_t rows) const {
    const V limit = hn::Set(d, kRangeLimit<T>);
    for (int64_t j = 0; j < vectors; ++j) {
      const V m = hn::Load(d, s.scale + j * 2 * lanes);
      V peak = hn::Neg(limit);
      for (int64_t i = 0; i < std::min(rows, target_end() - begin); ++i) {
        const T* from = target_row(j, i);
        const V exponent = hn::Add(hn::Load(d, from + 2 * lanes), m);
        peak = hn::Max(exponent, peak);
        const V scale = Pow2(d, hn::Min(exponent, limit));
        T* to = scaled_row(j, i);
        hn::Store(hn::Mul(hn::Load(d, from), scale), d, to);
        hn::Store(hn::Mul(hn::Load(d, from + lanes), scale), d, to + lanes);
      }
      // The band's gradient takes a' 2^X: it must not overflow either.
      const V x = hn::Load(d, s.scale + j * 2 * lanes + lanes);
      const auto beyond = hn::Gt(hn::Add(peak, hn::Max(x, hn::Zero(d))), limit);
      exact[j] = s.redo && !hn::AllFalse(d, beyond);
      if (exact[j]) s.redone += (end - begin) * static_cast<int64_t>(hn::CountTrue(d, beyond));
    }
  }

  void add_target(RunningSum<V>& sum, int64_t j, int64_t i, T w) const {
    const T* from = target_row(j, i);
    AddTerm(d, sum, hn::Sub(hn::Load(d, from + 2 * lanes), hn::Set(d, w)), hn::Load(d, from + lanes),
            hn::Load(d, from));
  }

  T row_exponent(const Stripe<D>& s, int64_t t, int64_t begin) const {
    return t < shape.time ? s.weights.exponent[t - begin] : T(0);
  }

  // Not causal: the targets before each block's window.
  void sum_earlier(const Stripe<D>& s, int64_t blocks) const {
    for (int64_t j = 0; j < vectors; ++j) {
      RunningSum<V> sum = no_sum();
      int64_t next = 0;
      for (int64_t i = 0; i < blocks; ++i) {
        for (; next < i * kRows - shape.right; ++next) add_target(sum, j, next, row_exponent(s, next, 0));
        s.store_sums(sum, earlier + (i * vectors + j) * kSumParts * lanes);
      }
    }
  }

  // Targets [low, high) that the sources sb .. sb + kRows - 1 see one by one; what lies beyond is in the running sums.
  int64_t targets_low(int64_t sb) const { return std::max<int64_t>(0, shape.causal ? sb : sb - shape.right); }
  int64_t targets_high(int64_t sb) const { return std::min(target_end(), sb + kRows + shape.left); }

  // Weights of the block's targets against its sources: w~, or 2^-W where the source lies outside the target's window.
  void prepare_targets(const Stripe<D>& s, int64_t sb, int64_t begin, int64_t low, int64_t high) const {
    for (int64_t t = low; t < high; ++t) {
      T* to = block + (t - low) * kRows;
      for (int64_t r = 0; r < kRows; ++r) {
        const int64_t j = sb + r - t + shape.left;
        if (t == shape.time) {  // the final sums: sources before the ring
          to[r] = sb + r < shape.time - shape.left ? T(1) : T(0);
        } else if (j < 0 || j >= s.weights.span) {
          to[r] = shape.causal && j >= s.weights.span ? T(0) : s.weights.outside[t - begin];
        } else {
          to[r] = s.weights.row[(t - begin) * s.weights.span + j];
        }
      }
    }
  }

  // Phase 2: dk and dv of the sources sb .. sb + rows - 1; negative ones are in the ring of the initial state.
  void source_block(const Stripe<D>& s, int64_t sb, int64_t rows, int64_t begin) {
    const int64_t low = targets_low(sb);
    const int64_t high = targets_high(sb);
    const int64_t beyond = sb + kRows + shape.left;
    prepare_targets(s, sb, begin, low, high);
    T key_sum[kRows] = {};
    for (int64_t j = 0; j < vectors; ++j) {
      RunningSum<V> after = s.load_sums(later + j * kSumParts * lanes);
      for (int64_t t = later_from - 1; t >= beyond; --t) add_target(after, j, t - begin, row_exponent(s, t, begin));
      s.store_sums(after, later + j * kSumParts * lanes);
      const RunningSum<V> before =
          shape.causal ? no_sum() : s.load_sums(earlier + (sb / kRows * vectors + j) * kSumParts * lanes);
      const V m = hn::Load(d, s.scale + j * 2 * lanes);
      const V outside = hn::Add(hn::Max(after.max, before.max), m);
      const bool in_range = hn::AllFalse(d, hn::Gt(outside, hn::Set(d, kRangeLimit<T>)));
      if (HWY_LIKELY((!exact[j] && in_range) || !s.redo)) {
        V sum_a[kRows], sum_b[kRows];
        window_sums(s, j, sb, begin, low, high, sum_a, sum_b);
        for (int64_t r = 0; r < rows; ++r) {
          if (sb + r < s.sources.first) continue;
          add_beyond(after, m, sum_a[r], sum_b[r]);
          add_beyond(before, m, sum_a[r], sum_b[r]);
          const V k = hn::Load(d, s.slot(j, sb + r));
          write_source(s, j, sb + r, k, sum_a[r], sum_b[r], key_sum[r]);
        }
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          if (sb + r < s.sources.first) continue;
          exact_source(s, j, sb + r, begin, low, high, after, before, key_sum[r]);
        }
      }
    }
    later_from = std::min(later_from, std::max<int64_t>(0, beyond));
    if (!key_per_head) return;
    for (int64_t r = 0; r < rows; ++r) {
      if (sb + r >= s.sources.first) write_key(s, sb + r, 0, hn::Set(d, key_sum[r]), 1);
    }
  }

  void add_beyond(const RunningSum<V>& sum, V m, V& a, V& b) const {
    const V scale = Pow2(d, hn::Min(hn::Add(sum.max, m), hn::Set(d, kRangeLimit<T>)));
    a = hn::MulAdd(sum.num, scale, a);
    b = hn::MulAdd(sum.den, scale, b);
  }

  // sum over the targets [low, high) of w~ a' and w~ b' for the kRows sources of the block.
  HWY_INLINE void window_sums(const Stripe<D>& s, int64_t j, int64_t sb, int64_t begin, int64_t low, int64_t high,
                              V* sum_a, V* sum_b) const {
    if (!shape.causal || low >= sb + kRows) {
      s.accumulate(block, scaled_row(j, low - begin), high - low, sum_a, sum_b);
      return;
    }
    // The block's own targets: target m is seen by the sources r <= m, and must not touch the others.
    const int64_t own = std::min(high, sb + kRows);
    s.accumulate(block + (own - low) * kRows, scaled_row(j, own - begin), high - own, sum_a, sum_b);
    if (HWY_LIKELY(own == sb + kRows && own <= shape.time)) {
      const T* x = scaled_row(j, sb - begin);
      for (int64_t m = 0; m < kRows; ++m) {
        const V a = hn::Load(d, x + m * 2 * lanes);
        const V b = hn::Load(d, x + m * 2 * lanes + lanes);
        for (int64_t r = 0; r <= m; ++r) add_own(block[m * kRows + r], a, b, sum_a[r], sum_b[r]);
      }
      return;
    }
    for (int64_t t = low; t < own; ++t) {
      const V a = hn::Load(d, scaled_row(j, t - begin));
      const V b = hn::Load(d, scaled_row(j, t - begin) + lanes);
      const int64_t seen = t == shape.time ? kRows - 1 : t - sb;
      for (int64_t r = 0; r <= seen; ++r) add_own(block[(t - low) * kRows + r], a, b, sum_a[r], sum_b[r]);
    }
  }

  HWY_INLINE void add_own(T w, V a, V b, V& sum_a, V& sum_b) const {
    const V weight = hn::Set(d, w);
    sum_a = hn::MulAdd(weight, a, sum_a);
    sum_b = hn::MulAdd(weight, b, sum_b);
  }

  // dv = e^k sum a and e^k sum b of one source, every pair from its p and n.
  HWY_NOINLINE void exact_source(const Stripe<D>& s, int64_t j, int64_t source, int64_t begin, int64_t low,
                                 int64_t high, const RunningSum<V>& after, const RunningSum<V>& before,
                                 T& key_sum) const {
    const SplitExp<V> e = Split(d, s.load_key(s.sources.key(source), j));
    V a = hn::Zero(d);
    V b = a;
    for (int64_t t = low; t < high; ++t) {
      const int64_t at = source - t + shape.left;
      const bool is_final = t == shape.time;
      if (is_final ? source >= shape.time - shape.left : (shape.causal && source > t)) continue;
      const bool inside = !is_final && at >= 0 && at < s.weights.span;
      const SplitExp<V> w = Split(d, hn::Set(d, inside ? s.band[t * s.band_stride + at] : T(0)));
      const T* from = target_row(j, t - begin);
      const V n =
          hn::Add(hn::Add(e.n, w.n), hn::Sub(hn::Load(d, from + 2 * lanes), hn::Set(d, row_exponent(s, t, begin))));
      add_pair(hn::Mul(e.p, w.p), n, hn::Load(d, from), hn::Load(d, from + lanes), a, b);
    }
    add_pair(e.p, hn::Add(e.n, after.max), after.num, after.den, a, b);
    add_pair(e.p, hn::Add(e.n, before.max), before.num, before.den, a, b);
    write_source(s, j, source, hn::Set(d, T(1)), a, b, key_sum);
  }

  void add_pair(V p_pair, V n, V a, V b, V& sum_a, V& sum_b) const {
    const V scale = hn::Mul(p_pair, Pow2(d, hn::Min(n, hn::Set(d, T(120)))));
    sum_a = hn::MulAdd(scale, a, sum_a);
    sum_b = hn::MulAdd(scale, b, sum_b);
  }

  // dv = K a, dk = K (v a - b), plus the gradient of the final state's ring, which is a copy.
  void write_source(const Stripe<D>& s, int64_t j, int64_t source, V k, V a, V b, T& key_sum) const {
    const int64_t n = s.count(j);
    const V key = s.load_key(s.sources.key(source), j);
    const V value = MaskAbsent(d, key, s.load_value(s.sources.value(source), j));
    V dv = hn::Mul(k, a);
    const V dk = hn::Mul(k, hn::MulSub(value, a, b));
    const bool in_ring = source >= shape.time - shape.left;
    if (in_ring && p.grad_final_state.ring_value != nullptr) {
      const int64_t row = (task.batch * shape.left + s.sources.slot(source)) * shape.channels + task.begin;
      dv = hn::Add(dv, s.load_value(p.grad_final_state.ring_value + row, j));
    }
    const int64_t at = j * lanes;
    if (source >= 0) {
      StoreOut(dv, d, grad_v + source * p.grad_v.time_stride + at, n, streams_v);
    } else if (p.grad_initial_state.ring_value != nullptr) {
      const int64_t row = (task.batch * shape.left + s.sources.slot(source)) * shape.channels + task.begin;
      StoreSome(dv, d, p.grad_initial_state.ring_value + row + at, n);
    }
    if (key_per_head) {
      key_sum += hn::GetLane(hn::SumOfLanes(d, dk));
    } else {
      write_key(s, source, at, dk, n);
    }
  }

  void write_key(const Stripe<D>& s, int64_t source, int64_t at, V dk, int64_t n) const {
    const int64_t row =
        shape.left == 0 ? 0 : (task.batch * shape.left + s.sources.slot(source)) * shape.key_channels + key_begin + at;
    if (source >= shape.time - shape.left && p.grad_final_state.ring_key != nullptr) {
      dk = hn::Add(dk, LoadSome(d, p.grad_final_state.ring_key + row, n));
    }
    if (source >= 0) {
      StoreOut(dk, d, grad_k + source * p.grad_k.time_stride + at, n, streams_k);
    } else if (p.grad_initial_state.ring_key != nullptr) {
      StoreSome(dk, d, p.grad_initial_state.ring_key + row, n);
    }
  }

  // Phase 3: dw of the chunk's targets, summed over the channels of the task.
  void band_gradient(const Stripe<D>& s, int64_t begin, int64_t end) const {
    for (int64_t tb = begin; tb < end; tb += kRows) {
      const int64_t rows = std::min(kRows, end - tb);
      for (int64_t j = 0; j < vectors; ++j) {
        const V x = Pow2(d, hn::Load(d, s.scale + j * 2 * lanes + lanes));
        for (int64_t r = 0; r < kRows; ++r) {
          const bool used = r < rows && !exact[j];
          const T* from = scaled_row(j, tb + r - begin);
          T* to = dw_rows + (j * kRows + r) * 2 * lanes;
          hn::Store(used ? hn::Mul(hn::Load(d, from), x) : hn::Zero(d), d, to);
          hn::Store(used ? hn::Load(d, from + lanes) : hn::Zero(d), d, to + lanes);
        }
      }
      const int64_t low = std::max(s.sources.first, tb - shape.left);
      const int64_t high = std::min(shape.time, tb + rows + shape.right);
      int64_t source = low;
      for (; source + 4 <= high; source += 4) pair_sums<4>(s, tb, rows, begin, source);
      for (; source < high; ++source) pair_sums<1>(s, tb, rows, begin, source);
      for (int64_t j = 0; j < vectors; ++j) {
        if (exact[j]) exact_band(s, j, tb, rows, begin);
      }
    }
  }

  // Row t of the gradient of the piece that vector j belongs to.
  T* band_row(const Stripe<D>& s, int64_t j, int64_t t) const {
    return grad_band + (j * lanes / kBandChannels<T> * shape.time + t) * s.weights.span;
  }

  // dw of targets tb .. tb + rows - 1 against sources source .. source + N - 1.
  template <int64_t N>
  void pair_sums(const Stripe<D>& s, int64_t tb, int64_t rows, int64_t begin, int64_t source) const {
    const int64_t step = kBandChannels<T> / lanes;
    for (int64_t first = 0; first < vectors; first += step) {
      V sum[kRows][N];
      for (int64_t r = 0; r < kRows; ++r) {
        for (int64_t i = 0; i < N; ++i) sum[r][i] = hn::Zero(d);
      }
      for (int64_t j = first; j < std::min(first + step, vectors); ++j) {
        const T* x = s.slot(j, source);
        const T* g = dw_rows + j * kRows * 2 * lanes;
        for (int64_t r = 0; r < kRows; ++r) {
          const V a = hn::Load(d, g + r * 2 * lanes);
          const V b = hn::Load(d, g + r * 2 * lanes + lanes);
          for (int64_t i = 0; i < N; ++i) {
            sum[r][i] = hn::MulAdd(hn::Load(d, x + i * 2 * lanes + lanes), a, sum[r][i]);
            sum[r][i] = hn::NegMulAdd(hn::Load(d, x + i * 2 * lanes), b, sum[r][i]);
          }
        }
      }
      for (int64_t r = 0; r < rows; ++r) {
        const T* w = s.weights.row + (tb + r - begin) * s.weights.span;
        T* to = band_row(s, first, tb + r);
        T total[N];
        if constexpr (N == 4) {
          SumLanesOf4(d, sum[r][0], sum[r][1], sum[r][2], sum[r][3], total);
        } else {
          for (int64_t i = 0; i < N; ++i) total[i] = hn::GetLane(hn::SumOfLanes(d, sum[r][i]));
        }
        for (int64_t i = 0; i < N; ++i) {
          const int64_t at = source + i - tb - r + shape.left;
          if (at >= 0 && at < s.weights.span) to[at] = w[at] * total[i];
        }
      }
    }
  }

  HWY_NOINLINE void exact_band(const Stripe<D>& s, int64_t j, int64_t tb, int64_t rows, int64_t begin) const {
    for (int64_t t = tb; t < tb + rows; ++t) {
      const T* from = target_row(j, t - begin);
      const V a = hn::Load(d, from);
      const V b = hn::Load(d, from + lanes);
      const V exponent = hn::Sub(hn::Load(d, from + 2 * lanes), hn::Set(d, row_exponent(s, t, begin)));
      const int64_t low = std::max(s.sources.first, t - shape.left);
      const int64_t high = std::min(shape.time, t + 1 + shape.right);
      for (int64_t source = low; source < high; ++source) {
        const int64_t at = source - t + shape.left;
        const V key = s.load_key(s.sources.key(source), j);
        const V value = MaskAbsent(d, key, s.load_value(s.sources.value(source), j));
        const SplitExp<V> e = Split(d, key);
        const SplitExp<V> w = Split(d, hn::Set(d, s.band[t * s.band_stride + at]));
        V sum_a = hn::Zero(d), sum_b = sum_a;
        add_pair(hn::Mul(e.p, w.p), hn::Add(hn::Add(e.n, w.n), exponent), a, b, sum_a, sum_b);
        const V terms = hn::MulSub(value, sum_a, sum_b);
        band_row(s, j, t)[at] += hn::GetLane(hn::SumOfLanes(d, terms));
      }
    }
  }

  // Gradient of the initial state: its ring are sources before 0, its sums are seen by every target.
  void initial_gradient(const Stripe<D>& s) {
    for (int64_t sb = -kRows; sb + kRows > s.sources.first; sb -= kRows) {
      if (shape.time > 0) {
        source_block(s, sb, kRows, 0);
      } else {
        copy_ring(s, sb);
      }
    }
    T key_sum = 0;
    for (int64_t j = 0; j < vectors; ++j) {
      RunningSum<V> sum = s.load_sums(later + j * kSumParts * lanes);
      const RunningSum<V> initial = s.initial_sums(p.initial_state, j);
      if (shape.time == 0 && has_final) leave_final(s, j, 0, initial.max);
      for (int64_t t = later_from - 1; t >= 0; --t) add_target(sum, j, t, row_exponent(s, t, 0));
      const V seen = Pow2(d, hn::Min(hn::Add(sum.max, initial.max), hn::Set(d, T(120))));
      const V g_num = hn::Mul(sum.num, seen);
      const V g_den = hn::Neg(hn::Mul(sum.den, seen));
      write_initial_sums(s, j, g_num, g_den, key_sum);
    }
  }

  // key_sum gathers the den of a head whose channels share their key; complete with the last vector.
  void write_initial_sums(const Stripe<D>& s, int64_t j, V g_num, V g_den, T& key_sum) const {
    const int64_t n = s.count(j);
    if (p.grad_initial_state.num != nullptr) {
      StoreSome(g_num, d, p.grad_initial_state.num + task.batch * shape.channels + task.begin + j * lanes, n);
    }
    if (p.grad_initial_state.den == nullptr) return;
    T* den = p.grad_initial_state.den + task.batch * shape.key_channels + key_begin;
    if (key_per_head) {
      key_sum += hn::GetLane(hn::SumOfLanes(d, g_den));
      *den = key_sum;
    } else {
      StoreSome(g_den, d, den + j * lanes, n);
    }
  }

  // T = 0: the ring passes through.
  void copy_ring(const Stripe<D>& s, int64_t sb) const {
    for (int64_t source = std::max(sb, s.sources.first); source < sb + kRows; ++source) {
      T zero = 0;
      for (int64_t j = 0; j < vectors; ++j) write_source(s, j, source, hn::Zero(d), hn::Zero(d), hn::Zero(d), zero);
      if (key_per_head) write_key(s, source, 0, hn::Zero(d), 1);
    }
  }

  // Causal, no band. Everything stands under the maximum M[t] of the running sums at its row: K = e^k 2^-M, a = gy gate
  // / den. Going back in time M falls, so the sums of a and b are rescaled by 2^(M[t] - M[t+1]), mostly 1.
  void simple_causal() {
    constexpr int64_t kKept = 4;  // K, a, b, -M of a row
    rows_capacity = 1;
    Scratch scratch(bytes(0, 0, 0) + Scratch::padded<T>(chunk * vectors * kKept * lanes));
    Stripe<D> s(shape, task, p.k, p.v, p.band, p.initial_state, 0, 0, 0, scratch);
    take(scratch, 0);
    T* kept = scratch.take<T>(chunk * vectors * kKept * lanes);
    const V one = hn::Set(d, T(1));
    std::vector<T> keys(key_per_head ? chunk : 0);
    for (int64_t begin = (shape.time - 1) / chunk * chunk; shape.time > 0 && begin >= 0; begin -= chunk) {
      const int64_t end = std::min(begin + chunk, shape.time);
      restore_sums(s, begin / chunk);
      T* row = kept;
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t j = 0; j < vectors; ++j, row += kKept * lanes) keep_row(s, t, j, row);
      }
      if (end == shape.time) {
        for (int64_t j = 0; j < vectors; ++j) start_later(s, j, hn::Load(d, s.sums + j * kSumParts * lanes));
      }
      std::fill(keys.begin(), keys.end(), T(0));
      T unused = 0;
      for (int64_t t = end - 1; t >= begin; --t) {
        row = kept + (t - begin) * vectors * kKept * lanes;
        for (int64_t j = 0; j < vectors; ++j, row += kKept * lanes) {
          RunningSum<V> sum = s.load_sums(later + j * kSumParts * lanes);
          rescale(sum, hn::Load(d, row + 3 * lanes));
          AddCompensated(hn::Load(d, row + lanes), one, sum.num, sum.num_low);
          AddCompensated(hn::Load(d, row + 2 * lanes), one, sum.den, sum.den_low);
          s.store_sums(sum, later + j * kSumParts * lanes);
          write_source(s, j, t, hn::Load(d, row), sum.num, sum.den, key_per_head ? keys[t - begin] : unused);
        }
        if (key_per_head) write_key(s, t, 0, hn::Set(d, keys[t - begin]), 1);
      }
    }
    if (p.initial_state.position == nullptr) return;
    T key_sum = 0;
    for (int64_t j = 0; j < vectors; ++j) {
      const V max = s.initial_sums(p.initial_state, j).max;
      if (shape.time == 0) start_later(s, j, max);
      RunningSum<V> sum = s.load_sums(later + j * kSumParts * lanes);
      rescale(sum, hn::Neg(max));
      write_initial_sums(s, j, sum.num, hn::Neg(sum.den), key_sum);
    }
  }

  void keep_row(const Stripe<D>& s, int64_t t, int64_t j, T* row) const {
    const int64_t at = j * lanes;
    const int64_t n = s.count(j);
    T* sum_at = s.sums + j * kSumParts * lanes;
    RunningSum<V> sum = s.load_sums(sum_at);
    const V key = s.load_key(s.sources.key(t), j);
    const SplitExp<V> e = Split(d, key);
    AddTerm(d, sum, e.n, e.p, hn::Mul(e.p, MaskAbsent(d, key, s.load_value(s.sources.value(t), j))));
    s.store_sums(sum, sum_at);
    const V g = LoadSome(d, gy + t * p.grad_y.time_stride + at, n);
    const V query = grad_q == nullptr ? hn::Zero(d) : LoadSome(d, q + t * p.q.time_stride + at, n);
    const GateValue<V> gate = EvaluateGate(d, shape.gate, query);
    const auto empty = hn::Eq(sum.den, hn::Zero(d));
    const V ratio = hn::IfThenZeroElse(empty, hn::Div(sum.num, sum.den));
    const V a = hn::IfThenZeroElse(empty, hn::Div(hn::Mul(g, gate.value), sum.den));
    hn::Store(hn::Mul(e.p, Pow2(d, hn::Sub(e.n, sum.max))), d, row);
    hn::Store(a, d, row + lanes);
    hn::Store(hn::Mul(a, ratio), d, row + 2 * lanes);
    hn::Store(hn::Neg(sum.max), d, row + 3 * lanes);
    if (grad_q != nullptr) {
      StoreOut(hn::Mul(hn::Mul(g, ratio), gate.slope), d, grad_q + t * p.grad_q.time_stride + at, n, streams_q);
    }
  }

  // The sums over later targets begin with what the gradient of the final sums asks.
  void start_later(const Stripe<D>& s, int64_t j, V max) const {
    RunningSum<V> sum = StartSum(d, hn::Neg(max));
    if (has_final) {
      leave_final(s, j, 0, max);
      sum.num = hn::Load(d, target_row(j, 0));
      sum.den = hn::Load(d, target_row(j, 0) + lanes);
    }
    s.store_sums(sum, later + j * kSumParts * lanes);
  }

  void rescale(RunningSum<V>& sum, V max) const {
    if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Eq(max, sum.max)))) Rescale(d, sum, max);
  }

  // Not causal, no band: every target sees every source, so there is one D and one pair of sums.
  void simple_whole() {
    rows_capacity = 1;
    Scratch scratch(bytes(0, 0, 0));
    Stripe<D> s(shape, task, p.k, p.v, p.band, p.initial_state, 0, 0, 0, scratch);
    take(scratch, 0);
    std::vector<T> keys(key_per_head ? shape.time : 0, T(0));
    for (int64_t j = 0; j < vectors; ++j) {
      RunningSum<V> sum = no_sum();
      for (int64_t t = 0; t < shape.time; ++t) {
        AddSource(d, sum, s.load_key(s.sources.key(t), j), s.load_value(s.sources.value(t), j));
      }
      RunningSum<V> targets = no_sum();
      for (int64_t t = 0; t < shape.time; ++t) {
        leave_row(s, t, j, 0, {sum.den, sum.num, sum.max, hn::Set(d, T(1))}, T(0));
        add_target(targets, j, 0, T(0));
      }
      for (int64_t t = 0; t < shape.time; ++t) {
        const SplitExp<V> e = Split(d, s.load_key(s.sources.key(t), j));
        const V k = hn::Mul(e.p, Pow2(d, hn::Min(hn::Add(e.n, targets.max), hn::Set(d, T(120)))));
        T unused = 0;
        write_source(s, j, t, k, targets.num, targets.den, key_per_head ? keys[t] : unused);
      }
    }
    for (int64_t t = 0; key_per_head && t < shape.time; ++t) write_key(s, t, 0, hn::Set(d, keys[t]), 1);
  }
};

void BackwardF32(const WindowBackward<float>& p, const WindowTask& task, float* grad_band) {
  BackwardTask<hn::ScalableTag<float>>(p, task, grad_band).run();
}
void BackwardF64(const WindowBackward<double>& p, const WindowTask& task, double* grad_band) {
  BackwardTask<hn::ScalableTag<double>>(p, task, grad_band).run();
}

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {

HWY_EXPORT(BackwardF32);
HWY_EXPORT(BackwardF64);

namespace {

template <typename T>
void run_task(const WindowBackward<T>& p, const WindowTask& task, T* grad_band) {
  if constexpr (sizeof(T) == 4) {
    HWY_DYNAMIC_DISPATCH(BackwardF32)(p, task, grad_band);
  } else {
    HWY_DYNAMIC_DISPATCH(BackwardF64)(p, task, grad_band);
  }
}

template <typename T>
void zero(T* data, int64_t size) {
  if (data != nullptr) std::fill_n(data, size, T(0));
}

// One piece's sum over its channels of the band's gradient, [T][J].
template <typename T>
struct BandPiece {
  int64_t batch, head;
  const T* sums;
};

// Adds pieces to the band's gradient in their order.
template <typename T>
void add_pieces(const WindowBackward<T>& p, const std::vector<BandPiece<T>>& pieces, const ParallelFor& parallel) {
  const WindowShape& s = p.shape;
  const int64_t span = s.left + 1 + s.right;
  const auto position = [&](const BandPiece<T>& piece) {
    return p.initial_state.position == nullptr ? 0 : p.initial_state.position[piece.batch];
  };
  const auto add_row = [&](const BandPiece<T>& piece, int64_t t) {
    const T* from = piece.sums + t * span;
    T* to = p.grad_band.data + piece.head * p.grad_band.head_stride + (position(piece) + t) * p.grad_band.row_stride;
    for (int64_t j = 0; j < span; ++j) to[j] += from[j];
  };
  if (p.grad_band.row_stride == 0) {
    for (const BandPiece<T>& piece : pieces) {
      for (int64_t t = 0; t < s.time; ++t) add_row(piece, t);
    }
    return;
  }
  // Rows of the table are independent: split by absolute row, so that batch rows at different positions do not meet.
  constexpr int64_t kTableRows = 256;
  parallel.run((p.grad_band.rows + kTableRows - 1) / kTableRows, [&](int64_t i) {
    for (const BandPiece<T>& piece : pieces) {
      const int64_t low = std::max<int64_t>(0, i * kTableRows - position(piece));
      const int64_t high = std::min(s.time, (i + 1) * kTableRows - position(piece));
      for (int64_t t = low; t < high; ++t) add_row(piece, t);
    }
  });
}

}  // namespace

template <typename T>
void window_backward(const WindowBackward<T>& p, const ParallelFor& parallel) {
  check_backward(p);
  const WindowShape& s = p.shape;
  const bool wants_band = s.has_band && p.grad_band.data != nullptr;
  zero(p.grad_initial_state.den, s.batch * s.key_channels);
  zero(p.grad_initial_state.num, s.batch * s.channels);
  zero(p.grad_initial_state.ring_key, s.batch * s.left * s.key_channels);
  zero(p.grad_initial_state.ring_value, s.batch * s.left * s.channels);
  const int64_t span = s.left + 1 + s.right;
  if (wants_band) {
    for (int64_t h = 0; h < s.heads; ++h) {
      for (int64_t t = 0; t < (p.grad_band.row_stride == 0 ? 1 : p.grad_band.rows); ++t) {
        zero(p.grad_band.data + h * p.grad_band.head_stride + t * p.grad_band.row_stride, span);
      }
    }
  }
  if (s.channels == 0) return;
  if (!wants_band) {
    const auto tasks = window_tasks(s, split_channels<T>(s, parallel.threads));
    parallel.run(static_cast<int64_t>(tasks.size()), [&](int64_t i) { run_task<T>(p, tasks[i], nullptr); });
    return;
  }
  const int64_t width = split_band_channels<T>(s, parallel.threads);
  const auto tasks = window_tasks(s, width);
  const int64_t count = static_cast<int64_t>(tasks.size());
  const int64_t group = std::min(count, std::max<int64_t>(1, parallel.threads));
  const int64_t piece_size = s.time * span;
  const int64_t task_size = band_pieces<T>(std::min(width, s.channels / s.heads)) * piece_size;
  std::vector<T> sums(group * task_size);
  for (int64_t begin = 0; begin < count; begin += group) {
    const int64_t end = std::min(begin + group, count);
    parallel.run(end - begin, [&](int64_t i) {
      zero(sums.data() + i * task_size, task_size);
      run_task<T>(p, tasks[begin + i], sums.data() + i * task_size);
    });
    std::vector<BandPiece<T>> pieces;
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t piece = 0; piece < band_pieces<T>(tasks[i].end - tasks[i].begin); ++piece) {
        pieces.push_back({tasks[i].batch, tasks[i].head, sums.data() + (i - begin) * task_size + piece * piece_size});
      }
    }
    add_pieces(p, pieces, parallel);
  }
}

template void window_backward<float>(const WindowBackward<float>&, const ParallelFor&);
template void window_backward<double>(const WindowBackward<double>&, const ParallelFor&);

}  // namespace aft::ops
#endif

// The channels of one task and all they read: sources of this call and of the ring of a state, the band, running sums
// in memory; and one row exactly, pair by pair. Included by kernels inside foreach_target.

#if defined(AFT_OPS_WINDOW_CHANNELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_WINDOW_CHANNELS_INL_H_
#undef AFT_OPS_WINDOW_CHANNELS_INL_H_
#else
#define AFT_OPS_WINDOW_CHANNELS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "aft/ops/window.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/common/exp-inl.h"
#include "ops/common/scratch.h"
#include "ops/common/sources-inl.h"
#include "ops/window/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using namespace ops::HWY_NAMESPACE;  // what the families share

// What a row comes to in one vector of channels: D = den 2^exponent, N = num 2^exponent value_scale.
template <class V>
struct RowSums {
  V den, num, exponent, value_scale;
};

constexpr int64_t kSumParts = 5;       // vectors of a RunningSum in memory
constexpr int64_t kBoundaryParts = 3;  // of one between chunks: max, den, num

// Where the sources of a task's sequence lie, at the task's first channel; `s` is the shape of the sequence alone.
template <typename E>
SourceRows<E> SourceRowsOf(const WindowShape& s, const WindowTask& t, const WindowInputs<E>& in) {
  const int64_t key_begin = s.key_channels != s.channels ? t.head : t.begin;
  SourceRows<E> rows;
  rows.k = first_row(in.k, t.sequence) + key_begin;
  rows.v = first_row(in.v, t.sequence) + t.begin;
  rows.k_stride = in.k.time_stride;
  rows.v_stride = in.v.time_stride;
  const KeyMask& mask = in.key_mask;
  if (mask.data != nullptr) rows.mask = mask.data + t.sequence.row * mask.batch_stride + t.sequence.first;
  rows.capacity = s.left;
  rows.ring_k_stride = s.key_channels;
  rows.ring_v_stride = s.channels;
  const auto& state = in.initial_state;
  if (state.position != nullptr) {
    const int64_t b = t.sequence.index;
    rows.position = state.position[b];
    rows.ring_k = state.ring_key + b * s.left * s.key_channels + key_begin;
    rows.ring_v = state.ring_value + b * s.left * s.channels + t.begin;
  }
  return rows;
}

template <class D, typename E>
class Channels {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  D d;
  static constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));  // a constant: strides of the loops
  WindowShape shape;                                                         // of the sequence alone
  WindowTask task;
  SourceRows<E> sources;
  int64_t first_source = 0;  // sources [first_source, T) are read one by one, those below 0 from the ring
  const T* band = nullptr;   // row of position 0 (local t = 0) of the head
  int64_t band_stride = 0;
  int64_t span = 0;  // J, columns of the band
  bool key_per_head = false;
  int64_t key_begin = 0;  // first key channel of the task
  int64_t width = 0;      // channels of the task
  int64_t vectors = 0;    // vectors that hold them
  T* sums = nullptr;      // [vectors][kSumParts][lanes]: running sums of the sources before the window
  T* exact = nullptr;     // [left + right + kRows][2]: p, n of a row's weights

  Channels(const WindowShape& s, const WindowTask& t, const WindowInputs<E>& in, Scratch& scratch)
      : shape(s), task(t), span(s.left + 1 + s.right), key_per_head(s.key_channels != s.channels) {
    width = t.end - t.begin;
    vectors = (width + lanes - 1) / lanes;
    key_begin = key_per_head ? t.head : t.begin;
    sources = SourceRowsOf(s, t, in);
    first_source = -std::min(sources.position, s.left);
    if (s.has_band && s.time > 0) {
      band = in.band.data + t.head * in.band.head_stride + sources.position * in.band.row_stride;
      band_stride = in.band.row_stride;
    }
    sums = scratch.take<T>(vectors * kSumParts * lanes);
    exact = scratch.take<T>((s.left + s.right + kRows) * 2);
  }

  int64_t count(int64_t j) const { return std::min(lanes, width - j * lanes); }

  // Vector j, counted from the task's first channel.
  ChannelVector at(int64_t j) const { return {j * lanes, count(j), key_per_head ? 0 : j * lanes, key_per_head}; }

  template <typename X>
  V load_key(const X* row, int64_t j) const {
    return LoadKey(d, row, at(j));
  }
  template <typename X>
  V load_value(const X* row, int64_t j) const {
    return LoadSome(d, row + j * lanes, count(j));
  }
  // A source of this call, s >= 0.
  HWY_INLINE V own_key(int64_t s, int64_t j) const { return OwnKey(d, sources, at(j), s); }
  HWY_INLINE V own_value(int64_t s, int64_t j) const { return OwnValue(d, sources, at(j), s); }
  // Any source.
  HWY_INLINE V source_key(int64_t s, int64_t j) const { return SourceKey(d, sources, at(j), s); }
  HWY_INLINE V source_value(int64_t s, int64_t j) const { return SourceValue(d, sources, at(j), s); }

  // Source s as the ring of a state keeps it. Where that is the ring it lies in, it lies in the same slot already.
  void write_ring(int64_t s, const State<T>& state) const {
    if (s < 0 && state.ring_key + key_begin == sources.ring_k - task.sequence.index * shape.left * shape.key_channels)
      return;
    const int64_t row = task.sequence.index * shape.left + sources.slot(s);
    T* to_key = state.ring_key + row * shape.key_channels + key_begin;
    T* to_value = state.ring_value + row * shape.channels + task.begin;
    for (int64_t j = 0; j < vectors; ++j) {
      StoreSome(sources.masked(s) ? hn::Zero(d) : source_value(s, j), d, to_value + j * lanes, count(j));
    }
    if (key_per_head) {
      StoreSome(source_key(s, 0), d, to_key, 1);
    } else {
      for (int64_t j = 0; j < vectors; ++j) StoreSome(source_key(s, j), d, to_key + j * lanes, count(j));
    }
  }

  // Rows [t, t + n) of a tensor that starts at `rows`: fetched ahead, since hardware prefetchers follow badly what
  // walks several rows at once (measured: a third of the time was spent waiting) or a part of every row. All that only
  // prefetches must be inlined: GCC drops calls of such functions.
  HWY_INLINE static void prefetch(const E* rows, int64_t stride, int64_t j, int64_t t, int64_t n = kRows) {
    for (int64_t r = 0; r < n; ++r) hwy::Prefetch(rows + (t + r) * stride + j * lanes);
  }
  // The same for rows about to be written, so that a store does not wait for its line (measured: a fifth of the
  // backward).
  HWY_INLINE static void prefetch_to_write(E* rows, int64_t stride, int64_t j, int64_t t, int64_t n = kRows) {
    for (int64_t r = 0; r < n; ++r) __builtin_prefetch(rows + (t + r) * stride + j * lanes, 1);
  }
  HWY_INLINE void prefetch_sources(int64_t j, int64_t t, int64_t n = kRows) const {
    prefetch(sources.k, sources.k_stride, key_per_head ? 0 : j, t, n);
    prefetch(sources.v, sources.v_stride, j, t, n);
  }
  // Rows that a walk row by row fetches ahead: 2 KiB of the task's channels, or two.
  int64_t rows_ahead() const { return std::max<int64_t>(2, 2048 / (width * static_cast<int64_t>(sizeof(E)))); }

  static RunningSum<V> load_sums(const T* at) {
    const D d;
    return {hn::Load(d, at), hn::Load(d, at + lanes), hn::Load(d, at + 2 * lanes), hn::Load(d, at + 3 * lanes),
            hn::Load(d, at + 4 * lanes)};
  }
  static void store_sums(const RunningSum<V>& s, T* at) {
    const D d;
    hn::Store(s.max, d, at);
    hn::Store(s.den, d, at + lanes);
    hn::Store(s.num, d, at + 2 * lanes);
    hn::Store(s.den_low, d, at + 3 * lanes);
    hn::Store(s.num_low, d, at + 4 * lanes);
  }

  T* sums_at(int64_t j) const { return sums + j * kSumParts * lanes; }

  // Running sums between chunks: what rounding added too much is left out.
  void store_boundary(const RunningSum<V>& s, T* at) const {
    hn::Store(s.max, d, at);
    hn::Store(s.den, d, at + lanes);
    hn::Store(s.num, d, at + 2 * lanes);
  }
  RunningSum<V> load_boundary(const T* at) const {
    return {hn::Load(d, at), hn::Load(d, at + lanes), hn::Load(d, at + 2 * lanes), hn::Zero(d), hn::Zero(d)};
  }

  // The running sums of the initial state, or none.
  RunningSum<V> initial_sums(const State<const T>& state, int64_t j) const {
    RunningSum<V> s = StartSum(d, hn::Set(d, kExponentFloor<T>));
    if (state.position == nullptr) return s;
    const int64_t key_row = task.sequence.index * shape.key_channels + key_begin;
    const V max = load_key(state.max + key_row, j);
    const auto seen = hn::Gt(max, s.max);
    s.max = hn::Max(max, s.max);
    s.den = hn::IfThenElseZero(seen, load_key(state.den + key_row, j));
    s.num = hn::IfThenElseZero(seen, load_value(state.num + task.sequence.index * shape.channels + task.begin, j));
    return s;
  }

  // Starts the sums and adds all sources of this call to them. Row by row, as all of simple is walked: channel by
  // channel memory sees one vector a row, which took two to three times as long.
  void sum_sources() const {
    for (int64_t j = 0; j < vectors; ++j) store_sums(initial_sums({}, j), sums_at(j));
    const int64_t ahead = rows_ahead();
    for (int64_t t = 0; t < shape.time; ++t) {
      const int64_t next = std::min(t + ahead, shape.time - 1);
      for (int64_t j = 0; j < vectors; ++j) {
        prefetch_sources(j, next, 1);
        RunningSum<V> sum = load_sums(sums_at(j));
        AddSource(d, sum, own_key(t, j), own_value(t, j));
        store_sums(sum, sums_at(j));
      }
    }
  }

  // The row of target t, of a block that begins at tb, from p and n of every pair under the row's own maximum, the
  // sources in the same order as on the fast path.
  HWY_NOINLINE RowSums<V> exact_row(int64_t j, int64_t tb, int64_t t, const RunningSum<V>& outside,
                                    const RunningSum<V>* later) const {
    const int64_t begin = std::max(first_source, tb - shape.left);
    const int64_t end = shape.causal ? t + 1 : std::min(shape.time, tb + kRows + shape.right);
    exact_weights(t, begin, end);
    return exact_sums(j, begin, end, outside, later);
  }

  // p and n of the weights of target t on the sources [begin, end); 1 = 1 * 2^0 outside its window.
  void exact_weights(int64_t t, int64_t begin, int64_t end) const {
    const T* from = band + t * band_stride;
    for (int64_t s = begin; s < end; ++s) {
      const int64_t j = s - t + shape.left;
      const bool inside = j >= 0 && j < span;
      const SplitExp<V> e = Split(d, hn::Set(d, inside ? from[j] : T(0)));
      exact[(s - begin) * 2] = hn::GetLane(e.p);
      exact[(s - begin) * 2 + 1] = hn::GetLane(e.n);
    }
  }

  // D and N of the sources [begin, end) under the weights in `exact` and of what lies outside, under their own maximum.
  RowSums<V> exact_sums(int64_t j, int64_t begin, int64_t end, const RunningSum<V>& outside,
                        const RunningSum<V>* later) const {
    V max = hn::Max(outside.max, hn::Set(d, kExponentFloor<T>));
    if (later != nullptr) max = hn::Max(later->max, max);
    for (int64_t s = begin; s < end; ++s) {
      const SplitExp<V> e = Split(d, source_key(s, j));
      max = hn::Max(hn::Add(e.n, hn::Set(d, exact[(s - begin) * 2 + 1])), max);
    }
    V den = hn::Zero(d), num = den;
    for (int64_t s = begin; s < end; ++s) {
      const V key = source_key(s, j);
      const SplitExp<V> e = Split(d, key);
      const V n = hn::Sub(hn::Add(e.n, hn::Set(d, exact[(s - begin) * 2 + 1])), max);
      const V term = hn::Mul(hn::Mul(e.p, hn::Set(d, exact[(s - begin) * 2])), Pow2(d, n));
      den = hn::Add(den, term);
      num = hn::MulAdd(term, MaskAbsent(d, key, source_value(s, j)), num);
    }
    const auto add = [&](const RunningSum<V>& sum) {
      const V scaled = Pow2(d, hn::Sub(sum.max, max));
      den = hn::MulAdd(sum.den, scaled, den);
      num = hn::MulAdd(sum.num, scaled, num);
    };
    add(outside);
    if (later != nullptr) add(*later);
    return {den, num, max, hn::Set(d, T(1))};
  }
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

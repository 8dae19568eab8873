#pragma once

// The product of a band with rows of channels, in which every pass with a band does its work. A block of threads has a
// panel of 64 rows of one head, and its channels 64 at a time; a thread a tile of 8 rows and 4 channels. What the rows
// are multiplied with lies in shared memory: two numbers a row and channel on the other side of the band (of a source
// e^k and e^k v, of a target a and b) and a weight for every pair. Rows of the other side count from where the panel's
// first row reaches; tile j is multiplied with the rows [8 j, 8 j + span).

#include <cstdint>
#include <string>

#include "aft/error.h"
#include "ops/common/cuda/shared.cuh"
#include "ops/window/cuda_row.cuh"

namespace aft::ops::window {

constexpr int kPanel = 64;  // rows, and channels at a time, of a block
static_assert(kPanel == kChunk);
constexpr int kLanes = 4;          // channels of a thread
constexpr int kBandThreads = 128;  // a tile of rows for every 16 of them
constexpr int kPanelTiles = kPanel / kTile;
/// Strips of kPanel channels that a block does one after another with the same weights, where blocks are many.
constexpr int kStrips = 4;

/// Blocks that a multiprocessor is to hold at once, at least.
template <typename E>
constexpr int kBandBlocks = sizeof(E) == 8 ? 1 : 3;

/// How far a band reaches, and how many rows of the other side are in shared memory at a time, a round: all if those
/// are not many, or a panel of them.
struct Reach {
  static constexpr int kMostRows = 96;

  int left, right;
  int span;   // rows that a tile is multiplied with, a multiple of a tile
  int round;  // kPanel or kMostRows

  explicit Reach(const WindowShape& s)
      : left(checked(s.left)),
        right(checked(s.right)),
        span(kTile + (left + right + kTile - 1) / kTile * kTile),
        round(rows() <= kMostRows ? kMostRows : kPanel) {}

  /// A window's sources are counted in 32 bits.
  static int checked(int64_t reach) {
    constexpr int64_t kMost = int64_t{1} << 29;
    if (reach <= kMost) return static_cast<int>(reach);
    throw Error("window: expected at most " + std::to_string(kMost) + " positions to a side on a CUDA device, got " +
                std::to_string(reach) + "; use a smaller window, or the CPU");
  }

  __host__ __device__ int columns() const { return left + 1 + right; }
  __host__ __device__ int rows() const { return kPanel - kTile + span; }
  __host__ __device__ int weight_rows() const { return span < round ? span : round; }
  __host__ __device__ bool one_round() const { return round == kMostRows; }
};

/// Blocks that make a head, where one does so many strips.
inline int64_t band_groups(const WindowShape& s, int64_t strips) {
  return (s.channels / s.heads + strips * kPanel - 1) / (strips * kPanel);
}

/// Numbers of a block's channels in shared memory: M and X, and the sums outside the panel's windows.
enum Table { kMax, kValueExponent, kBeforeMax, kBeforeDen, kBeforeNum, kAfterMax, kAfterDen, kAfterNum, kTables };

/// The block's shared memory.
template <typename T>
struct BandRoom {
  T* first;    // [round][kPanel]
  T* second;   // the same
  T* groups;   // [2][tiles][kPanel]: sums of both over every tile of the other side's first kPanel rows
  T* weights;  // [tiles][weight_rows][kTile]
  T* table;    // [kTables][kPanel]
  T* least;    // [round]: W of rows
  T* end;
  T* totals;  // [2 kTile kLanes][kBandThreads], with more rounds than one: of the rounds before

  __host__ __device__ BandRoom(const Reach& reach, T* memory) {
    const auto take = [&](int count) {
      T* at = memory;
      memory += count;
      return at;
    };
    first = take(reach.round * kPanel);
    second = take(reach.round * kPanel);
    groups = take(2 * kPanelTiles * kPanel);
    weights = take(kPanelTiles * reach.weight_rows() * kTile);
    table = take(kTables * kPanel);
    least = take(reach.round);
    totals = take(has_totals(reach) ? 2 * kTile * kLanes * kBandThreads : 0);
    end = memory;
  }
  /// In f64 registers have to do.
  static __host__ __device__ bool has_totals(const Reach& reach) { return sizeof(T) == 4 && !reach.one_round(); }
  static int64_t bytes(const Reach& reach) {
    const BandRoom room(reach, nullptr);
    return (room.end - room.first) * int64_t{sizeof(T)};
  }

  __device__ T& of_channel(Table row, int channel) const { return table[row * kPanel + channel]; }
  __device__ cuda::RunningSum<T> outside(Table row, int channel) const {
    return {table[row * kPanel + channel],
            {table[(row + 1) * kPanel + channel], T(0)},
            {table[(row + 2) * kPanel + channel], T(0)}};
  }
  __device__ void set_outside(Table row, int channel, const cuda::RunningSum<T>& sum) const {
    table[row * kPanel + channel] = sum.max;
    table[(row + 1) * kPanel + channel] = sum.den.sum;
    table[(row + 2) * kPanel + channel] = sum.num.sum;
  }
};

/// A thread's place: its tile and the first of its channels among those at hand.
struct BandThread {
  int tile = threadIdx.x / (kPanel / kLanes), lane = threadIdx.x % (kPanel / kLanes) * kLanes;
};

template <typename T>
struct BandSums {
  T first[kTile][kLanes] = {}, second[kTile][kLanes] = {};

  /// Adds the product of the round from row `begin` on.
  __device__ void add_round(const BandRoom<T>& room, const Reach& reach, const BandThread& thread, int begin) {
    const int from = max(begin, thread.tile * kTile), to = min(begin + reach.round, thread.tile * kTile + reach.span);
    const T* weight = room.weights + thread.tile * reach.weight_rows() * kTile;
    const T* x = room.first + (from - begin) * kPanel + thread.lane;
    const T* y = room.second + (from - begin) * kPanel + thread.lane;
#pragma unroll 2
    for (int m = from; m < to; ++m, x += kPanel, y += kPanel, weight += kTile) {
      const auto a = cuda::load<kLanes>(x), b = cuda::load<kLanes>(y);
      const auto w0 = cuda::load<4>(weight), w1 = cuda::load<4>(weight + 4);
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        const T w = r < 4 ? w0.lane[r] : w1.lane[r - 4];
#pragma unroll
        for (int i = 0; i < kLanes; ++i) {
          first[r][i] = fma(w, a.lane[i], first[r][i]);
          second[r][i] = fma(w, b.lane[i], second[r][i]);
        }
      }
    }
  }
};

/// The sums of several rounds: each round's own first, so that a long window is not one long sum.
template <typename T>
struct BandTotals {
  T* shared;  // this thread's
  const Reach& reach;
  BandSums<T> own;  // in f64

  __device__ BandTotals(const BandRoom<T>& room, const Reach& extent)
      : shared(room.totals + threadIdx.x), reach(extent) {}

  /// `sums` are those of the round from row `begin` on; after the last round, of all.
  __device__ void add(BandSums<T>& sums, int begin) {
    if (reach.one_round()) return;
    const bool first = begin == 0, last = begin + reach.round >= reach.rows();
#pragma unroll
    for (int i = 0; i < 2 * kTile * kLanes; ++i) {
      const int r = i / kLanes % kTile, lane = i % kLanes;
      T& sum = i < kTile * kLanes ? sums.first[r][lane] : sums.second[r][lane];
      T& before =
          sizeof(T) == 8 ? (i < kTile * kLanes ? own.first[r][lane] : own.second[r][lane]) : shared[i * kBandThreads];
      const T total = first ? sum : before + sum;
      if (last) {
        sum = total;
      } else {
        before = total;
        sum = 0;
      }
    }
  }
};

/// Two sums for each of a thread's channels, over rows of the other side that its tile is not multiplied with.
template <typename T>
struct Around {
  T first[kLanes] = {}, second[kLanes] = {};

  __device__ void add(const T* x, const T* y, T weight = T(1)) {
    const auto a = cuda::load<kLanes>(x), b = cuda::load<kLanes>(y);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      first[i] = fma(weight, a.lane[i], first[i]);
      second[i] = fma(weight, b.lane[i], second[i]);
    }
  }
  /// The tiles before this thread's: room.groups is filled.
  __device__ void add_groups_before(const BandRoom<T>& room, const BandThread& thread) {
    for (int tile = 0; tile < thread.tile; ++tile) {
      add(room.groups + tile * kPanel + thread.lane, room.groups + (kPanelTiles + tile) * kPanel + thread.lane);
    }
  }
  /// The rows [from, to) of the round that begins at `begin`, each times weight(row of the round).
  template <typename Weight>
  __device__ void add_rows(const BandRoom<T>& room, const Reach& reach, const BandThread& thread, int begin, int from,
                           int to, const Weight& weight) {
    for (int m = max(from - begin, 0); m < min(to - begin, reach.round); ++m) {
      add(room.first + m * kPanel + thread.lane, room.second + m * kPanel + thread.lane, weight(m));
    }
  }
};

/// Calls set(m, a, b) for every row m of a round, which is stored: a thread does a tile of the first kPanel rows and an
/// eighth of the others. Where `grouped`, also the tiles' sums.
template <typename T, typename Set>
__device__ void fill_round(const BandRoom<T>& room, const Reach& reach, const BandThread& thread, bool grouped,
                           const Set& set) {
  const int rest = (reach.round - kPanel) / kPanelTiles;
  Around<T> sum;
#pragma unroll 2
  for (int i = 0; i < kTile + rest; ++i) {
    const int m = i < kTile ? thread.tile * kTile + i : kPanel + thread.tile * rest + i - kTile;
    cuda::Pack<T, kLanes> a = {}, b = {};
    set(m, a, b);
    cuda::store(room.first + m * kPanel + thread.lane, a);
    cuda::store(room.second + m * kPanel + thread.lane, b);
    if (i >= kTile) continue;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      sum.first[lane] += a.lane[lane];
      sum.second[lane] += b.lane[lane];
    }
  }
  if (!grouped) return;
  cuda::Pack<T, kLanes> a, b;
#pragma unroll
  for (int lane = 0; lane < kLanes; ++lane) {
    a.lane[lane] = sum.first[lane];
    b.lane[lane] = sum.second[lane];
  }
  cuda::store(room.groups + thread.tile * kPanel + thread.lane, a);
  cuda::store(room.groups + (kPanelTiles + thread.tile) * kPanel + thread.lane, b);
}

/// The band of a head, seen from a sequence. The same for all threads of a block, so one lies in shared memory.
template <typename E>
struct BandTable {
  using T = Accumulate<E>;

  const T* data;  // row of local position 0
  int64_t stride, left, right, first, time, rows;
  bool causal;

  /// Fills it. All threads.
  __device__ void set(const WindowInputs<E>& in, const Sequence& one, int64_t head) {
    if (threadIdx.x == 0) {
      const int64_t position = in.initial_state.position == nullptr ? 0 : in.initial_state.position[one.index];
      stride = in.band.row_stride;
      left = in.shape.left;
      right = in.shape.right;
      time = one.time;
      causal = in.shape.causal;
      first = -min(position, left);
      rows = stride == 0 ? time : min(time, in.band.rows - position);
      data = in.band.data + head * in.band.head_stride + position * stride;
    }
    __syncthreads();
  }
  /// False past the end of the table.
  __device__ bool has_row(int64_t t) const { return t >= 0 && t < rows; }
  /// Of target t: element s is the weight of source s.
  __device__ const T* weights(int64_t t) const { return data + t * stride - (t - left); }
  __device__ int64_t window_begin(int64_t t) const { return max(t - left, first); }
  __device__ int64_t window_end(int64_t t) const { return causal ? t + 1 : min(t + right + 1, time); }

  /// W, the exponent of the largest weight of the targets [t0, t0 + count), at least 0: two threads a target. All
  /// threads.
  __device__ void find_least(int64_t t0, int count, T* least) const {
    using F = FloatFormat<T>;
    for (int r = threadIdx.x / 2; r < (count + 15) / 16 * 16; r += kBandThreads / 2) {
      const int64_t t = t0 + r;
      T most = 0;
      if (r < count && has_row(t)) {
        const T* weight = weights(t);
        for (int64_t s = window_begin(t) + threadIdx.x % 2, end = window_end(t); s < end; s += 2) {
          if (weight[s] < INFINITY) most = fmax(most, weight[s]);
        }
      }
      most = fmax(most, __shfl_xor_sync(0xffffffffu, most, 1));
      if (threadIdx.x % 2 == 0 && r < count) least[r] = fma(fmin(most, kKeyLimit<T>), kLog2E<T>, F::kMagic) - F::kMagic;
    }
  }
  /// e^w 2^-W of target t and source s, which the sequence has; outside the window that of weight 0, or nothing of what
  /// is still to come.
  __device__ T weight(int64_t t, int64_t s, T least) const {
    if (!has_row(t) || s < first || s >= time || (causal && s > t)) return 0;
    if (s < t - left || s > t + right) return cuda::pow2(-least);
    const T w = weights(t)[s];
    return cuda::is_absent(w) ? T(0) : cuda::exp_under(fmin(w, kKeyLimit<T>), least) + (w - w);
  }
};

/// Fills room.weights for the round from row `begin` on: weight(row of the panel, row of the other side). A thread has
/// one row of its tile. All threads.
template <typename T, typename Weight>
__device__ void set_weights(const BandRoom<T>& room, const Reach& reach, int begin, const Weight& weight) {
  const int tile = threadIdx.x / 16, own = threadIdx.x % 16, r = own % kTile;
  const int from = max(begin, tile * kTile), to = min(begin + reach.round, tile * kTile + reach.span);
  T* at = room.weights + tile * reach.weight_rows() * kTile + own;
  for (int m = from + own / kTile; m < to; m += 2, at += 2 * kTile) *at = weight(tile * kTile + r, m);
}

/// A source of a state's ring at `count` channels.
template <typename T>
struct RingSource {
  T key[kLanes], value[kLanes];
};

template <typename E, typename T = Accumulate<E>>
__device__ __noinline__ RingSource<T> read_ring(const WindowInputs<E>& in, const Sequence& one, int64_t s, int64_t c,
                                                int count) {
  const Ring<E> ring(in, one, c);
  RingSource<T> source;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    source.key[i] = i < count ? ring.key(s, i) : T(0);
    source.value[i] = i < count ? ring.value(s, i) : T(0);
  }
  return source;
}

/// The channels [begin, begin + kLanes) of a sequence, those below `end`: rows of a tensor, and its sources with the
/// ring's before them.
template <typename E>
struct BandSources {
  using T = Accumulate<E>;

  const WindowInputs<E>& in;
  const Sequence& one;
  Columns<E, 1> own;
  int64_t begin;
  int count;   // of channels; 0 to kLanes
  bool packs;  // all four move at once

  __device__ BandSources(const WindowInputs<E>& inputs, const Sequence& sequence, int64_t first, int64_t end,
                         bool can_pack)
      : in(inputs),
        one(sequence),
        own(inputs, sequence, min(first, end - 1)),
        begin(first),
        count(static_cast<int>(max(int64_t{0}, min(int64_t{kLanes}, end - first)))),
        packs(can_pack && count == kLanes) {}

  /// kTile rows as they lie in memory, so that their loads run ahead; the first `rows`.
  __device__ void load_rows(const E* from, int64_t stride, int rows, cuda::Pack<E, kLanes> (&to)[kTile]) const {
#pragma unroll
    for (int r = 0; r < kTile; ++r, from += stride) {
      to[r] = {};
      if (r >= rows) continue;
      if (packs) {
        to[r] = cuda::load<kLanes>(from);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        if (i < count) to[r].lane[i] = from[i];
      }
    }
  }
  template <typename From>
  __device__ void load(const From* from, T (&to)[kLanes]) const {
    if (packs) {
      const auto x = cuda::load<kLanes>(from);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) to[i] = cuda::widen(x.lane[i]);
      return;
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) to[i] = i < count ? T(cuda::widen(from[i])) : T(0);
  }
  template <typename To>
  __device__ void store(To* to, const T (&x)[kLanes]) const {
    if (packs) {
      cuda::store<kLanes>(to, x);
      return;
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (i < count) to[i] = cuda::narrow<To>(x[i]);
    }
  }
  /// Keys and values of source s; what is masked is absent.
  __device__ void read(int64_t s, T (&key)[kLanes], T (&value)[kLanes]) const {
    if (s < 0) {
      const RingSource<T> source = read_ring(in, one, s, begin, count);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        key[i] = source.key[i];
        value[i] = source.value[i];
      }
      return;
    }
    load(own.v + s * own.v_stride, value);
    if (own.shares_key) {
      const T shared = cuda::widen(own.k[s * own.k_stride]);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) key[i] = shared;
    } else {
      load(own.k + s * own.k_stride, key);
    }
    if (own.mask == nullptr || own.mask[s]) return;
#pragma unroll
    for (int i = 0; i < kLanes; ++i) key[i] = -INFINITY;
  }
};

/// Of the sources [begin, end): the largest key and the largest absolute value of each channel at hand, visit(channel,
/// key, value), key -inf where there is none; +inf and NaN do not count. Returns whether all is finite, or absent with
/// a finite value. All threads; uses `room`.
template <typename E, typename Visit, typename T = Accumulate<E>>
__device__ bool find_largest(const BandSources<E>& sources, int64_t begin, int64_t end, const BandRoom<T>& room,
                             const BandThread& thread, const Visit& visit) {
  T key_most[kLanes], value_most[kLanes] = {};
  bool plain = true;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) key_most[i] = -INFINITY;
#pragma unroll 4
  for (int64_t s = begin + thread.tile; s < end; s += kPanelTiles) {
    T key[kLanes], value[kLanes];
    sources.read(s, key, value);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const bool own = key[i] <= kKeyLimit<T> && fabs(value[i]) < INFINITY;
      plain = plain && own;
      if (!own && (cuda::is_absent(key[i]) || !(fabs(key[i]) < INFINITY))) continue;
      key_most[i] = fmax(key_most[i], key[i]);
      value_most[i] = fmax(value_most[i], cuda::is_absent(key[i]) ? T(0) : fabs(value[i]));
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    room.first[thread.tile * kPanel + thread.lane + i] = key_most[i];
    room.second[thread.tile * kPanel + thread.lane + i] = value_most[i];
  }
  plain = __syncthreads_and(plain) != 0;
  if (threadIdx.x < kPanel) {
    const int channel = threadIdx.x;
    T key = -INFINITY, value = 0;
#pragma unroll
    for (int tile = 0; tile < kPanelTiles; ++tile) {
      key = fmax(key, room.first[tile * kPanel + channel]);
      value = fmax(value, room.second[tile * kPanel + channel]);
    }
    visit(channel, key, value);
  }
  __syncthreads();
  return plain;
}

/// n of e^k = p 2^n for the largest of some keys.
template <typename T>
__device__ T exponent_of_key(T key) {
  using F = FloatFormat<T>;
  return cuda::is_absent(key) ? kExponentFloor<T> : fma(fmin(key, kKeyLimit<T>), kLog2E<T>, F::kMagic) - F::kMagic;
}

/// K = e^k 2^-max and K v scale of a source's channels. plain: nothing is infinite or NaN but an absent key.
template <typename T>
__device__ void scale_source(bool plain, const T (&key)[kLanes], const T (&value)[kLanes], const T (&max)[kLanes],
                             const T (&scale)[kLanes], cuda::Pack<T, kLanes>& k, cuda::Pack<T, kLanes>& kv) {
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    T own = key[i], v = value[i];
    if (!plain) {
      own = fmin(own, kKeyLimit<T>);
      if (cuda::is_absent(own)) v = 0;
    }
    k.lane[i] = cuda::exp_under(own, max[i]);
    if (!plain && !cuda::is_absent(own)) k.lane[i] += key[i] - key[i];
    kv.lane[i] = k.lane[i] * (v * scale[i]);
  }
}

/// A block's slot, head and channels, in shared memory.
struct BandPlace {
  Slot slot;
  int64_t index, head;     // of the slot
  int64_t end, block_end;  // of the head's channels, of the block's
};

/// A thread's place in it.
template <typename E>
struct BandUnit {
  using T = Accumulate<E>;

  const Slot& slot;
  const int64_t &index, &head, &end, &block_end;
  BandThread thread;
  int64_t c;  // the first channel at hand
  bool valid;

  /// `strips` of them a block. All threads.
  __device__ BandUnit(const WindowInputs<E>& in, const Slots& slots, int64_t first_slot, int strips, BandPlace& shared)
      : slot(shared.slot), index(shared.index), head(shared.head), end(shared.end), block_end(shared.block_end) {
    const WindowShape& s = in.shape;
    const int64_t width = s.channels / s.heads, groups = (width + strips * kPanel - 1) / (strips * kPanel);
    const unsigned of_slot = static_cast<unsigned>(groups * s.heads), rest = blockIdx.x % of_slot;
    const unsigned head_of_block = rest / static_cast<unsigned>(groups);
    const int64_t begin = head_of_block * width + rest % static_cast<unsigned>(groups) * (strips * kPanel);
    c = begin + thread.lane;
    BandPlace own = {{}, first_slot + blockIdx.x / of_slot, head_of_block, (head_of_block + 1) * width, 0};
    own.block_end = min(begin + strips * kPanel, own.end);
    valid = find_slot(in, slots, own.index, own.slot);
    if (threadIdx.x == 0) shared = own;
    __syncthreads();
  }
  /// The channel at place i of those at hand; one past the end is the last.
  __device__ int64_t channel(int i) const { return min(c - thread.lane + i, end - 1); }
  __device__ int64_t row(int r) const { return slot.begin + thread.tile * kTile + r; }
  /// Of this thread.
  __device__ int rows() const { return static_cast<int>(max(int64_t{0}, min(int64_t{kTile}, slot.end - row(0)))); }
  /// Goes to the next channels; false where there are none.
  __device__ bool next() {
    c += kPanel;
    return c - thread.lane < block_end;
  }
};

/// A target's D and N: D = den 2^exponent, N = num 2^(exponent + X).
template <typename T>
struct TargetSums {
  T den, num, exponent;

  /// Whether what the products lost is below the promise. N may have met an infinite value that the row does not see.
  __device__ bool certified() const { return den >= kCertificate<T> && fabs(num) < INFINITY; }
};

/// Target t of a slot at channel c, pair by pair, from the sums outside the slot's windows.
template <typename E, typename T = Accumulate<E>>
__device__ __noinline__ TargetSums<T> exact_target(const WindowInputs<E>& in, const Slot& slot, int64_t c, int64_t t,
                                                   cuda::RunningSum<T> before, cuda::RunningSum<T> after,
                                                   T value_scale) {
  const RowSources<E> sources(in, slot.sequence, c);
  const int64_t time = slot.sequence.time;
  for (int64_t s = sources.window_begin(slot.begin); s < t - sources.left; ++s) {
    before.add_source(sources.key(s), sources.value(s));
  }
  if (!sources.causal) {
    for (int64_t s = sources.window_end(slot.end - 1, time) - 1; s > t + sources.right; --s) {
      after.add_source(sources.key(s), sources.value(s));
    }
  }
  const ExactRow<T> row = exact_row(sources, t, time, before, after, value_scale);
  return {row.den, row.num, row.exponent};
}

/// The targets of a block's slot. K = e^k 2^-M and K v 2^-X of the sources that their windows hold, w~ = e^w 2^-W of
/// every pair: D = den 2^(M + W), N = num 2^(M + W + X). M and X are those of all sources that the slot reads, W that
/// of a target's weights.
template <typename E>
struct BandTargets {
  using T = Accumulate<E>;

  const WindowInputs<E>& in;
  const BandUnit<E>& unit;
  const Reach& reach;
  const BandRoom<T>& room;
  const BandTable<E>& table;

  /// All threads.
  __device__ BandTargets(const WindowInputs<E>& inputs, const BandUnit<E>& place, const Reach& extent,
                         const BandRoom<T>& memory, BandTable<E>& shared)
      : in(inputs), unit(place), reach(extent), room(memory), table(shared) {
    shared.set(inputs, place.slot.sequence, place.head);
    table.find_least(unit.slot.begin, kPanel, room.least);
    __syncthreads();
    if (reach.one_round()) form_weights(0);
  }
  __device__ void form_weights(int begin) const {
    const int64_t t0 = unit.slot.begin, s0 = t0 - reach.left;
    set_weights(room, reach, begin, [&](int r, int m) { return table.weight(t0 + r, s0 + m, room.least[r]); });
  }

  /// The sums of this thread's targets at its channels. Beforehand the sums outside the slot's windows stand in the
  /// room's table. All threads.
  __device__ void sum(const BandSources<E>& sources, BandSums<T>& sums) const {
    const Slot& slot = unit.slot;
    const BandThread& thread = unit.thread;
    const auto choose = [&](int channel, T key, T value) {
      const cuda::RunningSum<T> around[2] = {room.outside(kBeforeMax, channel), room.outside(kAfterMax, channel)};
      const T max = fmax(exponent_of_key(key), fmax(around[0].max, around[1].max));
      for (const auto& sum : around) value = fmax(value, fabs(sum.num.sum * cuda::pow2(sum.max - max)));
      room.of_channel(kMax, channel) = max;
      room.of_channel(kValueExponent, channel) =
          fmin(fmax(cuda::exponent_of(value), kLeastValueExponent<T>), kValueExponentLimit<T>);
    };
    const bool plain =
        find_largest(sources, table.window_begin(slot.begin), table.window_end(slot.end - 1), room, thread, choose);
    const int64_t s0 = slot.begin - reach.left, last = table.window_end(slot.end - 1);
    Around<T> around;
    BandTotals<T> totals(room, reach);
    for (int begin = 0; begin < reach.rows(); begin += reach.round) {
      if (begin > 0) __syncthreads();
      if (!reach.one_round()) form_weights(begin);
      set_sources(sources, plain, s0 + begin, last, begin == 0);
      __syncthreads();
      sums.add_round(room, reach, thread, begin);
      totals.add(sums, begin);
      if (begin == 0) around.add_groups_before(room, thread);
      if (!table.causal) {
        around.add_rows(room, reach, thread, begin, thread.tile * kTile + reach.span, reach.rows(),
                        [](int) { return T(1); });
      }
    }
    add_outside(around, sums);
  }

  /// K and K v 2^-X of the sources of the round from s0 on, those below `last`, into the block's memory.
  __device__ void set_sources(const BandSources<E>& sources, bool plain, int64_t s0, int64_t last, bool grouped) const {
    T max[kLanes], scale[kLanes];
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      max[i] = room.of_channel(kMax, unit.thread.lane + i);
      scale[i] = cuda::pow2(-room.of_channel(kValueExponent, unit.thread.lane + i));
    }
    fill_round(room, reach, unit.thread, grouped, [&](int m, cuda::Pack<T, kLanes>& k, cuda::Pack<T, kLanes>& kv) {
      const int64_t s = s0 + m;
      if (s < table.first || s >= last) return;
      T key[kLanes], value[kLanes];
      sources.read(s, key, value);
      scale_source(plain, key, value, max, scale, k, kv);
    });
  }

  /// Sources outside have the weight of e^0.
  __device__ void add_outside(const Around<T>& around, BandSums<T>& sums) const {
    T scale[kTile];
#pragma unroll
    for (int r = 0; r < kTile; ++r) scale[r] = cuda::pow2(-room.least[unit.thread.tile * kTile + r]);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      const int channel = unit.thread.lane + i;
      const T max = room.of_channel(kMax, channel), value_scale = cuda::pow2(-room.of_channel(kValueExponent, channel));
      T den = around.first[i], num = around.second[i];
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        if (side == 1 && table.causal) continue;
        const cuda::RunningSum<T> sum = room.outside(side == 0 ? kBeforeMax : kAfterMax, channel);
        const T part = cuda::pow2(sum.max - max);
        den = fma(sum.den.sum, part, den);
        num = fma(sum.num.sum * value_scale, part, num);
      }
#pragma unroll
      for (int r = 0; r < kTile; ++r) {
        sums.first[r][i] = fma(den, scale[r], sums.first[r][i]);
        sums.second[r][i] = fma(num, scale[r], sums.second[r][i]);
      }
    }
  }

  /// 2^X of channel i of this thread.
  __device__ T value_scale(int i) const { return cuda::pow2(room.of_channel(kValueExponent, unit.thread.lane + i)); }

  /// visit.begin(); then for every row r of the thread: visit.row(r, sums), where the sums of a channel may be wrong;
  /// then, for those, visit.one(r, channel of the thread, sums), done again pair by pair. Returns how many those are.
  /// visit.absent(r): past the end of the table.
  template <typename Visit>
  __device__ int for_each(const BandSums<T>& sums, int channels, bool redo, Visit& visit) const {
    uint32_t exactly = 0;  // bit kLanes r + i
    visit.begin();
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      if (unit.row(r) >= unit.slot.end) continue;
      if (!table.has_row(unit.row(r))) {
        visit.absent(r);
        continue;
      }
      TargetSums<T> row[kLanes];
#pragma unroll
      for (int i = 0; i < kLanes; ++i) {
        const T max = room.of_channel(kMax, unit.thread.lane + i);
        row[i] = {sums.first[r][i], sums.second[r][i], max + room.least[unit.thread.tile * kTile + r]};
        if (redo && !row[i].certified() && i < channels) exactly |= 1u << (kLanes * r + i);
      }
      visit.row(r, row);
    }
    const int failed = __popc(exactly);
    for (; exactly != 0; exactly &= exactly - 1) {
      const int bit = __ffs(exactly) - 1, r = bit / kLanes, i = bit % kLanes, channel = unit.thread.lane + i;
      visit.one(r, i,
                exact_target(in, unit.slot, unit.c + i, unit.row(r), room.outside(kBeforeMax, channel),
                             room.outside(kAfterMax, channel), 1 / value_scale(i)));
    }
    return failed;
  }
};

}  // namespace aft::ops::window

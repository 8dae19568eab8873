#pragma once

// The product of a band with rows of channels, in which every pass with a band does its work. A block of threads has a
// panel of 64 rows of one head, and its channels 64 at a time; a warp a tile of 8 rows, a thread 2 channels of it. What
// the rows are multiplied with lies in shared memory: two numbers a row and channel on the other side of the band (of a
// source e^k and e^k v, of a target a and b) and a weight for every pair. Rows of the other side count from where the
// panel's first row reaches; tile j is multiplied with the rows [8 j, 8 j + span).

#include <cstdint>
#include <string>

#include "aft/error.h"
#include "ops/common/cuda/shared.cuh"
#include "ops/window/cuda_row.cuh"

namespace aft::ops::window {

constexpr int kPanel = 64;  // rows, and channels at a time, of a block
static_assert(kPanel == kChunk);
constexpr int kLanes = 2;  // channels of a thread
constexpr int kPanelTiles = kPanel / kTile;
constexpr int kBandThreads = 32 * kPanelTiles;
static_assert(kPanel == 32 * kLanes);
/// Numbers between rows in shared memory: 16 bytes at the same place of 8 rows then lie in other banks.
constexpr int kPitch = kPanel + 4;

/// How far a band reaches, and how many rows of the other side are in shared memory at a time, a round: all if those
/// are not many, or a panel of them. In f64 always a panel.
struct Reach {
  static constexpr int kMostRows = 96;

  int left, right;
  int span;   // rows that a tile is multiplied with, a multiple of a tile
  int round;  // kPanel or kMostRows

  /// number_bytes: of a number in shared memory.
  Reach(const WindowShape& s, size_t number_bytes)
      : left(checked(s.left)),
        right(checked(s.right)),
        span(kTile + (left + right + kTile - 1) / kTile * kTile),
        round(rows() <= kMostRows && number_bytes == 4 ? kMostRows : kPanel) {}

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
  bool one_round() const { return round == kMostRows; }
};

/// Whether 32 bits hold a tensor's stride: offsets within a round are formed from those.
template <typename E>
bool has_short_stride(const Rows<E>& rows) {
  return rows.time_stride >= 0 && rows.time_stride < int64_t{1} << 32;
}
/// Whether its rows move kLanes elements at a time.
template <typename E>
bool moves_in_lanes(const WindowShape& s, const Rows<E>& rows) {
  return moves_in_packs<kLanes>(s, rows) && has_short_stride(rows);
}
/// Whether all rows do that a forward reads. A key that its head shares is one element.
template <typename E>
bool inputs_move_in_lanes(const WindowInputs<E>& in) {
  const WindowShape& s = in.shape;
  return moves_in_lanes(s, in.v) && (s.key_channels == s.channels ? moves_in_lanes(s, in.k) : has_short_stride(in.k)) &&
         (s.gate == Gate::kNone || moves_in_lanes(s, in.q));
}

/// Rows of a round that a warp brings, a parameter of all that works on rounds: a tile of the first kPanel and an
/// eighth of the others, where one round has all, or of a panel a tile.
constexpr int kAllRows = Reach::kMostRows / kPanelTiles;
template <int kRows>
constexpr int kRound = kRows* kPanelTiles;

/// Calls run(reach, std::integral_constant<int, kRows>()).
template <typename T, typename Run>
void with_rounds(const WindowShape& s, const Run& run) {
  const Reach reach(s, sizeof(T));
  if constexpr (sizeof(T) == 4) {
    if (reach.one_round()) return run(reach, std::integral_constant<int, kAllRows>());
  }
  run(reach, std::integral_constant<int, kTile>());
}

constexpr int kGroups = 2 * kPanelTiles;

/// Numbers of a block's channels in shared memory: M and X, and the sums outside the panel's windows.
enum Table { kMax, kValueExponent, kBeforeMax, kBeforeDen, kBeforeNum, kAfterMax, kAfterDen, kAfterNum, kTables };

/// The rows of the other side that a tile is multiplied with, [from, to): those of the round from row `begin` on.
struct TileRows {
  int from, to;
};
template <int kRows>
__device__ TileRows tile_rows(const Reach& reach, int tile, int begin) {
  const int first = tile * kTile;
  if constexpr (kRows == kAllRows) return {first, first + reach.span};
  return {max(begin, first), min(begin + kRound<kRows>, first + reach.span)};
}

/// The block's shared memory.
template <typename T>
struct BandRoom {
  T* first;    // [round][kPitch]
  T* second;   // the same
  T* groups;   // [2][kGroups][kPanel]: sums of both over what each warp brings, a tile of rows and the others
  T* weights;  // [tiles][weight_rows][kTile]
  T* table;    // [kTables][kPanel]
  T* least;    // [round]: W of rows
  T* totals;   // [2 kTile kLanes][kBandThreads], with more rounds than one: of the rounds before
  T* own;      // [2][kPanel][kPitch], in f32, where the gradient of the band is formed: two numbers a row of the panel
  T* end;

  /// own_rows: whether there is to be `own`.
  __host__ __device__ BandRoom(const Reach& reach, bool own_rows, T* memory) {
    const auto take = [&](int count) {
      T* at = memory;
      memory += count;
      return at;
    };
    first = take(reach.round * kPitch);
    second = take(reach.round * kPitch);
    groups = take(2 * kGroups * kPanel);
    weights = take(kPanelTiles * reach.weight_rows() * kTile);
    table = take(kTables * kPanel);
    least = take(reach.round);
    totals = take(has_totals(reach) ? 2 * kTile * kLanes * kBandThreads : 0);
    own = take(own_rows && sizeof(T) == 4 ? 2 * kPanel * kPitch : 0);
    end = memory;
  }
  /// In f64 registers have to do.
  static __host__ __device__ bool has_totals(const Reach& reach) { return sizeof(T) == 4 && reach.round == kPanel; }
  static int64_t bytes(const Reach& reach, bool own_rows = false) {
    const BandRoom room(reach, own_rows, nullptr);
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
  int tile = threadIdx.x / 32, lane = threadIdx.x % 32 * kLanes;

  /// Row i of those of a round that its warp brings.
  __device__ int own_row(int i) const {
    return i < kTile ? tile * kTile + i : kPanel + tile * (kAllRows - kTile) + i - kTile;
  }
};

template <typename T>
struct BandSums {
  T first[kTile][kLanes] = {}, second[kTile][kLanes] = {};

  /// Adds the product of the round from row `begin` on.
  template <int kRows>
  __device__ __forceinline__ void add_round(const BandRoom<T>& room, const Reach& reach, const BandThread& thread,
                                            int begin) {
    const auto [from, to] = tile_rows<kRows>(reach, thread.tile, begin);
    const T* weight = room.weights + thread.tile * reach.weight_rows() * kTile;
    const T* x = room.first + (from - begin) * kPitch + thread.lane;
    const T* y = room.second + (from - begin) * kPitch + thread.lane;
    constexpr int kUnroll = kRows == kAllRows ? 4 : 2;
#pragma unroll kUnroll
    for (int m = from; m < to; ++m, x += kPitch, y += kPitch, weight += kTile) {
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

/// The sums of several rounds, each summed by itself first, so that a long window is not one long sum.
template <typename T>
struct BandTotals {
  T* shared;        // this thread's
  BandSums<T> own;  // in f64

  __device__ explicit BandTotals(const BandRoom<T>& room) : shared(room.totals + threadIdx.x) {}

  /// Adds what is before to `sums` of a round, unless it is the first.
  __device__ __forceinline__ void add(BandSums<T>& sums, bool first, bool last) {
#pragma unroll
    for (int i = 0; i < 2 * kTile * kLanes; ++i) {
      const int r = i / kLanes % kTile, lane = i % kLanes;
      T& sum = i < kTile * kLanes ? sums.first[r][lane] : sums.second[r][lane];
      T& before =
          sizeof(T) == 8 ? (i < kTile * kLanes ? own.first[r][lane] : own.second[r][lane]) : shared[i * kBandThreads];
      if (!first) sum += before;
      if (!last) before = sum;
    }
  }
};

/// Two sums for each of a thread's channels, over rows of the other side that its tile is not multiplied with.
template <typename T>
struct Around {
  T first[kLanes] = {}, second[kLanes] = {};

  __device__ __forceinline__ void add(const cuda::Pack<T, kLanes>& a, const cuda::Pack<T, kLanes>& b, T weight) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      first[i] = fma(weight, a.lane[i], first[i]);
      second[i] = fma(weight, b.lane[i], second[i]);
    }
  }
  /// The rows [from, to) of the other side, multiples of a tile, that are in the round from row `begin` on: room.groups
  /// is filled.
  template <int kRows>
  __device__ __forceinline__ void add_groups(const BandRoom<T>& room, const BandThread& thread, int begin, int from,
                                             int to) {
    add_tiles(room, thread, begin, from, to);
    if constexpr (kRows > kTile) {
      constexpr int kOthers = kRows - kTile;
#pragma unroll 1
      for (int m = max(from - begin, kPanel); m < min(to - begin, kRound<kRows>); m += kOthers) {
        add_group(room, thread, kPanelTiles + (m - kPanel) / kOthers);
      }
    }
  }
  /// The same of those among the round's first kPanel.
  __device__ __forceinline__ void add_tiles(const BandRoom<T>& room, const BandThread& thread, int begin, int from,
                                            int to) {
#pragma unroll 1
    for (int m = max(from - begin, 0); m < min(to - begin, kPanel); m += kTile) add_group(room, thread, m / kTile);
  }
  __device__ __forceinline__ void add_group(const BandRoom<T>& room, const BandThread& thread, int group) {
    add(cuda::load<kLanes>(room.groups + group * kPanel + thread.lane),
        cuda::load<kLanes>(room.groups + (kGroups + group) * kPanel + thread.lane), T(1));
  }
};

/// Stores a round's rows, and sums them on the way: those of a tile, and what else a warp brings.
template <typename T>
struct RoundWriter {
  const BandRoom<T> room;
  const BandThread thread;
  Around<T> tile, others;

  /// Row i of the warp; outside windows it has `weight`.
  __device__ __forceinline__ void put(int i, const cuda::Pack<T, kLanes>& a, const cuda::Pack<T, kLanes>& b,
                                      T weight = T(1)) {
    const int m = thread.own_row(i);
    cuda::store(room.first + m * kPitch + thread.lane, a);
    cuda::store(room.second + m * kPitch + thread.lane, b);
    if (i < kTile) {
      tile.add(a, b, weight);
    } else {
      others.add(a, b, weight);
    }
  }
  /// Leaves the sums in room.groups.
  __device__ __forceinline__ void store_groups() const {
    store_group(thread.tile, tile);
    store_group(kPanelTiles + thread.tile, others);
  }
  __device__ __forceinline__ void store_group(int group, const Around<T>& sum) const {
    cuda::Pack<T, kLanes> a, b;
#pragma unroll
    for (int lane = 0; lane < kLanes; ++lane) {
      a.lane[lane] = sum.first[lane];
      b.lane[lane] = sum.second[lane];
    }
    cuda::store(room.groups + group * kPanel + thread.lane, a);
    cuda::store(room.groups + (kGroups + group) * kPanel + thread.lane, b);
  }
};

/// The band of a head, seen from a sequence. The same for all threads of a block, so one lies in shared memory.
template <typename E>
struct BandTable {
  using T = Accumulate<E>;

  const T* data;  // row of local position 0
  int64_t stride, left, right, first, time, rows;
  bool causal;

  /// Fills it. All threads.
  __device__ __forceinline__ void set(const WindowInputs<E>& in, const Sequence& one, int64_t head) {
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
  /// How many of a tile's targets from t on it has; those beyond come last.
  __device__ int rows_from(int64_t t) const { return static_cast<int>(max(int64_t{0}, min(int64_t{kTile}, rows - t))); }
  /// The weights of target t, a column a source from t - left on.
  __device__ const T* row(int64_t t) const { return data + t * stride; }
  __device__ int64_t window_begin(int64_t t) const { return max(t - left, first); }
  __device__ int64_t window_end(int64_t t) const { return causal ? t + 1 : min(t + right + 1, time); }

  /// W, the exponent of the largest weight of the targets [t0, t0 + count), at least 0: four threads a target, count a
  /// multiple of a tile. All threads.
  __device__ __forceinline__ void find_least(int64_t t0, int count, T* least) const {
    using F = FloatFormat<T>;
    for (int r = threadIdx.x / 4; r < count; r += kBandThreads / 4) {
      const int64_t t = t0 + r;
      T most = 0;
      if (has_row(t)) {
        const T* weights = row(t);
        const int end = static_cast<int>(window_end(t) - (t - left));
#pragma unroll 4
        for (int j = static_cast<int>(window_begin(t) - (t - left)) + threadIdx.x % 4; j < end; j += 4) {
          const T w = weights[j];
          most = fmax(most, w < INFINITY ? w : T(0));
        }
      }
      most = fmax(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmax(most, __shfl_xor_sync(0xffffffffu, most, 2));
      if (threadIdx.x % 4 == 0) least[r] = fma(fmin(most, kKeyLimit<T>), kLog2E<T>, F::kMagic) - F::kMagic;
    }
  }
  /// e^w 2^-W of column j of `row`; outside the window that of weight 0, or nothing of what is still to come.
  /// kRounded: as cuda::exp_under_for.
  template <bool kRounded>
  __device__ __forceinline__ T weight(const T* row, int j, int columns, T least) const {
    const T w = j >= 0 && j < columns ? row[j] : T(0);
    const T e = cuda::exp_under_for<kRounded>(fmin(w, kKeyLimit<T>), least) + (w - w);
    return cuda::is_absent(w) || (causal && j >= columns) ? T(0) : e;
  }
};

/// The row of the panel whose weights this thread forms: one of its warp's tile.
inline __device__ int weight_row() { return threadIdx.x / 32 * kTile + threadIdx.x % kTile; }

/// Fills room.weights for the round from row `begin` on: weight(row of the other side), of weight_row(). All threads.
template <int kRows, typename T, typename Weight>
__device__ __forceinline__ void set_weights(const BandRoom<T>& room, const Reach& reach, int begin,
                                            const Weight& weight) {
  const int tile = threadIdx.x / 32, own = threadIdx.x % 32;
  const auto [from, to] = tile_rows<kRows>(reach, tile, begin);
  T* at = room.weights + tile * reach.weight_rows() * kTile + own;
#pragma unroll 5
  for (int m = from + own / kTile; m < to; m += 32 / kTile, at += 32) *at = weight(m);
}

/// Those of [from, to) that lie in [begin, begin + count), counted from begin.
struct RowRange {
  int from, to;

  __device__ RowRange(int64_t first, int64_t last, int64_t begin, int count)
      : from(static_cast<int>(max(first - begin, int64_t{0}))),
        to(static_cast<int>(max(int64_t{0}, min(last - begin, int64_t{count})))) {}
  __device__ bool has(int i) const { return i >= from && i < to; }
};

/// A block's slot, head and channels, in shared memory.
struct BandPlace {
  Slot slot;
  int64_t index, head;            // of the slot
  int64_t begin, end, block_end;  // of the block's channels; of the head's; of the block's
  bool valid;
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
  __device__ __forceinline__ BandUnit(const WindowInputs<E>& in, const Slots& slots, int64_t first_slot, int strips,
                                      BandPlace& shared)
      : slot(shared.slot), index(shared.index), head(shared.head), end(shared.end), block_end(shared.block_end) {
    if (threadIdx.x == 0) {
      const WindowShape& s = in.shape;
      const auto groups = static_cast<unsigned>(band_groups(s, strips));
      const unsigned of_slot = groups * static_cast<unsigned>(s.heads), rest = blockIdx.x % of_slot;
      const int64_t width = s.channels / s.heads, group = rest % groups;
      shared.head = rest / groups;
      shared.index = first_slot + blockIdx.x / of_slot;
      shared.end = (shared.head + 1) * width;
      shared.begin = shared.head * width + group * strips * kPanel;
      shared.block_end = min(shared.begin + strips * kPanel, shared.end);
      shared.valid = find_slot(in, slots, shared.index, shared.slot);
    }
    __syncthreads();
    valid = shared.valid;
    c = shared.begin + thread.lane;
  }
  /// The channel at place i of those at hand; one past the end is the last.
  __device__ int64_t channel(int i) const { return min(c - thread.lane + i, end - 1); }
  /// Goes to the next channels; false where there are none.
  __device__ __forceinline__ bool next() {
    c += kPanel;
    return c - thread.lane < block_end;
  }
};

}  // namespace aft::ops::window

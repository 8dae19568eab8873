// The gradient of the band: cuda_backward_band.cuh. Of target t and source s, over the channels of a head:
// dw = e^w sum_c e^k (v a[t] - b[t]).

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/cuda_backward_band.cuh"

namespace aft::ops::window {
namespace {

constexpr int kRound = 96;                                   // sources at a time
constexpr int kChannels = 32;                                // channels at a time
constexpr int kRow = kChannels + kLanes;                     // numbers between rows: four rows then lie in other banks
constexpr int kColumns = 3;                                  // sources of a thread, 16 apart: half a round of them
constexpr int kReaders = kBandThreads / kChannels * kLanes;  // threads that read a row's channels, rows apart

/// The block's shared memory.
template <typename T>
struct PairRoom {
  T* k;      // [kRound][kRow]
  T* kv;     // the same
  T* a;      // [kPanel][kRow]
  T* b;      // the same
  T* max;    // [kChannels]: M
  T* value;  // [kChannels]: X
  T* least;  // [kPanel]: W
  T* parts;  // [2][kReaders][kChannels]

  __host__ __device__ explicit PairRoom(T* memory) {
    const auto take = [&](int count) {
      T* at = memory;
      memory += count;
      return at;
    };
    k = take(kRound * kRow);
    kv = take(kRound * kRow);
    a = take(kPanel * kRow);
    b = take(kPanel * kRow);
    max = take(kChannels);
    value = take(kChannels);
    least = take(kPanel);
    parts = take(2 * kReaders * kChannels);
  }
  static int64_t bytes() {
    const PairRoom room(nullptr);
    return (room.parts - room.k + 2 * kReaders * kChannels) * int64_t{sizeof(T)};
  }
};

/// One pair over the channels [c, end) from p and n of everything.
template <typename E, typename T = Accumulate<E>>
__device__ __noinline__ T exact_pair(const WindowBackward<E>& p, const BandTable<E>& table, const WaveRows<T>& rows,
                                     const Sequence& one, int64_t sequence_slot, int64_t t, int64_t s, int64_t c,
                                     int64_t end) {
  const cuda::SplitExp<T> w = cuda::split_exp(table.weights(t)[s]);
  T sum = 0;
  for (; c < end && w.p != 0; ++c) {
    const RowSources<E> sources(p.in, one, c);
    const T* at = rows.at(sequence_slot, t, c);
    const T a = at[0], b = at[rows.channels], exponent = at[2 * rows.channels];
    const T key = sources.key(s);
    const cuda::SplitExp<T> e = cuda::split_exp(key);
    if ((a == 0 && b == 0) || e.p == 0) continue;
    const T shift = fmin(e.n + w.n - exponent, kPairExponentLimit<T>);
    sum = fma(e.p * w.p * cuda::pow2(shift), fma(sources.value(s), a, -b), sum);
  }
  return sum;
}

/// Brings K, K v and a, b of the channels [c, c + kChannels) of a round into the block's memory: K = e^k 2^-M,
/// KV = K v 2^-X, b 2^(M + W - exponent of D), a with 2^X more. False where something is out of range. All threads.
template <typename E, typename T = Accumulate<E>>
__device__ bool set_channels(const BandSources<E>& channels, const BandTable<E>& table, const PairRoom<T>& room,
                             const WaveRows<T>& rows, int64_t sequence_slot, const Slot& slot, int64_t s0, int64_t last,
                             int64_t c) {
  const int reader = threadIdx.x / (kChannels / kLanes), lane = threadIdx.x % (kChannels / kLanes) * kLanes;
  T key_most[kLanes], value_most[kLanes] = {};
  bool fits = true;
#pragma unroll
  for (int i = 0; i < kLanes; ++i) key_most[i] = -INFINITY;
  for (int m = reader; m < kRound; m += kReaders) {
    const int64_t s = s0 + m;
    T key[kLanes] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY}, value[kLanes] = {};
    if (s >= table.first && s < last) channels.read(s, key, value);
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (cuda::is_absent(key[i])) value[i] = 0;
      fits = fits && key[i] <= kKeyLimit<T> && fabs(value[i]) < INFINITY;
      key_most[i] = fmax(key_most[i], key[i]);
      value_most[i] = fmax(value_most[i], fabs(value[i]));
      room.k[m * kRow + lane + i] = key[i];
      room.kv[m * kRow + lane + i] = value[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    room.parts[reader * kChannels + lane + i] = key_most[i];
    room.parts[(kReaders + reader) * kChannels + lane + i] = value_most[i];
  }
  __syncthreads();
  if (threadIdx.x < kChannels) {
    T key = -INFINITY, value = 0;
    for (int i = 0; i < kReaders; ++i) {
      key = fmax(key, room.parts[i * kChannels + threadIdx.x]);
      value = fmax(value, room.parts[(kReaders + i) * kChannels + threadIdx.x]);
    }
    room.max[threadIdx.x] = exponent_of_key(key);
    room.value[threadIdx.x] = fmin(fmax(cuda::exponent_of(value), kLeastValueExponent<T>), kValueExponentLimit<T>);
  }
  __syncthreads();
  T max[kLanes], exponent_x[kLanes];
#pragma unroll
  for (int i = 0; i < kLanes; ++i) {
    max[i] = room.max[lane + i];
    exponent_x[i] = room.value[lane + i];
  }
  for (int m = reader; m < kRound; m += kReaders) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      T& k = room.k[m * kRow + lane + i];
      T& kv = room.kv[m * kRow + lane + i];
      k = cuda::exp_under(k, max[i]);
      kv = k * (kv * cuda::pow2(-exponent_x[i]));
    }
  }
  for (int r = reader; r < kPanel; r += kReaders) {
    const int64_t t = slot.begin + r;
    T a[kLanes] = {}, b[kLanes] = {}, exponent[kLanes] = {};
    if (t < slot.end) {
      const T* at = rows.at(sequence_slot, t, c + lane);
      channels.load(at, a);
      channels.load(at + rows.channels, b);
      channels.load(at + 2 * rows.channels, exponent);
    }
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (a[i] != 0 || b[i] != 0) {
        const T shift = max[i] + room.least[r] - exponent[i];
        fits = fits && shift + exponent_x[i] <= kPairExponentLimit<T> && shift <= kPairExponentLimit<T>;
        a[i] *= cuda::pow2(fmin(shift + exponent_x[i], kPairExponentLimit<T>));
        b[i] *= cuda::pow2(fmin(shift, kPairExponentLimit<T>));
        fits = fits && fabs(a[i]) <= kMostScaled<T> && fabs(b[i]) <= kMostScaled<T>;
      }
      room.a[r * kRow + lane + i] = a[i];
      room.b[r * kRow + lane + i] = b[i];
    }
  }
  return __syncthreads_and(fits) != 0;
}

// pairs [slots of the wave][kChunk][H][J]: the gradient of each weight from the channels of its head. A block has the
// targets of a slot and a head; a thread a tile of 8 targets and every 16th source that the tile reaches.
template <typename E>
__global__ void __launch_bounds__(kBandThreads, kBandBlocks<E>)
    write_pairs(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                const __grid_constant__ Reach reach, int64_t first_slot, Accumulate<E>* pairs,
                const __grid_constant__ WaveRows<Accumulate<E>> rows, bool packs) {
  using T = Accumulate<E>;
  const WindowShape& shape = p.in.shape;
  const int64_t width = shape.channels / shape.heads, columns = reach.columns();
  const int64_t head = blockIdx.x % static_cast<unsigned>(shape.heads);
  const int64_t local = blockIdx.x / static_cast<unsigned>(shape.heads);
  Slot slot;
  if (!find_slot(p.in, slots, first_slot + local, slot)) return;
  const PairRoom<T> room(cuda::shared_memory<T>());
  __shared__ BandTable<E> table;
  table.set(p.in, slot.sequence, head);
  const int64_t sequence_slot = first_slot + local - slot.index, last = table.window_end(slot.end - 1);
  const int tile = threadIdx.x / 16 * kTile, own = threadIdx.x % 16;
  table.find_least(slot.begin, kPanel, room.least);
  __syncthreads();
  constexpr int kHalf = 16 * kColumns;
  for (int begin = 0, half = 0; begin < reach.rows(); half = kHalf - half, begin += half == 0 ? kRound : 0) {
    if (half >= min(reach.span, kRound)) continue;
    const int64_t s0 = slot.begin - reach.left + begin;
    T sum[kColumns][kTile] = {};
    // The tile's sources in this half of the round.
    const int from = max(tile - begin, 0) + half, to = min(min(tile + reach.span - begin, kRound), from + kHalf);
    bool fits = true;
    for (int64_t c = head * width, end = c + width; c < end; c += kChannels) {
      const int64_t of_thread = c + threadIdx.x % (kChannels / kLanes) * kLanes;
      const BandSources<E> channels(p.in, slot.sequence, of_thread, end, packs);
      __syncthreads();
      fits = set_channels(channels, table, room, rows, sequence_slot, slot, s0, last, c) && fits;
#pragma unroll 1
      for (int lane = 0; lane < kChannels; lane += kLanes) {
        cuda::Pack<T, kLanes> k[kColumns], kv[kColumns];
#pragma unroll
        for (int q = 0; q < kColumns; ++q) {
          const int m = min(from + 16 * q + own, kRound - 1);
          k[q] = cuda::load<kLanes>(room.k + m * kRow + lane);
          kv[q] = cuda::load<kLanes>(room.kv + m * kRow + lane);
        }
#pragma unroll
        for (int r = 0; r < kTile; ++r) {
          const auto a = cuda::load<kLanes>(room.a + (tile + r) * kRow + lane);
          const auto b = cuda::load<kLanes>(room.b + (tile + r) * kRow + lane);
#pragma unroll
          for (int q = 0; q < kColumns; ++q) {
#pragma unroll
            for (int i = 0; i < kLanes; ++i) {
              sum[q][r] = fma(kv[q].lane[i], a.lane[i], fma(-k[q].lane[i], b.lane[i], sum[q][r]));
            }
          }
        }
      }
    }
#pragma unroll
    for (int q = 0; q < kColumns; ++q) {
      const int m = from + 16 * q + own;
#pragma unroll 1
      for (int r = 0; r < kTile; ++r) {
        const int64_t t = slot.begin + tile + r, s = s0 + m, column = s - t + table.left;
        if (m >= to || t >= slot.end || column < 0 || column >= columns) continue;
        T value = 0;
        if (table.has_row(t) && s >= table.first && s < last && !(table.causal && s > t)) {
#pragma unroll
          for (int row = 0; row < kTile; ++row) value = row == r ? sum[q][row] : value;
          value *= table.weight(t, s, room.least[tile + r]);
          if (!fits || !(fabs(value) < INFINITY)) {
            value = exact_pair(p, table, rows, slot.sequence, sequence_slot, t, s, head * width, (head + 1) * width);
          }
        }
        pairs[((local * kChunk + t - slot.begin) * shape.heads + head) * columns + column] = value;
      }
    }
  }
}

/// to [slots of the wave][H][J]: the sums over every slot's rows. One thread a weight of a slot.
template <typename E>
__global__ void sum_rows(WindowInputs<E> in, Slots slots, int64_t first_slot, int64_t count, int64_t band,
                         const Accumulate<E>* pairs, Accumulate<E>* to) {
  const int64_t i = cuda::thread_index(), local = i / band;
  Slot slot;
  if (local >= count) return;
  Accumulate<E> sum = 0;
  if (find_slot(in, slots, first_slot + local, slot)) {
    const Accumulate<E>* at = pairs + local * kChunk * band + i % band;
#pragma unroll 8
    for (int64_t t = slot.begin; t < slot.end; ++t, at += band) sum += *at;
  }
  to[i] = sum;
}

/// Adds what a wave's slots have for a weight, sequence by sequence, to the gradient, so in one order however the waves
/// are cut. Where all positions share a row, `pairs` is [slots][H][J], and what a sequence has so far is kept in
/// `sequence_pairs`. One thread a weight.
template <typename E>
__global__ void add_pairs(const __grid_constant__ WindowBackward<E> p, const __grid_constant__ Slots slots,
                          int64_t first_slot, int64_t count, int64_t rows, const Accumulate<E>* pairs,
                          Accumulate<E>* sequence_pairs) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t columns = s.left + 1 + s.right, band = s.heads * columns, i = cuda::thread_index();
  if (i >= band * rows) return;
  const int64_t column = i % columns, row = i / columns % rows, head = i / columns / rows;
  const bool shared_row = p.in.band.row_stride == 0;
  T& gradient = p.grad_band.data[head * p.grad_band.head_stride + row * p.grad_band.row_stride + column];
  T total = gradient, sum = shared_row && first_slot > 0 ? sequence_pairs[i] : T(0);
  const auto sequence_of = [&](int64_t slot) {
    return s.packed ? find_sequence(s.batch, slot, [&](int64_t m) { return window::first_slot(p.in, slots, m); })
                    : slot / slots.chunks;
  };
  const int64_t end = first_slot + count;
  for (int64_t b = sequence_of(first_slot); b < s.batch; ++b) {
    const int64_t begin_of_b = window::first_slot(p.in, slots, b);
    if (begin_of_b >= end) break;
    const Sequence one = sequence_at(p.in, slots, b);
    if (begin_of_b >= first_slot) {  // the sequence before is complete
      total += sum;
      sum = 0;
    }
    if (shared_row) {
      const int64_t from = max(begin_of_b, first_slot), to = min(begin_of_b + Slots::chunks_of(one.time), end);
#pragma unroll 4
      for (int64_t slot = from; slot < to; ++slot) sum += pairs[(slot - first_slot) * band + i];
      continue;
    }
    const int64_t position = p.in.initial_state.position == nullptr ? 0 : p.in.initial_state.position[b];
    const int64_t t = row - position, source = t - s.left + column, slot = begin_of_b + t / kChunk;
    if (t < 0 || t >= one.time || slot < first_slot || slot >= end) continue;
    if (source < -min(position, s.left) || source >= one.time) continue;
    sum += pairs[((slot - first_slot) * kChunk + t % kChunk) * band + head * columns + column];
  }
  if (!shared_row || end == slots.count) {
    total += sum;
  } else {
    sequence_pairs[i] = sum;
  }
  gradient = total;
}

}  // namespace

template <typename E>
void run_band_pairs(const BandBackward<E>& call, int64_t first, int64_t count, const WaveRows<Accumulate<E>>& rows) {
  using T = Accumulate<E>;
  const WindowShape& s = call.p.in.shape;
  const Reach reach(s);
  const int64_t band = s.heads * reach.columns();
  const auto& memory = call.memory;
  cuda::launch_with_memory(call.cuda, kBackwardName, count * s.heads, kBandThreads, PairRoom<T>::bytes(),
                           write_pairs<E>, call.p, call.slots, reach, first, memory.pairs, rows, call.packs);
  const bool shared_row = call.p.in.band.row_stride == 0;
  if (shared_row) {
    cuda::launch(call.cuda, kBackwardName, count * band, sum_rows<E>, call.p.in, call.slots, first, count, band,
                 memory.pairs, memory.slot_pairs);
  }
  const int64_t table_rows = shared_row ? 1 : call.p.in.band.rows;
  cuda::launch(call.cuda, kBackwardName, band * table_rows, add_pairs<E>, call.p, call.slots, first, count, table_rows,
               shared_row ? memory.slot_pairs : memory.pairs, memory.sequence_pairs);
}

#define AFT_INSTANTIATE(E) \
  template void run_band_pairs<E>(const BandBackward<E>&, int64_t, int64_t, const WaveRows<Accumulate<E>>&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window

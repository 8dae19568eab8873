#pragma once

// The running sums at every chunk, in three launches: what each chunk adds, a fold over the chunks of every group, and
// one over the groups of every sequence. Without a band a chunk adds its own sources. With one it adds those that leave
// its rows' windows, [begin - left, end - left), so that the fold from left to right has before a chunk what lies
// before its first window; not causal, a fold from right to left of [begin + right, end + right) has what lies after
// its last. How long a chunk is depends on the window alone, and groups begin with their sequence, so no result depends
// on the batch, on packing, or on the machine.

#include <cstdint>

#include "ops/common/cuda/launch.cuh"
#include "ops/common/cuda/stream.cuh"
#include "ops/window/cuda_slots.cuh"
#include "ops/window/cuda_tile.cuh"

namespace aft::ops::window {

/// Blocks of cuda::kBlock threads that a multiprocessor is to hold at once, at least: so few registers has a thread.
template <typename E>
constexpr int kBlocks = sizeof(E) == 8   ? 1
                        : sizeof(E) == 4 ? 4
                                         : 5;

constexpr int kAhead = 8;  // chunks whose loads run ahead of their sums

template <int N, typename T>
__device__ void store_sums(const cuda::RunningSum<T> (&s)[N], T* at, int64_t channels) {
  T max[N], den[N], num[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    max[i] = s[i].max;
    den[i] = s[i].den.sum;
    num[i] = s[i].num.sum;
  }
  cuda::store<N, T>(at, max);
  cuda::store<N, T>(at + channels, den);
  cuda::store<N, T>(at + 2 * channels, num);
}

template <int N, typename T>
__device__ void load_sums(cuda::RunningSum<T> (&s)[N], const T* at, int64_t channels) {
  const auto max = cuda::load<N>(at), den = cuda::load<N>(at + channels), num = cuda::load<N>(at + 2 * channels);
#pragma unroll
  for (int i = 0; i < N; ++i) s[i] = {max.lane[i], {den.lane[i], T(0)}, {num.lane[i], T(0)}};
}

/// The sums of the initial state at channel c of a sequence; none: neutral.
template <typename T>
__device__ cuda::RunningSum<T> initial_sums(const WindowShape& s, const State<const T>& state, int64_t b, int64_t c) {
  cuda::RunningSum<T> sum;
  if (state.position == nullptr) return sum;
  const int64_t key = b * s.key_channels + key_of(s, c);
  if (!(state.max[key] > sum.max)) return sum;
  return {state.max[key], {state.den[key], T(0)}, {state.num[b * s.channels + c], T(0)}};
}

/// Begins to fetch the sources [t, end), a tile of them or fewer: tensor 0 is k, 1 is v.
template <typename E, int N, typename S>
__device__ void fetch_sources(const S& stream, int stage, const Columns<E, N>& columns, int64_t t, int64_t end) {
  const int count = static_cast<int>(min(int64_t{kTile}, end - t));
  stream.fetch(stage, 0, columns.k + t * columns.k_stride, columns.k_stride, count, columns.shares_key);
  stream.fetch(stage, 1, columns.v + t * columns.v_stride, columns.v_stride, count);
}

/// The sources [t, end) of N channels, a tile of them or fewer, fetched; absent, with value 0, what is masked or past
/// the end.
template <typename E, int N>
struct SourceTile {
  using T = Accumulate<E>;

  cuda::Pack<E, N> k[kTile], v[kTile];
  int count;

  template <typename S>
  __device__ SourceTile(const S& stream, int stage, const bool* mask, int64_t t, int64_t end)
      : count(static_cast<int>(min(int64_t{kTile}, end - t))) {
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      k[r] = stream.at(stage, 0, r);
      v[r] = stream.at(stage, 1, r);
    }
    if (mask == nullptr && count == kTile) return;
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      if (r < count && (mask == nullptr || mask[t + r])) continue;
      v[r] = {};
#pragma unroll
      for (int i = 0; i < N; ++i) k[r].lane[i] = cuda::narrow<E>(T(-INFINITY));
    }
  }
  __device__ T value(int r, int lane) const { return cuda::widen(v[r].lane[lane]); }
  /// Adds them at one channel to `sum`.
  __device__ SummedTile<T> add_to(cuda::RunningSum<T>& sum, int lane) const {
    T key[kTile], value[kTile];
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      key[r] = cuda::widen(k[r].lane[lane]);
      value[r] = this->value(r, lane);
    }
    return add_tile(key, value, sum);
  }
};

/// What the sources [begin, end) of channel c add, the ring's included, one by one.
template <typename E>
__device__ __noinline__ cuda::RunningSum<Accumulate<E>> sum_exactly(const WindowInputs<E>& in, const Sequence& one,
                                                                    int64_t c, int64_t begin, int64_t end) {
  const Columns<E, 1> columns(in, one, c);
  const Ring<E> ring(in, one, c);
  cuda::RunningSum<Accumulate<E>> sum;
  for (int64_t s = max(begin, ring.first); s < end; ++s) {
    if (s < 0) {
      sum.add_source(ring.key(s), ring.value(s));
    } else {
      const auto source = columns.read(s);
      sum.add_source(columns.key(source, 0), columns.value(source, 0));
    }
  }
  return sum;
}

/// sums [slots][3][d]: of the sources [begin + shift, end + shift) of each chunk.
template <typename E, int N>
__global__ void __launch_bounds__(cuda::kBlock, kBlocks<E>)
    sum_chunks(const __grid_constant__ WindowInputs<E> in, Slots slots, int64_t shift, Accumulate<E>* sums) {
  using T = Accumulate<E>;
  const int64_t packs = slots.channels / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * packs || !find_slot(in, slots, i / packs, slot)) return;
  const int64_t c = i % packs * N;
  const Columns<E, N> columns(in, slot.sequence, c);
  cuda::RunningSum<T> sum[N];
  const Ring<E> ring(in, slot.sequence, c);
  const int64_t begin = slot.begin + shift, end = min(slot.end + shift, slot.sequence.time);
  for (int64_t s = max(begin, ring.first); s < min(end, int64_t{0}); ++s) {
#pragma unroll
    for (int lane = 0; lane < N; ++lane) sum[lane].add_source(ring.key(s, lane), ring.value(s, lane));
  }
  bool finite[N];
#pragma unroll
  for (int lane = 0; lane < N; ++lane) finite[lane] = true;
  using Rows = cuda::Stream<E, N, 2, kTile, cuda::kBlock>;
  alignas(16) __shared__ unsigned char room[Rows::kBytes];
  const Rows rows(room);
  const int64_t from = max(begin, int64_t{0});
  cuda::stream_tiles(
      rows, tile_count(from, end),
      [&](int i, int stage) { fetch_sources(rows, stage, columns, from + i * kTile, end); },
      [&](int i, int stage) {
        const SourceTile<E, N> tile(rows, stage, columns.mask, from + i * kTile, end);
#pragma unroll
        for (int lane = 0; lane < N; ++lane) finite[lane] = tile.add_to(sum[lane], lane).finite && finite[lane];
      });
#pragma unroll
  for (int lane = 0; lane < N; ++lane) {
    if (!finite[lane]) sum[lane] = sum_exactly(in, slot.sequence, c + lane, begin, end);
  }
  store_sums(sum, sums + i / packs * kSumParts * slots.channels + c, slots.channels);
}

/// `count` sums at `at`, `stride` numbers apart, each become what comes before them in the direction of the fold, `sum`
/// included. Returns the sum of all.
template <typename T>
__device__ cuda::RunningSum<T> fold(T* at, int64_t count, int64_t channels, bool from_the_right,
                                    cuda::RunningSum<T> sum) {
  const int64_t stride = (from_the_right ? -1 : 1) * kSumParts * channels;
  if (from_the_right) at += (count - 1) * kSumParts * channels;
  for (int64_t first = 0; first < count; first += kAhead, at += kAhead * stride) {
    T part[kAhead][kSumParts];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
#pragma unroll
      for (int j = 0; j < kSumParts; ++j) {
        if (first + k < count) part[k][j] = at[k * stride + j * channels];
      }
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (first + k >= count) break;
      T* here = at + k * stride;
      here[0] = sum.max;
      here[channels] = sum.den.sum;
      here[2 * channels] = sum.num.sum;
      sum.add(part[k][0], part[k][1], part[k][2]);
    }
  }
  return sum;
}

/// What chunks add becomes, in place, the sums of the chunks before each in its group; a group's own go to `groups`.
/// One thread a channel of a group. neutral: the maximum of an empty sum.
template <typename E>
__global__ void fold_groups(WindowInputs<E> in, Slots slots, ChunkSums<Accumulate<E>> sums, bool from_the_right,
                            Accumulate<E> neutral) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index(), group = i / d, c = i % d;
  if (i >= slots.groups * d) return;
  const int64_t b = in.shape.packed
                        ? find_sequence(in.shape.batch, group, [&](int64_t m) { return first_group(in, slots, m); })
                        : group / Slots::groups_of(slots.chunks);
  const int64_t chunks = Slots::chunks_of(sequence_at(in, slots, b).time);
  const int64_t first = (group - first_group(in, slots, b)) * Slots::kGroup;
  if (first >= chunks) return;
  cuda::RunningSum<T> none;
  none.max = neutral;
  const cuda::RunningSum<T> all[1] = {fold(sums.chunks + (first_slot(in, slots, b) + first) * kSumParts * d + c,
                                           min(Slots::kGroup, chunks - first), d, from_the_right, none)};
  store_sums(all, sums.groups + group * kSumParts * d + c, d);
}

/// The groups of sequence b, at channel c.
template <typename E, typename T = Accumulate<E>>
__device__ cuda::RunningSum<T> fold_sequence(const WindowInputs<E>& in, const Slots& slots, int64_t b, int64_t c,
                                             const ChunkSums<T>& sums, bool from_the_right,
                                             const cuda::RunningSum<T>& start) {
  const int64_t chunks = Slots::chunks_of(sequence_at(in, slots, b).time);
  T* at = sums.groups + first_group(in, slots, b) * kSumParts * slots.channels + c;
  return fold(at, Slots::groups_of(chunks), slots.channels, from_the_right, start);
}

/// The sources: from the left, what the initial state holds before the first, and all of them to `ends` [B][3][d]; from
/// the right nothing before. One thread a channel of a sequence.
template <typename E>
__global__ void fold_sources(WindowInputs<E> in, Slots slots, ChunkSums<Accumulate<E>> sums, bool from_the_right,
                             Accumulate<E>* ends) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index(), b = i / d, c = i % d;
  if (i >= in.shape.batch * d) return;
  cuda::RunningSum<T> start;
  if (!from_the_right) start = initial_sums(in.shape, in.initial_state, b, c);
  const cuda::RunningSum<T> all[1] = {fold_sequence(in, slots, b, c, sums, from_the_right, start)};
  if (ends != nullptr) store_sums(all, ends + b * kSumParts * d + c, d);
}

/// The sums before a slot in the direction of the fold.
template <int N, typename T>
__device__ void sums_at(cuda::RunningSum<T> (&sum)[N], const ChunkSums<T>& sums, const Slots& slots, int64_t index,
                        const Slot& slot, int64_t c) {
  cuda::RunningSum<T> in_group[N];
  load_sums(sum, sums.groups + slot.group * kSumParts * slots.channels + c, slots.channels);
  load_sums(in_group, sums.chunks + index * kSumParts * slots.channels + c, slots.channels);
#pragma unroll
  for (int i = 0; i < N; ++i) sum[i].add(in_group[i].max, in_group[i].den.sum, in_group[i].num.sum);
}

/// Launches what makes of each chunk's sums in `sums` those before it.
template <typename E>
void fold_chunks(const Cuda& cuda, const char* what, const WindowInputs<E>& in, const Slots& slots,
                 const ChunkSums<Accumulate<E>>& sums, bool from_the_right, Accumulate<E>* ends) {
  cuda::launch(cuda, what, slots.groups * slots.channels, fold_groups<E>, in, slots, sums, from_the_right,
               kExponentFloor<Accumulate<E>>);
  cuda::launch(cuda, what, in.shape.batch * slots.channels, fold_sources<E>, in, slots, sums, from_the_right, ends);
}

/// N channels a thread where everything that a row is made of can be moved N elements at a time.
template <int N, typename E>
bool moves_in_packs(const WindowShape& s, const Rows<E>& rows) {
  const auto fits = [](int64_t elements) { return elements % N == 0; };
  return reinterpret_cast<uintptr_t>(rows.data) % (sizeof(E) * N) == 0 && fits(rows.time_stride) &&
         (s.packed || s.batch < 2 || fits(rows.batch_stride)) && fits(s.channels / s.heads);
}

/// The channels that a thread does at once, if not one: four would need more registers than there are.
template <typename E>
constexpr int kPack = sizeof(E) == 8 ? 1 : 2;

/// Calls run(std::integral_constant<int, N>()), N being `most` or 1.
template <int most, typename Run>
void with_pack(bool packs, const Run& run) {
  if (packs) {
    run(std::integral_constant<int, most>());
  } else {
    run(std::integral_constant<int, 1>());
  }
}

}  // namespace aft::ops::window

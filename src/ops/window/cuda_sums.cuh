#pragma once

// The running sums at every chunk, in two launches: what each chunk adds, then a fold over the chunks of a sequence.
// Without a band a chunk adds its own sources. With one it adds those that leave its rows' windows, [begin - left,
// end - left), so that the fold from left to right has before a chunk what lies before its first window; not causal, a
// fold from right to left of [begin + right, end + right) has what lies after its last. How long a chunk is depends on
// the window alone, so no result depends on the batch, on packing, or on the machine.

#include <cstdint>

#include "ops/common/cuda/launch.cuh"
#include "ops/window/cuda_slots.cuh"

namespace aft::ops::window {

constexpr int kAhead = 8;  // rows, or chunks, whose loads run ahead of their sums

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

/// Calls visit(t, source) for the rows [begin, end) in order, their loads ahead of it.
template <int kRows, typename C, typename Visit>
__device__ void visit_rows(const C& columns, int64_t begin, int64_t end, const Visit& visit) {
  for (int64_t t = begin; t < end; t += kRows) {
    typename C::Source source[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (t + r < end) source[r] = columns.read(t + r);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (t + r < end) visit(t + r, source[r]);
    }
  }
}

/// sums [slots][3][d]: of the sources [begin + shift, end + shift) of each chunk.
template <typename E, int N>
__global__ void sum_chunks(WindowInputs<E> in, Slots slots, int64_t shift, Accumulate<E>* sums) {
  using T = Accumulate<E>;
  const int64_t groups = slots.channels / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * groups || !find_slot(in, slots, i / groups, slot)) return;
  const int64_t c = i % groups * N;
  const Columns<E, N> columns(in, slot.sequence, c);
  cuda::RunningSum<T> sum[N];
  const Ring<E> ring(in, slot.sequence, c);
  for (int64_t s = max(slot.begin + shift, ring.first); s < min(slot.end + shift, int64_t{0}); ++s) {
#pragma unroll
    for (int lane = 0; lane < N; ++lane) sum[lane].add_source(ring.key(s, lane), ring.value(s, lane));
  }
  const int64_t from = max(slot.begin + shift, int64_t{0}), to = min(slot.end + shift, slot.sequence.time);
  visit_rows<kAhead>(columns, from, to, [&](int64_t, const auto& source) {
#pragma unroll
    for (int lane = 0; lane < N; ++lane) sum[lane].add_source(columns.key(source, lane), columns.value(source, lane));
  });
  store_sums(sum, sums + i / groups * kSumParts * slots.channels + c, slots.channels);
}

/// Sums of chunks become sums of all before each chunk, in place; those between chunks go to `saved` too, and those of
/// all to `ends` [B][3][d]. One thread a channel of a sequence.
template <typename E>
__global__ void fold_chunks(WindowInputs<E> in, Slots slots, Accumulate<E>* sums, Accumulate<E>* ends,
                            Accumulate<E>* saved) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index();
  if (i >= in.shape.batch * d) return;
  const int64_t b = i / d, c = i % d;
  const Sequence one = sequence_at(in, slots, b);
  const int64_t chunks = (one.time + slots.chunk - 1) / slots.chunk;
  T* at = sums + first_slot(in, slots, b) * kSumParts * d + c;
  T* boundary = saved == nullptr ? nullptr : saved + one.boundary * kSumParts * d + c;
  cuda::RunningSum<T> sum = initial_sums(in.shape, in.initial_state, b, c);
  for (int64_t first = 0; first < chunks; first += kAhead) {
    T part[kAhead][kSumParts];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
#pragma unroll
      for (int j = 0; j < kSumParts; ++j) {
        if (first + k < chunks) part[k][j] = at[((first + k) * kSumParts + j) * d];
      }
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t chunk = first + k;
      if (chunk >= chunks) break;
      const T before[kSumParts] = {sum.max, sum.den.sum, sum.num.sum};
#pragma unroll
      for (int j = 0; j < kSumParts; ++j) {
        at[(chunk * kSumParts + j) * d] = before[j];
        if (boundary != nullptr && chunk > 0) boundary[((chunk - 1) * kSumParts + j) * d] = before[j];
      }
      sum.add(part[k][0], part[k][1], part[k][2]);
    }
  }
  T* end = ends + b * kSumParts * d + c;
  end[0] = sum.max;
  end[d] = sum.den.sum;
  end[2 * d] = sum.num.sum;
}

/// What a chunk adds, at `here`, becomes the sums so far, which it then joins.
template <typename T>
__device__ void fold_in(T* here, int64_t channels, cuda::RunningSum<T>& sum) {
  const T part[kSumParts] = {here[0], here[channels], here[2 * channels]};
  here[0] = sum.max;
  here[channels] = sum.den.sum;
  here[2 * channels] = sum.num.sum;
  sum.add(part[0], part[1], part[2]);
}

/// The same from right to left: sums of all after each chunk.
template <typename E>
__global__ void fold_chunks_back(WindowInputs<E> in, Slots slots, Accumulate<E>* sums) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index();
  if (i >= in.shape.batch * d) return;
  const Sequence one = sequence_at(in, slots, i / d);
  const int64_t chunks = (one.time + slots.chunk - 1) / slots.chunk;
  T* at = sums + first_slot(in, slots, one.index) * kSumParts * d + i % d;
  cuda::RunningSum<T> sum;
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) fold_in(at + chunk * kSumParts * d, d, sum);
}

/// N channels a thread where everything that a row is made of can be moved N elements at a time.
template <int N, typename E>
bool moves_in_packs(const WindowShape& s, const Rows<E>& rows) {
  const auto fits = [](int64_t elements) { return elements % N == 0; };
  return reinterpret_cast<uintptr_t>(rows.data) % (sizeof(E) * N) == 0 && fits(rows.time_stride) &&
         (s.packed || s.batch < 2 || fits(rows.batch_stride)) && fits(s.channels / s.heads);
}

/// The channels that a thread does at once: 8 bytes of a 16-bit tensor, 16 of a wider one, or one channel.
template <typename E>
constexpr int kPack = sizeof(E) == 8 ? 2 : 4;

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

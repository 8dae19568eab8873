#pragma once

// What the backward with and without a band share. With a[t] = gy gate / D and b[t] = a N/D, in the scale of D, the
// sums of a and b over later targets are running sums of terms with the exponent of 1 / D, folded from right to left.

#include <cstdint>

#include "ops/window/cuda_sums.cuh"

namespace aft::ops::window {

constexpr const char* kBackwardName = "window_backward";

/// The running sums before a chunk of a causal sequence: what the forward saved, or the initial state's.
template <int N, typename E>
__device__ void restore_sums(cuda::RunningSum<Accumulate<E>> (&sum)[N], const WindowBackward<E>& p, const Slot& slot,
                             int64_t c) {
  const int64_t d = p.in.shape.channels;
  if (slot.index > 0) {
    load_sums(sum, p.saved + (slot.sequence.boundary + slot.index - 1) * kSumParts * d + c, d);
    return;
  }
#pragma unroll
  for (int i = 0; i < N; ++i) sum[i] = initial_sums(p.in.shape, p.in.initial_state, slot.sequence.index, c + i);
}

/// The sums before a chunk, summed again where the forward has not left them.
template <int N, typename E, typename T = Accumulate<E>>
__device__ void sums_before(cuda::RunningSum<T> (&sum)[N], const WindowBackward<E>& p, const Slots& slots,
                            const BackwardMemory<E>& memory, int64_t index, const Slot& slot, int64_t c) {
  if (memory.before.chunks == nullptr) {
    restore_sums(sum, p, slot, c);
  } else {
    sums_at(sum, memory.before, slots, index, slot, c);
  }
}

/// The rows of the targets of a thread.
template <typename E, int N>
struct Targets {
  using T = Accumulate<E>;

  Gate gate;
  const E* q = nullptr;
  const E* gy;
  E* grad_q = nullptr;
  int64_t q_stride, gy_stride, grad_q_stride;

  __device__ Targets(const WindowBackward<E>& p, const Sequence& one, int64_t c)
      : gate(p.in.shape.gate),
        gy(column(p.grad_y, one, c)),
        q_stride(p.in.q.time_stride),
        gy_stride(p.grad_y.time_stride),
        grad_q_stride(p.grad_q.time_stride) {
    if (gate == Gate::kNone) return;
    q = column(p.in.q, one, c);
    grad_q = column(p.grad_q, one, c);
  }

  struct Row {
    cuda::Pack<E, N> q, gy;
  };
  __device__ Row read(int64_t t) const {
    Row row = {};
    if (q != nullptr) row.q = cuda::load<N>(q + t * q_stride);
    row.gy = cuda::load<N>(gy + t * gy_stride);
    return row;
  }
  /// Of a row that saw something.
  __device__ cuda::TargetGrad<T> grad(const Row& row, int i, T num, T den) const {
    return cuda::grad_of_seen_target<E>(gate, T(cuda::widen(row.q.lane[i])), T(cuda::widen(row.gy.lane[i])), num, den);
  }
  /// Of row t of one channel, whatever it saw.
  __device__ cuda::TargetGrad<T> grad_at(int64_t t, const cuda::RunningSum<T>& sum) const {
    const Row row = read(t);
    if (sum.den.sum == 0) return {};
    return grad(row, 0, sum.num.sum, sum.den.sum);
  }
  __device__ void write_query(int64_t t, const T (&x)[N]) const {
    if (grad_q != nullptr) cuda::store<N>(grad_q + t * grad_q_stride, x);
  }
  __device__ void write_query(int64_t t, const cuda::Pack<E, N>& x) const {
    if (grad_q != nullptr) cuda::store(grad_q + t * grad_q_stride, x);
  }
};

/// Begins to fetch the rows [t, end) of targets, a tile of them or fewer: tensor 2 is q, 3 is the gradient of y.
template <typename E, int N, typename S>
__device__ void fetch_targets(const S& stream, int stage, const Targets<E, N>& targets, int64_t t, int64_t end) {
  const int count = static_cast<int>(min(int64_t{kTile}, end - t));
  if (targets.q != nullptr) stream.fetch(stage, 2, targets.q + t * targets.q_stride, targets.q_stride, count);
  stream.fetch(stage, 3, targets.gy + t * targets.gy_stride, targets.gy_stride, count);
}

/// Row r of a fetched tile.
template <typename E, int N, typename S>
__device__ typename Targets<E, N>::Row fetched_row(const S& stream, int stage, int r) {
  return {stream.at(stage, 2, r), stream.at(stage, 3, r)};
}

/// What the gradient of the final sums asks is a target of its own behind the last: the sums after sequence b at
/// channel c. ends [B][3][d]: the exponent of all its sources' sums.
template <typename E, typename T = Accumulate<E>>
__device__ cuda::RunningSum<T> sums_after(const WindowBackward<E>& p, const Slots& slots, int64_t b, int64_t c,
                                          const T* ends) {
  const WindowShape& s = p.in.shape;
  const int64_t d = slots.channels;
  const StateGrad<const T>& final = p.grad_final_state;
  cuda::RunningSum<T> later;
  later.max = -INFINITY;
  T max = kExponentFloor<T>;
  if (final.num != nullptr || final.den != nullptr) {
    const bool empty = sequence_at(p.in, slots, b).time == 0;
    max = empty ? initial_sums(s, p.in.initial_state, b, c).max : ends[b * kSumParts * d + c];
  }
  if (max > kExponentFloor<T>) {
    later.max = -max;
    const int64_t width = d / s.heads;
    const bool shares_key = s.key_channels != d;
    if (final.num != nullptr) later.num.sum = final.num[b * d + c];
    // A den that serves its whole head is asked for once.
    if (final.den != nullptr && !(shares_key && c % width != 0)) {
      later.den.sum = -final.den[b * s.key_channels + (shares_key ? c / width : c)];
    }
  }
  return later;
}

/// `later` becomes the sums of all targets after each chunk; those of all go to `at_start`. One thread a channel of a
/// sequence.
template <typename E>
__global__ void fold_targets_of_sequences(WindowBackward<E> p, Slots slots, ChunkSums<Accumulate<E>> later,
                                          const Accumulate<E>* ends, Accumulate<E>* at_start) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, i = cuda::thread_index(), b = i / d, c = i % d;
  if (i >= p.in.shape.batch * d) return;
  const cuda::RunningSum<T> all[1] = {fold_sequence(p.in, slots, b, c, later, true, sums_after(p, slots, b, c, ends))};
  store_sums(all, at_start + b * kSumParts * d + c, d);
}

/// Launches what makes of the sums of each chunk's targets those of all targets after it.
template <typename E>
void fold_targets(const Cuda& cuda, const char* what, const WindowBackward<E>& p, const Slots& slots,
                  const BackwardMemory<E>& memory) {
  cuda::launch(cuda, what, slots.groups * slots.channels, fold_groups<E>, p.in, slots, memory.later, true,
               static_cast<Accumulate<E>>(-INFINITY));
  cuda::launch(cuda, what, p.in.shape.batch * slots.channels, fold_targets_of_sequences<E>, p, slots, memory.later,
               memory.ends, memory.at_start);
}

/// Adds x over the threads of a block, neighbours first, then pairs of neighbours, and so on: a thread of two channels
/// that adds them first gives the same as two threads. Thread 0 has the sum. `room`: a number a warp.
template <typename T>
__device__ T sum_of_block(T x, T* room) {
  for (int step = 1; step < 32; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x != 0) return x;
  const unsigned warps = blockDim.x / 32;
  for (unsigned step = 1; step < warps; step *= 2) {
    for (unsigned i = 0; i + step < warps; i += 2 * step) room[i] += room[i + step];
  }
  return room[0];
}

/// The gradient of the initial sums: what all targets ask, brought to their maximum. One thread a key channel.
template <typename E>
__global__ void write_initial(WindowBackward<E> p, const Accumulate<E>* at_start) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t i = cuda::thread_index();
  if (i >= s.batch * s.key_channels) return;
  const int64_t b = i / s.key_channels, width = s.channels / s.key_channels;
  T den = 0;
  for (int64_t c = i % s.key_channels * width, end = c + width; c < end; ++c) {
    const T* start = at_start + b * kSumParts * s.channels + c;
    const T max = initial_sums(s, p.in.initial_state, b, c).max;
    const T scale = max > kExponentFloor<T> ? cuda::pow2(fmin(start[0] + max, kPairExponentLimit<T>)) : T(0);
    if (p.grad_initial_state.num != nullptr) {
      p.grad_initial_state.num[b * s.channels + c] = scale == 0 ? T(0) : start[2 * s.channels] * scale;
    }
    den -= scale == 0 ? T(0) : start[s.channels] * scale;
  }
  if (p.grad_initial_state.den != nullptr) p.grad_initial_state.den[i] = den;
}

/// All of the backward with a band.
template <typename E>
void backward_band(const WindowBackward<E>& p, const Cuda& cuda);

}  // namespace aft::ops::window

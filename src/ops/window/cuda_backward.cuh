#pragma once

// What the backward with and without a band share. With a[t] = gy gate / D and b[t] = a N/D, in the scale of D, the
// sums of a and b over later targets are running sums of terms with the exponent of 1 / D, folded from right to left.

#include <cstdint>

#include "ops/window/cuda_sums.cuh"

namespace aft::ops::window {

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
  __device__ cuda::TargetGrad<T> grad(const Row& row, int i, const cuda::RunningSum<T>& sum) const {
    return cuda::grad_of_target(gate, T(cuda::widen(row.q.lane[i])), T(cuda::widen(row.gy.lane[i])), sum.num.sum,
                                sum.den.sum);
  }
  __device__ void write_query(int64_t t, const T (&x)[N]) const {
    if (grad_q != nullptr) cuda::store<N>(grad_q + t * grad_q_stride, x);
  }
};

/// The sums of each chunk's targets become those of all targets after it, in place, and with what the gradient of the
/// final sums asks as a target of its own behind the last; those of all go to `at_start`. One thread a channel.
template <typename E>
__global__ void fold_targets(WindowBackward<E> p, Slots slots, Accumulate<E>* targets, const Accumulate<E>* ends,
                             Accumulate<E>* at_start) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t d = slots.channels, i = cuda::thread_index();
  if (i >= s.batch * d) return;
  const int64_t b = i / d, c = i % d;
  const Sequence one = sequence_at(p.in, slots, b);
  const int64_t chunks = (one.time + slots.chunk - 1) / slots.chunk;
  T* at = targets + first_slot(p.in, slots, b) * kSumParts * d + c;
  const T max = chunks > 0 ? ends[b * kSumParts * d + c] : initial_sums(s, p.in.initial_state, b, c).max;
  cuda::RunningSum<T> later;
  later.max = -max;
  const StateGrad<const T>& final = p.grad_final_state;
  if (max > kExponentFloor<T>) {
    const int64_t width = d / s.heads;
    const bool shares_key = s.key_channels != d;
    if (final.num != nullptr) later.num.sum = final.num[i];
    // A den that serves its whole head is asked for once.
    if (final.den != nullptr && !(shares_key && c % width != 0)) {
      later.den.sum = -final.den[b * s.key_channels + (shares_key ? c / width : c)];
    }
  }
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) fold_in(at + chunk * kSumParts * d, d, later);
  T* start = at_start + b * kSumParts * d + c;
  start[0] = later.max;
  start[d] = later.den.sum;
  start[2 * d] = later.num.sum;
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

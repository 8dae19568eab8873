#pragma once

// What the kernels of the backward without a band, AFT-simple, share, and how each side is launched.

#include <type_traits>

#include "ops/window/cuda_backward.cuh"

namespace aft::ops::window {

/// Targets::grad of a row of a tile. kSigmoid: the gate is known to be that, and 16 bits come of it; they do not ask
/// for more than the machine's own exponential gives.
template <typename E, bool kSigmoid, int N, typename T = Accumulate<E>>
__device__ cuda::TargetGrad<T> grad_in_tile(const Targets<E, N>& targets, const typename Targets<E, N>::Row& row,
                                            int lane, T num, T den) {
  if constexpr (kSigmoid) {
    const T q = cuda::widen(row.q.lane[lane]), g = cuda::widen(row.gy.lane[lane]);
    const T z = __expf(-fabs(q)), r = cuda::reciprocal(fma(den, z, den)), ratio = num * fma(r, z, r);
    const T a = g * (q < 0 ? z : 1) * r, part = r * den;  // part: 1 / (1 + z)
    return {a, a * ratio, g * ratio * (z * part * part)};
  } else {
    return targets.grad(row, lane, num, den);
  }
}

/// run(whether grad_in_tile may know the gate).
template <typename E, typename Run>
__device__ void with_gate(Gate gate, const Run& run) {
  if constexpr (sizeof(E) == 2) {
    if (gate == Gate::kSigmoid) {
      run(std::true_type());
      return;
    }
  }
  run(std::false_type());
}

/// As kBlocks, of the kernels of the backward.
template <typename E>
constexpr int kGradBlocks = sizeof(E) == 8   ? 1
                            : sizeof(E) == 4 ? 2
                                             : 4;

/// A call with all that its launches share.
template <typename E>
struct SimpleBackward {
  const WindowBackward<E>& p;
  const Slots& slots;
  const BackwardMemory<E>& memory;
  const Cuda& cuda;
  bool packs;  // kPack channels can be moved at once
};

/// memory.later.chunks: -M, b and a summed over the targets of each chunk; memory.ends: M at the end of each sequence;
/// and the gradients of the queries. Not causal, memory.ends are read: the sums of all sources.
template <typename E>
void run_simple_targets(const SimpleBackward<E>& call);

/// dk and dv, from the sums of the targets after each chunk; not causal, of all targets.
template <typename E>
void run_simple_sources(const SimpleBackward<E>& call);

}  // namespace aft::ops::window

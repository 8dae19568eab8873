#pragma once

// Tensor elements in registers: 16-bit ones are widened as they are loaded, and rounded once, to nearest, ties to even,
// as they are stored.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "aft/ops/operands.h"

namespace aft::ops::cuda {

/// N elements that one instruction moves; aligned to their size.
template <typename E, int N>
struct alignas(sizeof(E) * N) Pack {
  E lane[N];
};

template <typename T>
__device__ T widen(T x) {
  return x;
}
inline __device__ float widen(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline __device__ float widen(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <typename E>
__device__ E narrow(Accumulate<E> x) {
  if constexpr (sizeof(E) > 2) {
    return x;
  } else if constexpr (std::is_same_v<E, BFloat16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    return {__half_as_ushort(__float2half_rn(x))};
  }
}

/// N elements from `from` on, one after another in memory.
template <int N, typename E>
__device__ Pack<E, N> load(const E* from) {
  return *reinterpret_cast<const Pack<E, N>*>(from);
}

template <typename E, int N>
__device__ void store(E* to, const Pack<E, N>& pack) {
  *reinterpret_cast<Pack<E, N>*>(to) = pack;
}
template <int N, typename E>
__device__ void store(E* to, const Accumulate<E> (&x)[N]) {
  Pack<E, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.lane[i] = narrow<E>(x[i]);
  store(to, pack);
}

}  // namespace aft::ops::cuda

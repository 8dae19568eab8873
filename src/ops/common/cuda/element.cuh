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

/// Two neighbouring elements as they lie in memory, to be widened where they are used: those of 16 bits take one
/// register together.
template <typename E>
struct Pair {
  E x = {}, y = {};

  static __device__ Pair of(E x, E y) { return {x, y}; }
  static __device__ Pair load(const E* from) {
    const auto pack = cuda::load<2>(from);
    return {pack.lane[0], pack.lane[1]};
  }
  __device__ E at(int i) const { return i == 0 ? x : y; }
  __device__ Pair abs() const { return {fabs(x), fabs(y)}; }
  /// The larger of each; NaN is passed over.
  __device__ Pair max(Pair other) const { return {fmax(x, other.x), fmax(y, other.y)}; }
  /// NaN stays.
  __device__ Pair max_nan(Pair other) const {
    return {x > other.x || x != x ? x : other.x, y > other.y || y != y ? y : other.y};
  }
};
template <typename E>
requires(sizeof(E) == 2) struct Pair<E> {
  using Machine = std::conditional_t<std::is_same_v<E, BFloat16>, __nv_bfloat162, __half2>;

  uint32_t bits = 0;

  static __device__ Pair of(E x, E y) { return {x.bits | static_cast<uint32_t>(y.bits) << 16}; }
  static __device__ Pair load(const E* from) { return {*reinterpret_cast<const uint32_t*>(from)}; }
  static __device__ Pair of(Machine x) { return {*reinterpret_cast<const uint32_t*>(&x)}; }
  __device__ Machine machine() const { return *reinterpret_cast<const Machine*>(&bits); }
  __device__ float at(int i) const {
    if constexpr (std::is_same_v<E, BFloat16>) {
      return __uint_as_float(i == 0 ? bits << 16 : bits & 0xffff0000u);
    } else {
      return __half2float(__ushort_as_half(static_cast<uint16_t>(i == 0 ? bits : bits >> 16)));
    }
  }
  __device__ Pair abs() const { return {bits & 0x7fff7fffu}; }
  __device__ Pair max(Pair other) const { return of(__hmax2(machine(), other.machine())); }
  __device__ Pair max_nan(Pair other) const { return of(__hmax2_nan(machine(), other.machine())); }
};

}  // namespace aft::ops::cuda

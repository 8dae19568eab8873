#pragma once

// The product that everything here is: a block multiplies [rows][k] by [k][columns], kTile of each, kStep of k at a
// time from shared memory. A thread has 8 rows and 8 columns in registers.

#include <cuda_pipeline.h>

#include "ops/full/cuda_call.cuh"

namespace aft::ops::full {

constexpr int kThreads = 256;
/// Blocks of a multiprocessor: registers for one of numbers of 64 bits, for two of 32.
template <typename T>
constexpr int kBlocks = sizeof(T) == 4 ? 2 : 1;
/// The depth of a product that is summed before it is added to the rest: equal summands are rounded the same way at
/// every step. What is rounded to 16 bits in the end does not feel it within a chunk.
template <typename E>
constexpr int kSegment = sizeof(E) == 2 ? kTile : 32;

/// Where this thread's rows and columns lie: a warp has 32 rows and 64 columns, a lane 2 x 2 squares of 4 x 4. Of 16
/// lanes, which shared memory serves at once, those next to each other or two apart want the same, of both operands.
/// Warps that share a scheduler, four apart, have first and last rows or middle ones: causal, all have as much to do.
inline __device__ int first_row_of_warp() {
  const int pair = threadIdx.x / 64;
  return (pair < 2 ? pair : 5 - pair) * 32;
}
inline __device__ int row_of(int i) {
  const int lane = threadIdx.x % 32;
  return first_row_of_warp() + (lane / 16 * 2 + lane % 2) * 4 + i % 4 + i / 4 * 16;
}
inline __device__ int column_of(int j) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  return warp % 2 * 64 + lane / 2 % 8 * 4 + j % 4 + j / 4 * 32;
}

template <typename T>
struct Product {
  static constexpr int kStep = sizeof(T) == 4 ? 16 : 4;
  static constexpr int kLine = kTile + 16 / static_cast<int>(sizeof(T));  // transposed writes take other banks
  static constexpr int kOwn = kTile * kStep / kThreads;                   // elements of an operand that a thread brings

  /// An operand of one step: [k][rows or columns].
  struct alignas(16) Operand {
    T at[kStep][kLine];
  };
  /// One that lies so in memory.
  struct alignas(16) Entries {
    T at[kStep][kTile];
  };
  /// While one pair is multiplied the next is brought.
  struct Shared {
    Operand a[2], b[2];
  };

  T sum[8][8];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[i][j] = 0;
    }
  }

  template <typename B>
  __device__ void multiply(const Operand& a, const B& b) {
    constexpr int kUnroll = kStep < 8 ? kStep : 8;  // the instructions of more would not fit the nearest cache
#pragma unroll kUnroll
    for (int k = 0; k < kStep; ++k) {
      T x[8], y[8];
      load4(&a.at[k][row_of(0)], x);
      load4(&a.at[k][row_of(4)], x + 4);
      load4(&b.at[k][column_of(0)], y);
      load4(&b.at[k][column_of(4)], y + 4);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] = fma(x[i], y[j], sum[i][j]);
      }
    }
  }

  // Four numbers side by side, aligned to 16 bytes.
  static __device__ void load4(const T* from, T* to) {
#pragma unroll
    for (int i = 0; i < 4; i += kPack) {
      const auto pack = cuda::load<kPack>(from + i);
#pragma unroll
      for (int j = 0; j < kPack; ++j) to[i + j] = pack.lane[j];
    }
  }
  static __device__ void store4(T* to, const T* from) {
#pragma unroll
    for (int i = 0; i < 4; i += kPack) {
      cuda::Pack<T, kPack> pack;
#pragma unroll
      for (int j = 0; j < kPack; ++j) pack.lane[j] = from[i + j];
      *reinterpret_cast<cuda::Pack<T, kPack>*>(to + i) = pack;
    }
  }

 private:
  static constexpr int kPack = 16 / static_cast<int>(sizeof(T));
};

/// What the segments of a product add up to, in shared memory: registers would hold it at the price of a second block
/// on the multiprocessor.
template <typename T>
struct alignas(16) Totals {
  using P = Product<T>;

  /// What this thread has at row_of(i), column_of(j).
  __device__ T& own(int i, int j) { return at_[j / 4 * 8 + i][threadIdx.x][j % 4]; }
  /// What some thread has there.
  __device__ const T* at(int row, int column) const {
    const int pair = row < 64 ? row / 32 : 5 - row / 32;
    const int thread = (pair * 2 + column / 64) * 32 + row / 8 % 2 * 16 + column / 4 % 8 * 2 + row / 4 % 2;
    return &at_[column / 32 % 2 * 8 + row / 16 % 2 * 4 + row % 4][thread][column % 4];
  }

  __device__ void clear() {
    each(nullptr, [](T, T, int, int) { return T(0); });
  }
  /// scale: of the columns.
  __device__ void multiply(const T* scale) {
    each(scale, [](T total, T factor, int, int) { return total * factor; });
  }
  __device__ void add(const P& product) {
    each(nullptr, [&](T total, T, int i, int j) { return total + product.sum[i][j]; });
  }
  __device__ void add(const P& product, const T* scale) {
    each(scale, [&](T total, T factor, int i, int j) { return fma(product.sum[i][j], factor, total); });
  }

 private:
  // Four columns of a row side by side, threads one after another: no two meet in a bank.
  T at_[kTile * kTile / 4 / kThreads][kThreads][4];

  /// change(total, scale, i, j) becomes what this thread has at row_of(i), column_of(j).
  template <typename Change>
  __device__ void each(const T* scale, const Change& change) {
    constexpr int kAtOnce = 4;  // rows
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      T factor[4] = {};
      if (scale != nullptr) P::load4(&scale[column_of(j)], factor);
#pragma unroll
      for (int first = 0; first < 8; first += kAtOnce) {
        T sums[kAtOnce][4];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) P::load4(&own(first + i, j), sums[i]);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
          for (int n = 0; n < 4; ++n) sums[i][n] = change(sums[i][n], factor[n], first + i, j + n);
          P::store4(&own(first + i, j), sums[i]);
        }
      }
    }
  }
};

/// Factors on their way to weights.
template <typename T>
struct FactorTile {
  static constexpr int kStep = Product<T>::kStep;

  typename Product<T>::Operand rows;
  T steps[kStep][kStep];
};

/// Adds to sum the products of kTile rows of factors, the first at u, with as many of v. Rows past the last are 0.
template <typename T>
__device__ void multiply_factors(Product<T>& product, typename Product<T>::Shared& shared, const T* u, int64_t u_rows,
                                 const T* v, int64_t v_rows, int64_t width) {
  constexpr int kStep = Product<T>::kStep;
  for (int64_t f = 0; f < width; f += kStep) {
    __syncthreads();
    for (int i = threadIdx.x; i < kTile * kStep; i += kThreads) {
      const int k = i % kStep, row = i / kStep;
      shared.a[0].at[k][row] = row < u_rows && f + k < width ? u[row * width + f + k] : T(0);
      shared.b[0].at[k][row] = row < v_rows && f + k < width ? v[row * width + f + k] : T(0);
    }
    __syncthreads();
    product.multiply(shared.a[0], shared.b[0]);
  }
}

}  // namespace aft::ops::full

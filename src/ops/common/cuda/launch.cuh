#pragma once

// Launching kernels.

#include <cuda_runtime.h>

#include <cstdint>

#include "aft/ops/device.h"
#include "ops/common/cuda/failure.h"

namespace aft::ops::cuda {

inline cudaStream_t stream_of(const Cuda& cuda) { return static_cast<cudaStream_t>(cuda.stream); }

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) fail(status, what);
}

constexpr int kBlock = 128;  // threads

/// This thread among all of a launch over `count` of them: below it, or there is nothing to do.
inline __device__ int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

/// Adds to a counter of all threads. Integers: their order does not matter.
inline __device__ void count(int64_t* counter, int64_t n) {
  if (n != 0) atomicAdd(reinterpret_cast<unsigned long long*>(counter), static_cast<unsigned long long>(n));
}

/// Runs kernel(arguments...) in `blocks` blocks of `threads` threads.
template <typename... Parameters, typename... Arguments>
void launch_blocks(const Cuda& cuda, const char* what, int64_t blocks, int64_t threads, void (*kernel)(Parameters...),
                   const Arguments&... arguments) {
  if (blocks == 0) return;
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), 0, stream_of(cuda)>>>(arguments...);
  check(cudaGetLastError(), what);
}

/// Runs kernel(arguments...) in blocks of kBlock threads, `count` threads or a few more. The first dimension of a grid
/// takes 2^31 - 1 blocks; the others are not used.
template <typename... Parameters, typename... Arguments>
void launch(const Cuda& cuda, const char* what, int64_t count, void (*kernel)(Parameters...),
            const Arguments&... arguments) {
  launch_blocks(cuda, what, (count + kBlock - 1) / kBlock, kBlock, kernel, arguments...);
}

}  // namespace aft::ops::cuda

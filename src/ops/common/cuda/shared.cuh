#pragma once

// Kernels that size their shared memory when they are launched.

#include "ops/common/cuda/launch.cuh"

namespace aft::ops::cuda {

/// The block's memory, as large as the launch said.
template <typename T>
__device__ T* shared_memory() {
  extern __shared__ __align__(256) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

/// The most bytes that a block of the current device may have.
inline int64_t most_shared_memory(const char* what) {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), what);
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), what);
  return bytes;
}

/// launch_blocks with `bytes` of shared memory a block.
template <typename... Parameters, typename... Arguments>
void launch_with_memory(const Cuda& cuda, const char* what, int64_t blocks, int64_t threads, int64_t bytes,
                        void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (blocks == 0) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), what);
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<size_t>(bytes),
           stream_of(cuda)>>>(arguments...);
  check(cudaGetLastError(), what);
}

}  // namespace aft::ops::cuda

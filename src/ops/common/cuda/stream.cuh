#pragma once

// Rows on their way from memory: a thread fetches its own elements of the next tile of rows into shared memory while it
// works on this one. Nothing is shared among threads, so nobody waits for another.

#include <cuda_pipeline.h>

#include <cstdint>

#include "ops/common/cuda/element.cuh"

namespace aft::ops::cuda {

/// Two tiles of kRows rows of kTensors tensors, N elements of each row; `kThreads` threads side by side.
template <typename E, int N, int kTensors, int kRows, int kThreads>
struct Stream {
  static constexpr int kStages = 2;
  static constexpr int64_t kBytes = int64_t{kStages} * kTensors * kRows * kThreads * sizeof(Pack<E, N>);

  Pack<E, N>* own;  // this thread's first

  __device__ explicit Stream(void* memory) : own(static_cast<Pack<E, N>*>(memory) + threadIdx.x) {}

  __device__ Pack<E, N>& at(int stage, int tensor, int row) const {
    return own[((stage * kTensors + tensor) * kRows + row) * kThreads];
  }
  /// `count` rows, `stride` elements apart; fill: all N elements are the one at each row's beginning.
  __device__ void fetch(int stage, int tensor, const E* from, int64_t stride, int count, bool fill = false) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r, from += stride) {
      if (r >= count) continue;
      Pack<E, N>& to = at(stage, tensor, r);
      if (fill) {
        const E x = *from;
#pragma unroll
        for (int i = 0; i < N; ++i) to.lane[i] = x;
      } else if constexpr (sizeof(to) >= 4) {
        __pipeline_memcpy_async(&to, from, sizeof(to));
      } else {
        to = load<N>(from);
      }
    }
  }
  /// Ends what is fetched as one tile.
  __device__ void commit() const { __pipeline_commit(); }
  /// Waits for all tiles but the newest.
  __device__ void wait() const { __pipeline_wait_prior(1); }
};

/// Calls visit(i, stage) for the tiles 0 to count - 1, which fetch(i, stage) has begun to fetch one before.
template <typename S, typename Fetch, typename Visit>
__device__ void stream_tiles(const S& stream, int count, const Fetch& fetch, const Visit& visit) {
  if (count > 0) fetch(0, 0);
  stream.commit();
  for (int i = 0; i < count; ++i) {
    if (i + 1 < count) fetch(i + 1, (i + 1) % S::kStages);
    stream.commit();
    stream.wait();
    visit(i, i % S::kStages);
  }
}

}  // namespace aft::ops::cuda

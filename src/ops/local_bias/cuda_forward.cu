// Forward of local_bias on a CUDA device. Cost and layout: README.md.

#include <cstdint>

#include "aft/ops/local_bias.h"
#include "ops/common/cuda/launch.cuh"
#include "ops/local_bias/check.h"

namespace aft::ops {
namespace local_bias {
namespace {

constexpr int kTile = 16;   // rows, and columns of the band, of a block: a thread has one entry
constexpr int kDepth = 32;  // elements of a row of the factors that a block holds at once

/// Entries [t0, t0 + kTile) x [j0, j0 + kTile) of a head's band. They meet 2 kTile - 1 sources.
template <typename T>
__global__ void __launch_bounds__(kTile* kTile)
    write_tile(LocalBiasForward<T> p, int64_t row_tiles, int64_t column_tiles) {
  __shared__ T u[kTile][kDepth + 1], v[2 * kTile - 1][kDepth + 1];  // + 1: neighbouring rows in different banks
  const LocalBiasShape& s = p.in.shape;
  const int64_t head = blockIdx.x / (row_tiles * column_tiles);
  const int64_t t0 = blockIdx.x / column_tiles % row_tiles * kTile, j0 = blockIdx.x % column_tiles * kTile;
  const int64_t source0 = t0 - s.left + j0;
  const int thread = static_cast<int>(threadIdx.x), r = thread / kTile, j = thread % kTile;
  const T* u_rows = p.in.u + head * s.rows * s.width;
  const T* v_rows = p.in.v + head * s.rows * s.width;
  T sum = 0;
  for (int64_t c0 = 0; c0 < s.width; c0 += kDepth) {
    const int depth = static_cast<int>(min(int64_t{kDepth}, s.width - c0));
    const int column = thread % kDepth;
    for (int row = thread / kDepth; row < 3 * kTile - 1; row += kTile * kTile / kDepth) {
      const bool is_u = row < kTile;
      const int64_t at = is_u ? t0 + row : source0 + row - kTile;
      T x = 0;
      if (column < depth && at >= 0 && at < s.rows) x = (is_u ? u_rows : v_rows)[at * s.width + c0 + column];
      (is_u ? u[row] : v[row - kTile])[column] = x;
    }
    __syncthreads();
    for (int i = 0; i < depth; ++i) sum = fma(u[r][i], v[r + j][i], sum);
    __syncthreads();
  }
  const int64_t t = t0 + r, source = source0 + r + j;
  if (t >= s.rows || j0 + j >= s.columns()) return;
  p.band[(head * s.rows + t) * s.columns() + j0 + j] = source >= 0 && source < s.rows ? sum : T(0);
}

}  // namespace
}  // namespace local_bias

template <typename T>
void local_bias_forward(const LocalBiasForward<T>& p, const Cuda& cuda) {
  using namespace local_bias;
  check_sizes(p);
  const LocalBiasShape& s = p.in.shape;
  const int64_t row_tiles = (s.rows + kTile - 1) / kTile, column_tiles = (s.columns() + kTile - 1) / kTile;
  cuda::launch_blocks(cuda, "local_bias_forward", s.heads * row_tiles * column_tiles, kTile * kTile, write_tile<T>, p,
                      row_tiles, column_tiles);
}

template void local_bias_forward<float>(const LocalBiasForward<float>&, const Cuda&);
template void local_bias_forward<double>(const LocalBiasForward<double>&, const Cuda&);

}  // namespace aft::ops

// One position of the windowed operator on a CUDA device, the state edited in place: always from p and n of every pair.

#include <algorithm>
#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/check.h"
#include "ops/window/cuda_checks.h"
#include "ops/window/cuda_row.cuh"

namespace aft::ops {
namespace window {
namespace {

// A block does one head of a sequence. Where its channels share a key they share max, den and the ring's keys too,
// which are written once all have read them.
template <typename E>
__global__ void step(WindowStep<E> p) {
  using T = Accumulate<E>;
  const WindowShape& s = p.in.shape;
  const int64_t width = s.channels / s.heads;
  const bool shares_key = s.key_channels != s.channels;
  const int64_t b = blockIdx.x / s.heads, head = blockIdx.x % s.heads;
  const int64_t position = p.state.position[b];
  const Sequence one = {b, b, 0, 1, 0};
  const bool past_the_table = s.has_band && p.in.band.row_stride != 0 && position >= p.in.band.rows;
  cuda::RunningSum<T> sum;
  T key = 0;
  for (int64_t c = head * width + threadIdx.x; c < (head + 1) * width; c += blockDim.x) {
    E& y = *column(p.y, one, c);
    if (past_the_table) {
      y = cuda::narrow<E>(NAN);
      continue;
    }
    const RowSources<E> sources(p.in, one, c);
    sum = initial_sums<T>(s, p.in.initial_state, b, c);
    key = sources.key(0);
    const T value = sources.value(0);
    const T query = s.gate == Gate::kNone ? T(0) : T(cuda::widen(*column(p.in.q, one, c)));
    if (s.has_band) {
      const ExactRow<T> row = exact_row(sources, 0, 1, sum, {});
      y = cuda::narrow<E>(cuda::gated_ratio(s.gate, query, row.num, row.den));
      if (-s.left >= sources.first) sum.add_source(sources.key(-s.left), sources.value(-s.left));
      if (s.left > 0) p.state.ring_value[(b * s.left + position % s.left) * s.channels + c] = value;
    } else {
      sum.add_source(key, value);
      y = cuda::narrow<E>(cuda::gated_ratio(s.gate, query, sum.num.sum, sum.den.sum));
    }
    p.state.num[b * s.channels + c] = sum.num.sum;
    if (!shares_key) write_key_state(s, p.state, b, c, position, sum, key);
  }
  if (!shares_key || past_the_table) return;
  __syncthreads();
  if (threadIdx.x == 0) write_key_state(s, p.state, b, head, position, sum, key);
}

__global__ void advance(int64_t batch, int64_t* position) {
  const int64_t b = cuda::thread_index();
  if (b < batch) ++position[b];
}

}  // namespace
}  // namespace window

template <typename E>
void window_step(const WindowStep<E>& p, const Cuda& cuda) {
  constexpr const char* kName = "window_step";
  WindowStep<E> one = p;
  WindowShape& s = one.in.shape;
  s.time = 1;
  s.packed = false;
  one.in.key_mask = {};
  one.in.cu_seqlens = nullptr;
  one.in.initial_state = one.state;
  window::check_sizes(one);
  window::check_values(one.in, cuda);
  if (s.channels > 0) {
    cuda::launch_blocks(cuda, kName, s.batch * s.heads, std::min<int64_t>(1024, s.channels / s.heads), window::step<E>,
                        one);
  }
  cuda::launch(cuda, kName, s.batch, window::advance, s.batch, p.state.position);
}

#define AFT_INSTANTIATE(E) template void window_step<E>(const WindowStep<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

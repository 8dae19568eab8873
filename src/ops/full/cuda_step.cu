// One position of the dense operator on a CUDA device, the ring edited in place: always from p and n of every pair.

#include <cstdint>

#include "aft/ops/full.h"
#include "ops/common/for_each_element.h"
#include "ops/full/check.h"
#include "ops/full/cuda_call.cuh"

namespace aft::ops {
namespace full {
namespace {

constexpr int kWarps = 8, kStepThreads = 32 * kWarps;

// A block does 32 channels of one sequence. Warp i takes every kWarps-th run of 32 sources, whose weights are split
// once a block; then the warps' sums are added in order.
template <typename E>
__global__ void __launch_bounds__(kStepThreads) step(Call<E> call, FullStep<E> p) {
  using T = Accumulate<E>;
  __shared__ cuda::SplitExp<T> weights[kStepThreads];
  __shared__ T sums[kWarps][3][32];
  const FullShape& s = call.in.shape;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t width = call.weight_width, groups = tiles_of(width, 32);
  const int64_t b = blockIdx.x / (call.weight_heads * groups), head = blockIdx.x / groups % call.weight_heads;
  const int64_t own = blockIdx.x % groups * 32 + lane, c = head * width + (own < width ? own : 0);
  const Sequence x = call.sequence(b);
  const int64_t t = x.first;
  const bool known = call.has_weights(x, t);
  cuda::RunningSum<T> sum;
  sum.max = 4 * kExponentFloor<T>;
  for (int64_t begin = 0; known && begin <= t; begin += kStepThreads) {
    const int64_t mine = begin + threadIdx.x;
    __syncthreads();
    weights[threadIdx.x] = mine <= t ? cuda::split_exp(call.weight(x, head, t, mine)) : cuda::SplitExp<T>{};
    __syncthreads();
    for (int i = 0; i < 32; ++i) {
      const int64_t source = begin + warp * 32 + i;
      const cuda::SplitExp<T> w = weights[warp * 32 + i];
      if (source > t || w.p == 0) continue;
      const cuda::SplitExp<T> k = cuda::split_exp(call.key(x, source, c));
      if (k.p == 0) continue;
      const T e = k.p * w.p;
      sum.add(k.n + w.n, e, e * call.value(x, source, c));
    }
  }
  sums[warp][0][lane] = sum.max;
  sums[warp][1][lane] = sum.den.sum;
  sums[warp][2][lane] = sum.num.sum;
  __syncthreads();
  if (warp > 0 || own >= width) return;
  for (int i = 1; i < kWarps; ++i) sum.add(sums[i][0][lane], sums[i][1][lane], sums[i][2][lane]);
  const T query = s.gate == Gate::kNone ? T(0) : T(cuda::widen(call.target(call.in.q, x, t)[c]));
  E& y = call.target(p.y, x, t)[c];
  y = cuda::narrow<E>(known ? cuda::gated_ratio(s.gate, query, sum.num.sum, sum.den.sum) : T(NAN));
  if (!known) return;
  p.state.ring_value[(b * s.capacity + t) * s.channels + c] = call.value(x, t, c);
  if (call.shares_key && c % (s.channels / s.heads) != 0) return;
  p.state.ring_key[(b * s.capacity + t) * s.key_channels + call.key_channel(c)] = call.key(x, t, c);
}

__global__ void advance(int64_t batch, int64_t* position) {
  const int64_t b = cuda::thread_index();
  if (b < batch) ++position[b];
}

}  // namespace
}  // namespace full

template <typename E>
void full_step(const FullStep<E>& p, const Cuda& cuda) {
  constexpr const char* kName = "full_step";
  FullStep<E> one = p;
  FullShape& s = one.in.shape;
  s.targets = s.sources = 1;
  s.packed = false;
  one.in.cu_seqlens = nullptr;
  one.in.key_mask = {};
  one.in.initial_state = p.state;
  full::check_sizes(one);
  full::check_values(one.in, cuda);
  const full::Call<E> call(one.in);
  if (s.channels > 0) {
    cuda::launch_blocks(cuda, kName, s.batch * call.weight_heads * full::tiles_of(call.weight_width, 32),
                        full::kStepThreads, full::step<E>, call, one);
  }
  cuda::launch(cuda, kName, s.batch, full::advance, s.batch, p.state.position);
}

#define AFT_INSTANTIATE(E) template void full_step<E>(const FullStep<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

// Backward of the windowed operator on a CUDA device: which of the two, and that without a band, AFT-simple. Cost and
// layout: README.md.
//
// With a[t] = gy gate / D and b[t] = a N/D:   dv[t'] = e^k sum_t a[t]    dk[t'] = v dv - e^k sum_t b[t].
// Everything of row t stands under the maximum M[t] of the running sums there: a and b are worth 2^-M. So the sums over
// later targets are running sums of terms with exponent -M, folded from right to left.

#include <cstdint>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/check.h"
#include "ops/window/cuda_backward.cuh"
#include "ops/window/cuda_checks.h"

namespace aft::ops {
namespace window {
namespace {

constexpr int kTile = 8;  // rows whose K, a, b and M a thread keeps

// Two channels a thread: four would need more registers than there are.
template <typename E>
constexpr int kBackwardPack = sizeof(E) == 8 ? 1 : 2;

/// targets [slots][3][d]: -M, b and a summed over the targets of each chunk. Causal, M at the end of each sequence goes
/// to `ends`; not causal, that is where it comes from, and the gradients of the queries are written here.
template <typename E, int N, bool causal>
__global__ void sum_targets(WindowBackward<E> p, Slots slots, Accumulate<E>* targets, Accumulate<E>* ends) {
  using T = Accumulate<E>;
  const int64_t d = slots.channels, groups = d / N, i = cuda::thread_index();
  Slot slot;
  if (i >= slots.count * groups || !find_slot(p.in, slots, i / groups, slot)) return;
  const int64_t c = i % groups * N;
  const Columns<E, N> columns(p.in, slot.sequence, c);
  const Targets<E, N> rows(p, slot.sequence, c);
  T* end = ends + slot.sequence.index * kSumParts * d + c;
  cuda::RunningSum<T> sum[N], later[N];
  if constexpr (causal) {
    restore_sums(sum, p, slot, c);
  } else {
    load_sums(sum, end, d);
  }
#pragma unroll
  for (int lane = 0; lane < N; ++lane) later[lane].max = -INFINITY;
  for (int64_t t = slot.begin; t < slot.end; ++t) {
    const auto row = rows.read(t);
    T dq[N];
    if constexpr (causal) {
      const auto source = columns.read(t);
#pragma unroll
      for (int lane = 0; lane < N; ++lane) sum[lane].add_source(columns.key(source, lane), columns.value(source, lane));
    }
#pragma unroll
    for (int lane = 0; lane < N; ++lane) {
      const cuda::TargetGrad<T> grad = rows.grad(row, lane, sum[lane]);
      later[lane].add(-sum[lane].max, grad.b, grad.a);
      dq[lane] = grad.query;
    }
    if constexpr (!causal) rows.write_query(t, dq);
  }
  store_sums(later, targets + i / groups * kSumParts * d + c, d);
  if (causal && slot.end == slot.sequence.time) store_sums(sum, end, d);
}

/// dk and dv of one row, from K = e^k 2^-M and the sums of a and b under the same M.
template <typename T>
__device__ void source_grad(T k, T key, T value, const cuda::RunningSum<T>& later, T& dk, T& dv) {
  const T a = later.num.sum, b = later.den.sum;
  // A value that no target sees may be infinite.
  if (a == 0 || cuda::is_absent(key)) value = 0;
  dv = k * a;
  dk = cuda::multiply(k, fma(value, a, -b));  // it may be added up over a head next, in threads of one channel or two
}

constexpr int kCausalChunk = 64, kLongestChunk = 256;  // rows of chunks without a band
constexpr int kStrip = 256;                            // channels of a block, whatever a thread has of them

// Keys of their own: a thread has N channels of a slot. A key a head: a block has one head of a slot, whose channels it
// walks in strips; dk is summed over them in order.
template <typename E, int N, bool causal, bool shares_key>
__global__ void __launch_bounds__(kStrip / N)
    write_grads(WindowBackward<E> p, Slots slots, const Accumulate<E>* targets, const Accumulate<E>* ends) {
  using T = Accumulate<E>;
  constexpr int kTiles = kCausalChunk / kTile;
  // Of each thread: the sums before every tile but the first of its chunk.
  __shared__ T starts[causal ? kTiles - 1 : 1][kSumParts][N][kStrip / N];
  __shared__ T key_sums[shares_key ? kLongestChunk : 1];
  __shared__ T room[kStrip / N / 32];
  const WindowShape& s = p.in.shape;
  const int64_t d = slots.channels;
  const int64_t units = shares_key ? s.heads : d / N;  // of a slot: blocks, or threads
  const int64_t i = shares_key ? int64_t{blockIdx.x} : cuda::thread_index();
  Slot slot;
  if (i >= slots.count * units || !find_slot(p.in, slots, i / units, slot)) return;
  const int64_t width = shares_key ? d / s.heads : N;
  const int64_t first = i % units * width;
  if constexpr (shares_key) {
    for (int64_t t = threadIdx.x; t < slot.end - slot.begin; t += blockDim.x) key_sums[t] = 0;
  }
  const int64_t strip = shares_key ? int64_t{blockDim.x} * N : N;
  for (int64_t offset = 0; offset < width; offset += strip) {
    const int64_t own = offset + (shares_key ? int64_t{threadIdx.x} * N : 0);
    const bool active = own < width;
    const int64_t c = first + (active ? own : 0);
    const Columns<E, N> columns(p.in, slot.sequence, c);
    const Targets<E, N> rows(p, slot.sequence, c);
    E* grad_k = column(p.grad_k, slot.sequence, shares_key ? 0 : c);
    E* grad_v = column(p.grad_v, slot.sequence, c);
    cuda::RunningSum<T> sum[N], later[N];
    // Not causal, of all targets of the sequence.
    load_sums(later, targets + (causal ? i / units : slot.sequence.index) * kSumParts * d + c, d);
    const auto write_source = [&](int64_t t, const auto& source, const T(&k)[N]) {
      T dk[N], dv[N], dk_sum = 0;
      const bool masked = !source.seen;
#pragma unroll
      for (int lane = 0; lane < N; ++lane) {
        source_grad(k[lane], columns.key(source, lane), columns.value(source, lane), later[lane], dk[lane], dv[lane]);
        if (masked) dk[lane] = dv[lane] = 0;
        dk_sum += dk[lane];
      }
      if (active) cuda::store<N>(grad_v + t * p.grad_v.time_stride, dv);
      if constexpr (shares_key) {
        dk_sum = sum_of_block(active ? dk_sum : T(0), room);
        if (threadIdx.x == 0) key_sums[t - slot.begin] += dk_sum;
      } else {
        cuda::store<N>(grad_k + t * p.grad_k.time_stride, dk);
      }
    };

    if constexpr (!causal) {
      load_sums(sum, ends + slot.sequence.index * kSumParts * d + c, d);
      for (int64_t t = slot.begin; t < slot.end; ++t) {
        const auto source = columns.read(t);
        T k[N];
#pragma unroll
        for (int lane = 0; lane < N; ++lane) {
          const cuda::SplitExp<T> e = cuda::split_exp(columns.key(source, lane));
          k[lane] = e.p * cuda::pow2(e.n - sum[lane].max);
        }
        write_source(t, source, k);
      }
    } else {
      restore_sums(sum, p, slot, c);
      const int tiles = static_cast<int>((slot.end - slot.begin + kTile - 1) / kTile);
      for (int tile = 1; tile < tiles; ++tile) {
        const int64_t begin = slot.begin + (tile - 1) * kTile;
        visit_rows<kTile>(columns, begin, begin + kTile, [&](int64_t, const auto& source) {
#pragma unroll
          for (int lane = 0; lane < N; ++lane) {
            sum[lane].add_source(columns.key(source, lane), columns.value(source, lane));
          }
        });
#pragma unroll
        for (int lane = 0; lane < N; ++lane) {
          starts[tile - 1][0][lane][threadIdx.x] = sum[lane].max;
          starts[tile - 1][1][lane][threadIdx.x] = sum[lane].den.sum;
          starts[tile - 1][2][lane][threadIdx.x] = sum[lane].num.sum;
        }
      }
      for (int tile = tiles - 1; tile >= 0; --tile) {
        if (tile > 0) {
#pragma unroll
          for (int lane = 0; lane < N; ++lane) {
            sum[lane] = {starts[tile - 1][0][lane][threadIdx.x],
                         {starts[tile - 1][1][lane][threadIdx.x], T(0)},
                         {starts[tile - 1][2][lane][threadIdx.x], T(0)}};
          }
        } else {
          restore_sums(sum, p, slot, c);
        }
        const int64_t begin = slot.begin + tile * kTile;
        const int count = static_cast<int>(min(int64_t{kTile}, slot.end - begin));
        typename Columns<E, N>::Source source[kTile];
        T k[kTile][N], a[kTile][N], b[kTile][N], max[kTile][N];
#pragma unroll
        for (int r = 0; r < kTile; ++r) {
          if (r >= count) break;
          source[r] = columns.read(begin + r);
          const auto row = rows.read(begin + r);
          T dq[N];
#pragma unroll
          for (int lane = 0; lane < N; ++lane) {
            const T key = columns.key(source[r], lane);
            const cuda::SplitExp<T> e = cuda::split_exp(key);
            sum[lane].add(e.n, e.p, cuda::is_absent(key) ? T(0) : e.p * columns.value(source[r], lane));
            const cuda::TargetGrad<T> grad = rows.grad(row, lane, sum[lane]);
            max[r][lane] = sum[lane].max;
            k[r][lane] = e.p * cuda::pow2(e.n - sum[lane].max);
            a[r][lane] = grad.a;
            b[r][lane] = grad.b;
            dq[lane] = grad.query;
          }
          if (active) rows.write_query(begin + r, dq);
        }
#pragma unroll
        for (int r = kTile - 1; r >= 0; --r) {
          if (r >= count) continue;
#pragma unroll
          for (int lane = 0; lane < N; ++lane) {
            if (-max[r][lane] != later[lane].max) later[lane].rescale(-max[r][lane]);
            later[lane].den.add(b[r][lane], T(1));
            later[lane].num.add(a[r][lane], T(1));
          }
          write_source(begin + r, source[r], k[r]);
        }
      }
    }
  }
  if constexpr (shares_key) {
    __syncthreads();
    E* grad_k = column(p.grad_k, slot.sequence, first / width);
    for (int64_t t = slot.begin + threadIdx.x; t < slot.end; t += blockDim.x) {
      grad_k[t * p.grad_k.time_stride] = cuda::narrow<E>(key_sums[t - slot.begin]);
    }
  }
}

template <typename E, int N, bool causal>
void run(const WindowBackward<E>& p, const Slots& slots, const BackwardMemory<E>& memory, const Cuda& cuda) {
  constexpr const char* kName = "window_backward";
  const WindowShape& s = p.in.shape;
  const int64_t threads = slots.count * (s.channels / N);
  if constexpr (!causal) {
    cuda::launch(cuda, kName, threads, sum_chunks<E, N>, p.in, slots, int64_t{0}, memory.before);
    cuda::launch(cuda, kName, s.batch * s.channels, fold_chunks<E>, p.in, slots, memory.before, memory.ends,
                 static_cast<Accumulate<E>*>(nullptr));
  }
  cuda::launch(cuda, kName, threads, sum_targets<E, N, causal>, p, slots, memory.targets, memory.ends);
  cuda::launch(cuda, kName, s.batch * s.channels, fold_targets<E>, p, slots, memory.targets, memory.ends,
               memory.at_start);
  const Accumulate<E>* targets = causal ? memory.targets : memory.at_start;
  if (s.key_channels != s.channels) {
    const int64_t block = std::min<int64_t>(kStrip / N, (s.channels / s.heads / N + 31) / 32 * 32);
    cuda::launch_blocks(cuda, kName, slots.count * s.heads, block, write_grads<E, N, causal, true>, p, slots, targets,
                        memory.ends);
  } else {
    constexpr int kBlock = kStrip / N;
    cuda::launch_blocks(cuda, kName, (threads + kBlock - 1) / kBlock, kBlock, write_grads<E, N, causal, false>, p,
                        slots, targets, memory.ends);
  }
  const auto& initial = p.grad_initial_state;
  if (p.in.initial_state.position != nullptr && (initial.num != nullptr || initial.den != nullptr)) {
    cuda::launch(cuda, kName, s.batch * s.key_channels, write_initial<E>, p, memory.at_start);
  }
}

template <typename E>
void backward(const WindowBackward<E>& p, const Cuda& cuda) {
  const WindowShape& s = p.in.shape;
  if (s.channels == 0 || s.batch == 0) return;
  cuda::Workspace workspace(cuda.workspace);
  const BackwardMemory<E> memory(s, workspace);
  const Slots slots(s);
  constexpr int kMost = kBackwardPack<E>;
  const bool packs =
      moves_in_packs<kMost>(s, p.in.v) && moves_in_packs<kMost>(s, p.grad_y) && moves_in_packs<kMost>(s, p.grad_v) &&
      (s.key_channels != s.channels || (moves_in_packs<kMost>(s, p.in.k) && moves_in_packs<kMost>(s, p.grad_k))) &&
      (s.gate == Gate::kNone || (moves_in_packs<kMost>(s, p.in.q) && moves_in_packs<kMost>(s, p.grad_q)));
  with_pack<kMost>(packs, [&]<int N>(std::integral_constant<int, N>) {
    s.causal ? run<E, N, true>(p, slots, memory, cuda) : run<E, N, false>(p, slots, memory, cuda);
  });
}

}  // namespace
}  // namespace window

template <typename E>
void window_backward(const WindowBackward<E>& p, const Cuda& cuda) {
  window::check_sizes(p);
  window::check_values(p.in, cuda);
  p.in.shape.has_band ? window::backward_band(p, cuda) : window::backward(p, cuda);
}

#define AFT_INSTANTIATE(E) template void window_backward<E>(const WindowBackward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

// Backward of the grid operator on a CUDA device. Cost and layout: README.md; the mathematics is that of
// cpu_backward.cc. An image of a channel of which a row fails its certificate is done exactly as a whole, from p and n
// of every pair; so is one with a number that is not finite, which must reach no pair but its own.

#include <cstdint>

#include "aft/ops/grid.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/grid/check.h"
#include "ops/grid/cuda_unit.cuh"

namespace aft::ops {
namespace grid {
namespace {

/// A unit of the backward, for a lane.
template <typename E>
struct BackwardUnit {
  using T = Accumulate<E>;

  const GridBackward<E>& p;
  const Cut& cut;
  const BackwardMemory<E>& memory;
  int64_t g;
  Channel<E> channel;
  Unit<T> unit;

  __device__ BackwardUnit(const GridBackward<E>& params, const Cut& c, const BackwardMemory<E>& m, int64_t b,
                          int64_t group, Two<T>* at)
      : p(params), cut(c), memory(m), g(group), channel(p.in, c, b, group), unit(at, c, true) {}

  __device__ int width() const { return static_cast<int>(cut.shape.width); }
  __device__ int height() const { return static_cast<int>(cut.shape.height); }
  __device__ bool shares_key() const { return cut.shape.key_channels != cut.shape.channels; }
  __device__ Two<T>& source(int64_t t) const { return unit.sources[t * kLanes + lane_of_thread()]; }
  __device__ Two<T>& target(int64_t t) const { return unit.targets[t * kLanes + lane_of_thread()]; }
  /// Whether the lane is done exactly.
  __device__ bool is_exact() const { return (*unit.failed >> lane_of_thread()) % 2 != 0; }
};

/// The scale that grad_y is divided by, 2^G, and 2^(X + G) in two factors, neither of which ends the range.
template <typename T>
struct GradScales {
  T from_g, half, rest;

  __device__ explicit GradScales(const Scales<T>& s) {
    constexpr T kMagic = FloatFormat<T>::kMagic;
    const T exponent = s.x + s.g, half_exponent = fma(exponent, T(0.5), kMagic) - kMagic;
    from_g = cuda::pow2(s.g);
    half = cuda::pow2(half_exponent);
    rest = cuda::pow2(exponent - half_exponent);
  }
};

template <typename E, typename T = Accumulate<E>>
__device__ T query_at(const BackwardUnit<E>& u, int t) {
  return u.cut.shape.gate == Gate::kNone ? T(0) : T(cuda::widen(*u.channel.at(u.p.in.q, t)));
}

/// What target t leaves, under 2^G and with N/D less the centre in b, from D and N under any common scale; writes the
/// gradient of its query.
template <typename E, typename T = Accumulate<E>>
__device__ Two<T> leave_target(const BackwardUnit<E>& u, const Scales<T>& scales, int t, T q, T g, T den, T num) {
  const Gate gate = u.cut.shape.gate;
  const bool empty = den == 0;  // nothing was seen: 0, whatever q and g hold
  const cuda::GateSlope<T> slope = cuda::evaluate_gate(gate, q);
  const T ratio = empty ? T(0) : num / den;
  const T a = empty ? T(0) : cuda::times_gate(slope, g * cuda::pow2(-scales.g), den);
  if (gate != Gate::kNone && u.channel.active) {
    const T dq = g * ((ratio + scales.centre) * cuda::pow2(scales.x)) * slope.slope;
    *u.channel.at(u.p.grad_q, t) = cuda::narrow<E>(empty ? T(0) : dq);
  }
  return {a, a * ratio};
}

/// The forward of the unit's targets: tasks first, first + step, ... of this warp.
template <int R, typename E>
__device__ void leave_targets(const BackwardUnit<E>& u, int first, int step, bool redo) {
  using T = Accumulate<E>;
  const int width = u.width(), blocks = static_cast<int>(u.cut.blocks), tasks = static_cast<int>(u.cut.tasks());
  const Scales<T> scales(u.unit);
  bool failed = false;
  for (int task = first; task < tasks; task += step) {
    const int y = task / blocks, i = task % blocks;
    const RowSums<R, T> sums = block_sums<R, 1>(u.cut, u.unit, u.unit.sources, Weights<T>(u.memory, u.cut, u.g), y, i);
    const int begin = y * width + i * R, end = y * width + min(width, (i + 1) * R);
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (begin + r < end) {
        u.target(begin + r) = {sums.first[r], sums.second[r]};
        failed = failed || scales.failed(sums.first[r]);
      }
    }
    // The next row of q and grad_y is loaded while one is done.
    T q = query_at(u, begin), g = cuda::widen(*u.channel.at(u.p.grad_y, begin));
    for (int t = begin; t < end; ++t) {
      const T q_here = q, g_here = g;
      if (t + 1 < end) {
        q = query_at(u, t + 1);
        g = cuda::widen(*u.channel.at(u.p.grad_y, t + 1));
      }
      const Two<T> left = leave_target(u, scales, t, q_here, g_here, u.target(t).first, u.target(t).second);
      u.target(t) = left;
      failed = failed || !(fabs(left.first) < T(INFINITY) && fabs(left.second) < T(INFINITY));
    }
  }
  uint32_t lanes = __ballot_sync(0xffffffffu, failed && redo && u.channel.active);
  if (lanes == 0) return;
  if (u.shares_key()) lanes = 0xffffffffu;  // their dk are added up
  if (lane_of_thread() == 0) atomicOr(u.unit.failed, lanes);
}

/// The targets of lanes that are done exactly: a row is worth a 2^exponent, so that e^(k+w)/D keeps its own scale. The
/// exponent takes the place of the source's K. The whole block.
template <typename E>
__device__ void leave_exact_targets(const BackwardUnit<E>& u) {
  using T = Accumulate<E>;
  if (!u.is_exact()) return;
  const Scales<T> scales(u.unit);
  for (int t = warp_of_thread(), time = static_cast<int>(u.cut.shape.time()); t < time; t += kWarps) {
    const ExactRow<T> row = exact_row(u.channel, u.cut, u.p.in.kernel, scales, t);
    const T g = cuda::widen(*u.channel.at(u.p.grad_y, t));
    const Two<T> left = leave_target(u, scales, t, query_at(u, t), g, row.den, row.num);
    const T den_exponent = exponent_of(row.den), normal = cuda::pow2(den_exponent);
    u.target(t) = {left.first * normal, left.second * normal};
    u.source(t).first = row.den == 0 ? kExponentFloor<T> : -(row.exponent + den_exponent);
  }
}

/// e^(k+w) in the units of target t, of a lane that is done exactly.
template <typename E, typename T = Accumulate<E>>
__device__ T exact_pair(const BackwardUnit<E>& u, const cuda::SplitExp<T>& k, const cuda::SplitExp<T>& w, int t) {
  return k.p * w.p * cuda::pow2(fmin(k.n + w.n + u.source(t).first, kPairExponentLimit<T>));
}

template <typename T>
struct SourceGrad {
  T k, v;
};

/// dv 2^-G and dk 2^-(X + G) of source s.
template <typename E, typename T = Accumulate<E>>
__device__ SourceGrad<T> exact_source(const BackwardUnit<E>& u, const Scales<T>& scales, int s) {
  const cuda::SplitExp<T> k = cuda::split_exp(u.channel.key(s));
  if (k.p == 0) return {};
  T dv = 0, db = 0;
  for_each_pair<-1>(u.cut, u.p.in.kernel, u.channel.head(), s, [&](int t, const cuda::SplitExp<T>& w) {
    const T pair = exact_pair(u, k, w, t);
    dv = fma(pair, u.target(t).first, dv);
    db = fma(pair, u.target(t).second, db);
  });
  return {fma(fma(u.channel.value(s), cuda::pow2(-scales.x), -scales.centre), dv, -db), dv};
}

/// The gradient of element (iy, ix) of the kernel within reach, by this image, times 2^-(X + G).
template <typename E, typename T = Accumulate<E>>
__device__ T exact_element(const BackwardUnit<E>& u, const Scales<T>& scales, int iy, int ix) {
  const cuda::SplitExp<T> w = cuda::split_exp(raw_weight(u.p.in.kernel, u.cut, u.channel.head(), iy, ix));
  if (w.p == 0) return 0;
  const int dy = iy - static_cast<int>(u.cut.reach.y), dx = ix - static_cast<int>(u.cut.reach.x);
  const int height = u.height(), width = u.width();
  T sum = 0;
  for (int ty = max(0, -dy); ty < min(height, height - dy); ++ty) {
    for (int tx = max(0, -dx); tx < min(width, width - dx); ++tx) {
      const int t = ty * width + tx, s = t + dy * width + dx;
      const cuda::SplitExp<T> k = cuda::split_exp(u.channel.key(s));
      if (k.p == 0) continue;
      const T pair = exact_pair(u, k, w, t), value = fma(u.channel.value(s), cuda::pow2(-scales.x), -scales.centre);
      sum = fma(pair, fma(value, u.target(t).first, -u.target(t).second), sum);
    }
  }
  return sum;
}

/// Writes dv and dk of source t where `mine`, times 2^G and 2^(X + G). Where a head shares its key, dk is added over
/// the lanes of the head: neighbours first, then pairs of neighbours, and so on; then all lanes are `mine`, or none.
template <typename E, typename T = Accumulate<E>>
__device__ void write_source(const BackwardUnit<E>& u, const GradScales<T>& scales, int t, SourceGrad<T> grad,
                             bool mine) {
  const Channel<E>& channel = u.channel;
  if (mine && channel.active) *channel.at(u.p.grad_v, t) = cuda::narrow<E>(grad.v * scales.from_g);
  T dk = grad.k * scales.half * scales.rest;
  if (!u.shares_key()) {
    if (mine && channel.active) *channel.at(u.p.grad_k, t) = cuda::narrow<E>(dk);
    return;
  }
  if (!mine) return;
  const Groups& groups = u.cut.groups;
  const int lane = lane_of_thread();
  const int width = groups.parts > 0 ? kLanes : static_cast<int>(groups.head_width), i = lane % width;
  if (!channel.active) dk = 0;
  for (int step = 1; step < width; step *= 2) {
    const T other = __shfl_down_sync(0xffffffffu, dk, step);
    if (i + step < width) dk += other;
  }
  if (i != 0 || !channel.active) return;
  if (groups.parts > 0) {
    u.memory.keys[(channel.b * u.cut.shape.time() + t) * groups.count + u.g] = dk;
  } else {
    const Rows<E>& to = u.p.grad_k;
    to.data[channel.b * to.batch_stride + t * to.time_stride + channel.head()] = cuda::narrow<E>(dk);
  }
}

/// dv = K sum a 2^G, dk = (KV sum a - K sum b) 2^(X + G).
template <int R, typename E>
__device__ void write_sources(const BackwardUnit<E>& u, int first, int step) {
  using T = Accumulate<E>;
  const int width = u.width(), blocks = static_cast<int>(u.cut.blocks), tasks = static_cast<int>(u.cut.tasks());
  const uint32_t exact_lanes = *u.unit.failed;
  const bool is_exact = u.is_exact();
  for (int task = first; task < tasks; task += step) {
    const int y = task / blocks, i = task % blocks;
    const RowSums<R, T> sums = block_sums<R, -1>(u.cut, u.unit, u.unit.targets, Weights<T>(u.memory, u.cut, u.g), y, i);
    const GradScales<T> scales{Scales<T>(u.unit)};
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (i * R + r >= width) break;
      const int t = y * width + i * R + r;
      const Two<T> source = u.source(t);
      const T dk = fma(source.second, sums.first[r], -(source.first * sums.second[r]));
      write_source(u, scales, t, {dk, source.first * sums.first[r]}, !is_exact);
    }
  }
  if (exact_lanes == 0) return;
  const Scales<T> scales(u.unit);
  for (int task = first; task < tasks; task += step) {
    const int y = task / blocks, i = task % blocks;
    for (int t = y * width + i * R, end = y * width + min(width, (i + 1) * R); t < end; ++t) {
      SourceGrad<T> grad = {};
      if (is_exact) grad = exact_source(u, scales, t);
      write_source(u, GradScales<T>(scales), t, grad, is_exact);
    }
  }
}

constexpr int kElements = 11;  // of a kernel row, in registers

/// The kernel's gradient by this image, e^w sum over its targets of KV a - K b, kElements of a kernel row a task. They
/// stay in registers while the targets pass: one target on, an element meets the source that its right neighbour met.
/// Sources beside the grid are 0. `begins`: the image is the first of its chunk.
template <typename E>
__device__ void sum_kernel(const BackwardUnit<E>& u, int first, int step, bool begins) {
  using T = Accumulate<E>;
  const int width = u.width(), height = u.height(), lane = lane_of_thread();
  const int reach_y = static_cast<int>(u.cut.reach.y), reach_x = static_cast<int>(u.cut.reach.x);
  const int columns = 2 * reach_x + 1, parts = (columns + kElements - 1) / kElements, tasks = (2 * reach_y + 1) * parts;
  const int64_t d = u.cut.shape.channels;
  T* to = u.memory.kernel + u.channel.b / u.cut.chunk * u.cut.reach.size() * d + u.channel.c;
  for (int task = first; task < tasks; task += step) {
    const int iy = task / parts, first_column = task % parts * kElements;
    const int dy = iy - reach_y, shift = first_column - reach_x;
    T total[kElements] = {};
    for (int y = max(0, -dy), end = min(height, height - dy); y < end; ++y) {
      const Two<T>* target = u.unit.targets + int64_t{y} * width * kLanes + lane;
      // The source that element 0 meets first, which may lie before the row.
      const Two<T>* from = u.unit.sources + (int64_t{y + dy} * width + shift) * kLanes + lane;
      const auto source_at = [&](int x, int step_x) {  // `from` stands at x
        const bool on_grid = static_cast<unsigned>(x + step_x) < static_cast<unsigned>(width);
        return on_grid ? from[step_x * kLanes] : Two<T>{T(0), T(0)};
      };
      Two<T> source[kElements];
      T sum[kElements] = {};
#pragma unroll
      for (int j = 0; j + 1 < kElements; ++j) source[j] = source_at(shift, j);
      for (int x = 0; x < width; x += kElements, target += kElements * kLanes, from += kElements * kLanes) {
#pragma unroll
        for (int step_x = 0; step_x < kElements; ++step_x) {
          if (x + step_x >= width) break;
          source[(step_x + kElements - 1) % kElements] = source_at(x + shift, step_x + kElements - 1);
          const Two<T> t = target[step_x * kLanes];
#pragma unroll
          for (int j = 0; j < kElements; ++j) {
            const Two<T> s = source[(step_x + j) % kElements];
            sum[j] = fma(s.second, t.first, fma(-s.first, t.second, sum[j]));
          }
        }
      }
#pragma unroll
      for (int j = 0; j < kElements; ++j) total[j] += sum[j];
    }
    const GradScales<T> scales{Scales<T>(u.unit)};
    const Weights<T> weights(u.memory, u.cut, u.g);
    if (u.is_exact() || !u.channel.active) continue;
#pragma unroll
    for (int j = 0; j < kElements; ++j) {
      if (first_column + j >= columns) break;
      const int64_t element = int64_t{iy} * columns + first_column + j;
      T* at = to + element * d;
      *at = fma(total[j] * weights.within[element * kLanes] * scales.half, scales.rest, begins ? T(0) : *at);
    }
  }
  if (!u.is_exact() || !u.channel.active) return;
  const Scales<T> scales(u.unit);
  const GradScales<T> grad_scales(scales);
  for (int task = first; task < tasks; task += step) {
    const int iy = task / parts, first_column = task % parts * kElements;
    for (int ix = first_column; ix < min(columns, first_column + kElements); ++ix) {
      T* at = to + (int64_t{iy} * columns + ix) * d;
      *at = fma(exact_element(u, scales, iy, ix) * grad_scales.half, grad_scales.rest, begins ? T(0) : *at);
    }
  }
}

/// Counts what of the unit was done exactly. One thread.
template <typename E>
__device__ void count_unit(const BackwardUnit<E>& u, Counter* counters) {
  const int64_t time = u.cut.shape.time(), size = u.cut.groups.size(u.g);
  const uint32_t lanes = *u.unit.failed & (0xffffffffu >> (kLanes - size));
  count(counters, time * __popc(lanes), time * size);
}

/// A block does the images of a chunk, one after another in shared memory.
template <typename E, int R>
__global__ void __launch_bounds__(kWarps* kLanes, kResident<E>)
    backward_units(GridBackward<E> p, Cut cut, BackwardMemory<E> memory, bool redo, Counter* counters) {
  using T = Accumulate<E>;
  const int warp = warp_of_thread();
  // Blocks that run together have the same weights.
  const int64_t chunks = (cut.shape.batch + cut.chunk - 1) / cut.chunk;
  const int64_t g = blockIdx.x / chunks, first = blockIdx.x % chunks * cut.chunk;
  const int64_t last = first + cut.chunk < cut.shape.batch ? first + cut.chunk : cut.shape.batch;
  for (int64_t b = first; b < last; ++b) {
    const BackwardUnit<E> u(p, cut, memory, b, g, cuda::shared_memory<Two<T>>());
    prepare_sources<E, true>(u.channel, p.grad_y, cut, u.unit);
    sum_outside<R>(cut, u.unit, u.unit.sources);
    leave_targets<R>(u, warp, kWarps, redo);
    __syncthreads();
    if (threadIdx.x == 0) count_unit(u, counters);
    if (*u.unit.failed != 0) {
      leave_exact_targets(u);
      __syncthreads();
    }
    sum_outside<R>(cut, u.unit, u.unit.targets);
    write_sources<R>(u, warp, kWarps);
    if (p.grad_kernel != nullptr) sum_kernel(u, warp, kWarps, b == first);
    __syncthreads();
  }
}

// Units [first, ...) in the workspace: the same in five launches, where every warp has a task, or every block a unit.

/// The unit of the workspace in `slot`.
template <typename E>
__device__ BackwardUnit<E> unit_at(const GridBackward<E>& p, const Cut& cut, const BackwardMemory<E>& memory,
                                   int64_t first, int64_t slot) {
  const int64_t u = first + slot;
  return {p,
          cut,
          memory,
          u / cut.groups.count,
          u % cut.groups.count,
          memory.units + slot * Unit<Accumulate<E>>::size(cut, true)};
}

/// This warp among those of `parts` blocks.
inline __device__ int task_of_warp(int64_t parts) {
  return static_cast<int>(blockIdx.x % parts) * (cuda::kBlock / kLanes) + warp_of_thread();
}

template <typename E, int R>
__global__ void __launch_bounds__(kWarps* kLanes, kResident<E>)
    prepare_units(GridBackward<E> p, Cut cut, BackwardMemory<E> memory, int64_t first) {
  const BackwardUnit<E> u = unit_at(p, cut, memory, first, blockIdx.x);
  prepare_sources<E, true>(u.channel, p.grad_y, cut, u.unit);
  sum_outside<R>(cut, u.unit, u.unit.sources);
}

template <typename E, int R>
__global__ void __launch_bounds__(cuda::kBlock, 4)
    target_tasks(GridBackward<E> p, Cut cut, BackwardMemory<E> memory, int64_t first, bool redo) {
  const int64_t parts = blocks_of_tasks(cut.tasks());
  const BackwardUnit<E> u = unit_at(p, cut, memory, first, blockIdx.x / parts);
  leave_targets<R>(u, task_of_warp(parts), static_cast<int>(cut.tasks()), redo);
}

template <typename E, int R>
__global__ void __launch_bounds__(kWarps* kLanes, kResident<E>)
    prepare_targets(GridBackward<E> p, Cut cut, BackwardMemory<E> memory, int64_t first, Counter* counters) {
  const BackwardUnit<E> u = unit_at(p, cut, memory, first, blockIdx.x);
  if (threadIdx.x == 0) count_unit(u, counters);
  leave_exact_targets(u);
  __syncthreads();
  sum_outside<R>(cut, u.unit, u.unit.targets);
}

template <typename E, int R>
__global__ void __launch_bounds__(cuda::kBlock, 4)
    source_tasks(GridBackward<E> p, Cut cut, BackwardMemory<E> memory, int64_t first) {
  const int64_t parts = blocks_of_tasks(cut.tasks());
  const BackwardUnit<E> u = unit_at(p, cut, memory, first, blockIdx.x / parts);
  write_sources<R>(u, task_of_warp(parts), static_cast<int>(cut.tasks()));
}

/// Units [first, last): a warp does its elements of the kernel for all images of a group, in order.
template <typename E>
__global__ void __launch_bounds__(cuda::kBlock, 4)
    kernel_tasks(GridBackward<E> p, Cut cut, BackwardMemory<E> memory, int64_t first, int64_t last, int64_t tasks) {
  const int64_t parts = blocks_of_tasks(tasks), g = blockIdx.x / parts, groups = cut.groups.count;
  for (int64_t i = first + (g - first % groups + groups) % groups; i < last; i += groups) {
    const BackwardUnit<E> u = unit_at(p, cut, memory, first, i - first);
    sum_kernel(u, task_of_warp(parts), static_cast<int>(tasks), u.channel.b % cut.chunk == 0);
  }
}

/// The chunks' sums of the kernel's gradient, [chunks][size][d], in their order, in the place of the first. One thread
/// an element and channel.
template <typename T>
__global__ void fold_chunks(T* kernel, int64_t chunks, int64_t size) {
  const int64_t i = cuda::thread_index();
  if (i >= size) return;
  cuda::Compensated<T> sum = {kernel[i], T(0)};
#pragma unroll 4
  for (int64_t chunk = 1; chunk < chunks; ++chunk) sum.add(kernel[chunk * size + i], T(1));
  kernel[i] = sum.sum;
}

/// The kernel's gradient: sums over the channels of a head. One thread an element.
template <typename T>
__global__ void write_kernel(Cut cut, const T* kernel, T* grad_kernel) {
  const int64_t i = cuda::thread_index(), size = cut.shape.kernel, corner = (size - 1) / 2;
  if (i >= cut.shape.heads * size * size) return;
  const int64_t iy = i / size % size - corner + cut.reach.y, ix = i % size - corner + cut.reach.x;
  cuda::Compensated<T> sum = {};
  if (kernel != nullptr && iy >= 0 && iy < cut.reach.rows() && ix >= 0 && ix < cut.reach.columns()) {
    const int64_t width = cut.groups.head_width;
    const T* from = kernel + (iy * cut.reach.columns() + ix) * cut.shape.channels + i / size / size * width;
#pragma unroll 8
    for (int64_t c = 0; c < width; ++c) sum.add(from[c], T(1));
  }
  grad_kernel[i] = sum.sum;
}

/// dk of heads that are wider than a group: sums over their groups. One thread a position and head.
template <typename E>
__global__ void write_keys(Cut cut, const Accumulate<E>* keys, Rows<E> grad_k) {
  const int64_t i = cuda::thread_index(), heads = cut.shape.heads, time = cut.shape.time();
  if (i >= cut.shape.batch * time * heads) return;
  const int64_t head = i % heads, t = i / heads % time, b = i / heads / time;
  Accumulate<E> sum = 0;
  for (int64_t part = 0; part < cut.groups.parts; ++part) sum += keys[i * cut.groups.parts + part];
  grad_k.data[b * grad_k.batch_stride + t * grad_k.time_stride + head] = cuda::narrow<E>(sum);
}

template <typename E, int R>
void run(const GridBackward<E>& p, const Cut& cut, const BackwardMemory<E>& memory, const Cuda& cuda) {
  using T = Accumulate<E>;
  constexpr const char* kName = "grid_backward";
  constexpr int kThreads = kWarps * kLanes;
  const auto counters = reinterpret_cast<Counter*>(cuda.redone);
  const bool redo = redo_enabled();
  const int64_t bytes = Unit<T>::size(cut, true) * static_cast<int64_t>(sizeof(Two<T>));
  if (bytes <= cuda::most_shared_memory(kName)) {
    cuda::launch_with_memory(cuda, kName, cut.groups.count * cut.chunks(), kThreads, bytes, backward_units<E, R>, p,
                             cut, memory, redo, counters);
    return;
  }
  const int64_t kernel_parts = cut.reach.rows() * ((cut.reach.columns() + kElements - 1) / kElements);
  for (int64_t first = 0; first < cut.units(); first += memory.wave) {
    const int64_t last = std::min(first + memory.wave, cut.units()), units = last - first;
    const int64_t task_blocks = units * blocks_of_tasks(cut.tasks());
    cuda::launch_blocks(cuda, kName, units, kThreads, prepare_units<E, R>, p, cut, memory, first);
    cuda::launch_blocks(cuda, kName, task_blocks, cuda::kBlock, target_tasks<E, R>, p, cut, memory, first, redo);
    cuda::launch_blocks(cuda, kName, units, kThreads, prepare_targets<E, R>, p, cut, memory, first, counters);
    cuda::launch_blocks(cuda, kName, task_blocks, cuda::kBlock, source_tasks<E, R>, p, cut, memory, first);
    if (p.grad_kernel == nullptr) continue;
    cuda::launch_blocks(cuda, kName, cut.groups.count * blocks_of_tasks(kernel_parts), cuda::kBlock, kernel_tasks<E>, p,
                        cut, memory, first, last, kernel_parts);
  }
}

template <typename E>
void backward(const GridBackward<E>& p, const Cuda& cuda) {
  using T = Accumulate<E>;
  constexpr const char* kName = "grid_backward";
  const GridShape& s = p.in.shape;
  const Cut cut = Cut::of<E>(s);
  cuda::Workspace workspace(cuda.workspace);
  const BackwardMemory<E> memory(cut, workspace);
  const bool any = cut.units() * cut.tasks() > 0;
  if (any) {
    cuda::launch_blocks(cuda, kName, cut.groups.count, kWarps * kLanes, prepare_weights<E>, p.in, cut, memory);
    with_targets(cut, [&]<int R>(std::integral_constant<int, R>) { run<E, R>(p, cut, memory, cuda); });
    if (cut.groups.parts > 0) {
      cuda::launch(cuda, kName, s.batch * s.time() * s.heads, write_keys<E>, cut, memory.keys, p.grad_k);
    }
  }
  if (p.grad_kernel == nullptr) return;
  const int64_t size = cut.reach.size() * s.channels;
  if (any) cuda::launch(cuda, kName, size, fold_chunks<T>, memory.kernel, cut.chunks(), size);
  cuda::launch(cuda, kName, s.heads * s.kernel * s.kernel, write_kernel<T>, cut, any ? memory.kernel : nullptr,
               p.grad_kernel);
}

}  // namespace
}  // namespace grid

template <typename E>
void grid_backward(const GridBackward<E>& p, const Cuda& cuda) {
  grid::check_sizes(p);
  grid::backward(p, cuda);
}

#define AFT_INSTANTIATE(E) template void grid_backward<E>(const GridBackward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

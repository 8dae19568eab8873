// Forward of the grid operator on a CUDA device. Cost and layout: README.md.

#include <cstdint>

#include "aft/ops/grid.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/grid/check.h"
#include "ops/grid/cuda_unit.cuh"

namespace aft::ops {
namespace grid {
namespace {

/// The targets of a unit: tasks first, first + step, ... of this warp, a block of R of them each. What fails is done
/// again afterwards.
template <int R, typename E>
__device__ void write_targets(const GridForward<E>& p, const Cut& cut, const ForwardMemory<E>& memory, int64_t b,
                              int64_t g, const Unit<Accumulate<E>>& unit, int first, int step, bool redo,
                              Counter* counters) {
  using T = Accumulate<E>;
  const int width = static_cast<int>(cut.shape.width), blocks = static_cast<int>(cut.blocks);
  const int tasks = static_cast<int>(cut.tasks());
  const Channel<E> channel(p.in, cut, b, g);
  const Gate gate = cut.shape.gate;
  const auto query = [&](int t) { return gate == Gate::kNone ? T(0) : T(cuda::widen(*channel.at(p.in.q, t))); };
  const auto write = [&](const Scales<T>& scales, int t, T q, T den, T num) {
    const T out = cuda::gated_ratio(gate, q, num, den) * cuda::pow2(scales.x);
    if (channel.active) *channel.at(p.y, t) = cuda::narrow<E>(out);
  };
  bool any = false;
  for (int task = first; task < tasks; task += step) {
    const int y = task / blocks, i = task % blocks;
    const RowSums<R, T> sums = block_sums<R, 1>(cut, unit, unit.sources, Weights<T>(memory, cut, g), y, i);
    const int begin = y * width + i * R, end = y * width + min(width, (i + 1) * R);
    const Scales<T> scales(unit);
    T q = query(begin);  // the next row of q is loaded while one is done
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int t = begin + r;
      if (t >= end) break;
      const T q_here = q;
      if (t + 1 < end) q = query(t + 1);
      write(scales, t, q_here, sums.first[r], sums.second[r]);
      const uint32_t failed = __ballot_sync(0xffffffffu, scales.failed(sums.first[r]) && channel.active);
      if (lane_of_thread() == 0) unit.failed[t] = failed;
      any |= failed != 0;
    }
  }
  if (!any || !redo) return;
  __syncwarp();
  const Scales<T> scales(unit);
  int64_t redone = 0;
  for (int task = first; task < tasks; task += step) {
    const int y = task / blocks, i = task % blocks;
    for (int t = y * width + i * R, end = y * width + min(width, (i + 1) * R); t < end; ++t) {
      if ((unit.failed[t] >> lane_of_thread()) % 2 == 0) continue;
      const ExactRow<T> exact = exact_row(channel, cut, p.in.kernel, scales, t);
      write(scales, t, query(t), exact.den, exact.num);
      ++redone;
    }
  }
  count(counters, redone, 0);
}

/// A block a unit, in shared memory.
template <typename E, int R>
__global__ void __launch_bounds__(kWarps* kLanes, kResident<E>)
    forward_units(GridForward<E> p, Cut cut, ForwardMemory<E> memory, bool redo, Counter* counters) {
  using T = Accumulate<E>;
  // Blocks that run together have the same weights.
  const int64_t g = blockIdx.x / cut.shape.batch, b = blockIdx.x % cut.shape.batch;
  const Unit<T> unit(cuda::shared_memory<Two<T>>(), cut, false);
  prepare_sources<E, false>(Channel<E>(p.in, cut, b, g), {}, cut, unit);
  sum_outside<R>(cut, unit, unit.sources);
  write_targets<R>(p, cut, memory, b, g, unit, warp_of_thread(), kWarps, redo, counters);
  if (threadIdx.x == 0) count(counters, 0, cut.shape.time() * cut.groups.size(g));
}

/// Units [first, ...) in the workspace, in two launches: a block a unit, then a warp a block of targets.
template <typename E, int R>
__global__ void __launch_bounds__(kWarps* kLanes, kResident<E>)
    prepare_units(GridForward<E> p, Cut cut, ForwardMemory<E> memory, int64_t first, Counter* counters) {
  using T = Accumulate<E>;
  const int64_t u = first + blockIdx.x, g = u % cut.groups.count;
  const Unit<T> unit(memory.units + blockIdx.x * Unit<T>::size(cut, false), cut, false);
  prepare_sources<E, false>(Channel<E>(p.in, cut, u / cut.groups.count, g), {}, cut, unit);
  sum_outside<R>(cut, unit, unit.sources);
  if (threadIdx.x == 0) count(counters, 0, cut.shape.time() * cut.groups.size(g));
}

template <typename E, int R>
__global__ void __launch_bounds__(cuda::kBlock, 4)
    forward_tasks(GridForward<E> p, Cut cut, ForwardMemory<E> memory, int64_t first, bool redo, Counter* counters) {
  using T = Accumulate<E>;
  const int64_t parts = blocks_of_tasks(cut.tasks()), slot = blockIdx.x / parts;
  const int64_t u = first + slot, g = u % cut.groups.count;
  const Unit<T> unit(memory.units + slot * Unit<T>::size(cut, false), cut, false);
  const int task = static_cast<int>(blockIdx.x % parts) * (cuda::kBlock / kLanes) + warp_of_thread();
  write_targets<R>(p, cut, memory, u / cut.groups.count, g, unit, task, static_cast<int>(cut.tasks()), redo, counters);
}

template <typename E>
void forward(const GridForward<E>& p, const Cuda& cuda) {
  using T = Accumulate<E>;
  constexpr const char* kName = "grid_forward";
  constexpr int kThreads = kWarps * kLanes;
  const Cut cut = Cut::of<E>(p.in.shape);
  if (cut.units() * cut.tasks() == 0) return;
  cuda::Workspace workspace(cuda.workspace);
  const ForwardMemory<E> memory(cut, workspace);
  const auto counters = reinterpret_cast<Counter*>(cuda.redone);
  const bool redo = redo_enabled();
  cuda::launch_blocks(cuda, kName, cut.groups.count, kThreads, prepare_weights<E>, p.in, cut, memory);
  with_targets(cut, [&]<int R>(std::integral_constant<int, R>) {
    const int64_t bytes = Unit<T>::size(cut, false) * static_cast<int64_t>(sizeof(Two<T>));
    if (bytes <= cuda::most_shared_memory(kName)) {
      cuda::launch_with_memory(cuda, kName, cut.units(), kThreads, bytes, forward_units<E, R>, p, cut, memory, redo,
                               counters);
      return;
    }
    for (int64_t first = 0; first < cut.units(); first += memory.wave) {
      const int64_t units = std::min(memory.wave, cut.units() - first);
      cuda::launch_blocks(cuda, kName, units, kThreads, prepare_units<E, R>, p, cut, memory, first, counters);
      cuda::launch_blocks(cuda, kName, units * blocks_of_tasks(cut.tasks()), cuda::kBlock, forward_tasks<E, R>, p, cut,
                          memory, first, redo, counters);
    }
  });
}

}  // namespace
}  // namespace grid

template <typename E>
int64_t grid_workspace(const GridShape& s, Pass pass) {
  cuda::Workspace workspace(nullptr);
  const grid::Cut cut = grid::Cut::of<E>(s);
  if (pass == Pass::kForward) grid::ForwardMemory<E>(cut, workspace);
  if (pass == Pass::kBackward) grid::BackwardMemory<E>(cut, workspace);
  return workspace.bytes();
}

template <typename E>
void grid_forward(const GridForward<E>& p, const Cuda& cuda) {
  grid::check_sizes(p);
  grid::forward(p, cuda);
}

#define AFT_INSTANTIATE(E)                                    \
  template int64_t grid_workspace<E>(const GridShape&, Pass); \
  template void grid_forward<E>(const GridForward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

// W, the largest exponent of each target's weights over the sources it sees. Included by kernels inside foreach_target.

#if defined(AFT_OPS_FULL_EXPONENTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_EXPONENTS_INL_H_
#undef AFT_OPS_FULL_EXPONENTS_INL_H_
#else
#define AFT_OPS_FULL_EXPONENTS_INL_H_
#endif

#include <algorithm>
#include <utility>
#include <vector>

#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

template <class D, typename T = hn::TFromD<D>>
void FindExponents(D /*d*/, const PairWeights<const T>& weights, const std::vector<WeightSet>& sets, bool causal,
                   T* exponents, const ParallelFor& parallel) {
  // A later chunk of targets sees more.
  std::vector<FullTask> tasks;
  for (int64_t i = 0; i < static_cast<int64_t>(sets.size()); ++i) {
    for (int64_t chunk = 0; chunk < chunks_of(sets[i].rows); ++chunk) {
      tasks.push_back({i, chunk, 0, 0, causal ? static_cast<double>(chunk) + 1 : 1});
    }
  }
  run_tasks(parallel, std::move(tasks), [&](const FullTask& task) {
    const WeightSet& set = sets[task.set];
    Scratch scratch;
    const Tiles<D> tiles(weights, set, causal, scratch);
    const int64_t begin = task.chunk * kChunk;
    const int64_t rows = std::min(kChunk, set.rows - begin);
    T* to = exponents + set.exponents + begin;
    std::fill_n(to, rows, kExponentFloor<T>);
    const int64_t end = causal ? begin + rows : set.columns;
    for (int64_t source = 0; source < end; source += kChunk) {
      tiles.raise_exponents({begin, rows, source, std::min(kChunk, end - source)}, to);
    }
  });
}

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

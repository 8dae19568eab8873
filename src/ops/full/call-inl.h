// What the tasks of a call share: how it is cut up, its sources, W, the largest exponent of each target's weights over
// the sources it sees, and tables of packed entries. Included by kernels inside foreach_target.

#if defined(AFT_OPS_FULL_CALL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_CALL_INL_H_
#undef AFT_OPS_FULL_CALL_INL_H_
#else
#define AFT_OPS_FULL_CALL_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "aft/ops/full.h"
#include "hwy/highway.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/full/entries-inl.h"
#include "ops/full/plan.h"
#include "ops/full/sums-inl.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D, typename E>
class Call {
 public:
  using T = hn::TFromD<D>;

  const FullInputs<E>& in;
  const FullShape& shape;
  const ParallelFor& parallel;
  const Sequences sequences;
  const std::vector<Panel> panels;
  const std::vector<WeightSet> sets;
  const Sources<D, E> sources;

  Call(const FullInputs<E>& inputs, const ParallelFor& parallel_for, Scratch& workspace)
      : in(inputs),
        shape(inputs.shape),
        parallel(parallel_for),
        sequences(sequences_of(inputs)),
        panels(panels_of(inputs.shape, hn::MaxLanes(D()))),
        sets(weight_sets(inputs.shape, inputs.weights, sequences, panels)),
        sources(inputs),
        exponents(workspace.take<T>(sets.empty() ? 0 : sets.back().exponents + sets.back().targets)) {
    find_exponents();
  }

  // W of every target of a set.
  const T* exponents_of(const WeightSet& set) const { return exponents + set.exponents; }
  // Sets come batch row by batch row, these of each.
  int64_t heads_of_sets() const { return sets.front().panels.end == std::ssize(panels) ? 1 : shape.heads; }
  const WeightSet& set_of(const ColumnIndex& column) const {
    const int64_t batch = sets.front().sequences.end == shape.batch ? 0 : column.sequence;
    const int64_t head = heads_of_sets() == 1 ? 0 : panels[column.panel].head;
    return sets[batch * heads_of_sets() + head];
  }

 private:
  void find_exponents() const {
    // A later chunk of targets sees more.
    std::vector<FullTask> tasks;
    for (int64_t i = 0; i < std::ssize(sets); ++i) {
      for (int64_t chunk = 0; chunk < chunks_of(sets[i].targets); ++chunk) {
        tasks.push_back({i, chunk, {}, shape.causal ? static_cast<double>(chunk) + 1 : 1});
      }
    }
    run_tasks(parallel, std::move(tasks), [&](const FullTask& task) {
      const WeightSet& set = sets[task.set];
      Scratch scratch;
      const Tiles<D> tiles(in.weights, set, shape.causal, scratch);
      const Range targets = within_chunk({0, set.targets}, task.chunk);
      T* to = exponents + set.exponents + targets.begin;
      std::fill_n(to, targets.size(), kExponentFloor<T>);
      const Range seen = {0, shape.causal ? targets.end : set.sources};
      for (int64_t chunk = 0; chunk < chunks_of(seen.end); ++chunk) {
        tiles.raise_exponents({targets, within_chunk(seen, chunk)}, to);
      }
    });
  }

  T* const exponents;  // [targets of all sets]
};

// Packed entries of every panel and every target, or source, of all sequences; their scales, chunk by chunk.
template <class D, Axis kAxis>
class EntryTable {
 public:
  using T = hn::TFromD<D>;

  EntryTable(const Sequences& sequences, int64_t panels, Scratch& workspace)
      : all_rows(kAxis == Axis::kTargets ? sequences.target_rows : sequences.source_rows),
        all_chunks(kAxis == Axis::kTargets ? sequences.target_chunks : sequences.source_chunks),
        // A block of rows on the diagonal may take entries past the last.
        entries(panels * all_rows + kRowBlock, workspace),
        scales(panels * all_chunks * kScaleSize, workspace) {}

  // Entries of a sequence from a position on.
  Pairs<D> from(const Sequence& x, int64_t panel, int64_t position) const {
    const int64_t row = kAxis == Axis::kTargets ? x.target_rows + position - x.first : x.source_rows + position;
    return entries.from(panel * all_rows + row);
  }
  Pairs<D> scale(const Sequence& x, int64_t panel, int64_t chunk) const {
    const int64_t before = kAxis == Axis::kTargets ? x.target_chunks : x.source_chunks;
    return scales.from((panel * all_chunks + before + chunk) * kScaleSize);
  }
  EntryChunk<D> chunk(const Sequence& x, int64_t panel, int64_t chunk) const {
    const Range positions = kAxis == Axis::kTargets ? x.targets_in(chunk) : x.sources_in(chunk);
    return {from(x, panel, positions.begin), scale(x, panel, chunk), positions.relative_to(chunk * kChunk)};
  }

 private:
  const int64_t all_rows, all_chunks;
  const Pairs<D> entries;  // [panels][all_rows]
  const Pairs<D> scales;   // [panels][all_chunks][kScaleSize]
};

// A chunk of a sequence's sources, as entries of a panel.
template <class D, typename E>
void PackSources(const Call<D, E>& call, const EntryTable<D, Axis::kSources>& entries, const Sequence& x, int64_t panel,
                 int64_t chunk) {
  const Range sources = x.sources_in(chunk);
  call.sources.pack(x, call.panels[panel], sources.begin, sources.size(), entries.from(x, panel, sources.begin).data,
                    entries.scale(x, panel, chunk).data);
}

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

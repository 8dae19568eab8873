#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <vector>

#include "aft/ops/full.h"

// How the dense operator is cut up. Sums run over chunks of kChunk positions in order, whatever the machine; tasks are
// pieces of targets and columns that never meet.

namespace aft::ops::full {

/// Positions of a chunk: a tile of weights, kChunk^2, stays in the second-level cache while all columns pass it, and a
/// chunk of a column in the first. Divisible by every kRowBlock and twice every vector.
constexpr int64_t kChunk = 192;

inline int64_t chunks_of(int64_t positions) { return (positions + kChunk - 1) / kChunk; }

/// [begin, end) of positions, rows, panels or whatever is counted.
struct Range {
  int64_t begin = 0, end = 0;

  int64_t size() const { return end - begin; }
  bool empty() const { return begin >= end; }
  Range relative_to(int64_t origin) const { return {begin - origin, end - origin}; }
};

/// Positions of a chunk that lie within `all`.
inline Range within_chunk(Range all, int64_t chunk) {
  return {std::max(all.begin, chunk * kChunk), std::min(all.end, (chunk + 1) * kChunk)};
}

/// One batch row, or one packed sequence, in absolute positions.
struct Sequence {
  int64_t batch = 0;        // index of its state, mask and batch stride
  int64_t token = 0;        // first row within the tensors' time axis
  int64_t first = 0;        // position of its first target; sources before it lie in the ring of the state
  int64_t targets = 0;      // rows
  int64_t sources = 0;      // positions [0, sources) are seen; first + targets if causal
  int64_t target_rows = 0;  // where its targets begin among those of all sequences
  int64_t source_rows = 0;  // the same for its sources, the ring's included
  int64_t target_chunks = 0;
  int64_t source_chunks = 0;

  int64_t end() const { return first + targets; }
  Range targets_in(int64_t chunk) const { return within_chunk({first, end()}, chunk); }
  Range sources_in(int64_t chunk) const { return within_chunk({0, sources}, chunk); }
  /// Chunks that hold a target.
  Range chunks_of_targets() const { return targets == 0 ? Range{} : Range{first / kChunk, chunks_of(end())}; }
};

/// Sequences of a call, and the sums of their rows and chunks.
struct Sequences {
  std::vector<Sequence> all;
  int64_t target_rows = 0, source_rows = 0, target_chunks = 0, source_chunks = 0;
};

template <typename E>
Sequences sequences_of(const FullInputs<E>& in) {
  Sequences result;
  const FullShape& s = in.shape;
  for (int64_t b = 0; b < s.batch; ++b) {
    Sequence x;
    x.batch = b;
    x.targets = s.targets;
    x.sources = s.sources;
    if (s.packed) {
      x.batch = 0;
      x.token = in.cu_seqlens[b];
      x.targets = x.sources = in.cu_seqlens[b + 1] - in.cu_seqlens[b];
    }
    if (in.initial_state.position != nullptr) x.first = in.initial_state.position[b];
    if (s.causal) x.sources = x.end();
    x.target_rows = result.target_rows;
    x.source_rows = result.source_rows;
    x.target_chunks = result.target_chunks;
    x.source_chunks = result.source_chunks;
    result.target_rows += x.targets;
    result.source_rows += x.sources;
    result.target_chunks += chunks_of(x.end());
    result.source_chunks += chunks_of(x.sources);
    result.all.push_back(x);
  }
  return result;
}

/// A vector of channels of one head.
struct Panel {
  int64_t head = 0, begin = 0, count = 0;
  bool last_of_head = false;
};

inline std::vector<Panel> panels_of(const FullShape& s, int64_t lanes) {
  std::vector<Panel> panels;
  const int64_t width = s.channels / s.heads;
  if (width == 0) return panels;
  for (int64_t h = 0; h < s.heads; ++h) {
    for (int64_t c = 0; c < width; c += lanes) {
      panels.push_back({h, h * width + c, std::min(lanes, width - c), c + lanes >= width});
    }
  }
  return panels;
}

/// Positions count targets or sources: a forward's tasks are cut by targets, a backward's by sources.
enum class Axis { kTargets, kSources };

/// A column of the product of weights and entries: a vector of channels of a sequence.
struct ColumnIndex {
  int64_t sequence = 0, panel = 0;
};

/// What a matrix of weights serves.
struct WeightSet {
  int64_t batch = 0, head = 0;  // its index in PairWeights
  Range sequences = {}, panels = {};
  int64_t targets = 0;    // of its longest sequence, those in the ring included
  int64_t sources = 0;    // the same
  int64_t exponents = 0;  // where the exponents of its targets begin among those of all sets

  int64_t columns() const { return sequences.size() * panels.size(); }
  ColumnIndex column(int64_t i) const {
    return {sequences.begin + i / panels.size(), panels.begin + i % panels.size()};
  }
  int64_t positions(Axis axis) const { return axis == Axis::kTargets ? targets : sources; }
};

/// Without causal, sequences of different lengths see different sources of a row and do not share its exponent.
template <typename T>
std::vector<WeightSet> weight_sets(const FullShape& s, const PairWeights<T>& w, const Sequences& sequences,
                                   const std::vector<Panel>& panels) {
  std::vector<WeightSet> sets;
  const bool factors = w.u != nullptr;
  const bool per_batch = s.batch > 0 && ((!factors && w.batch_stride != 0) || (s.packed && !s.causal));
  const bool per_head = factors ? w.u_head_stride != 0 : w.head_stride != 0;
  const int64_t panels_of_head = static_cast<int64_t>(panels.size()) / s.heads;
  int64_t exponents = 0;
  for (int64_t b = 0; b < (per_batch ? s.batch : 1); ++b) {
    for (int64_t h = 0; h < (per_head ? s.heads : 1); ++h) {
      WeightSet set;
      set.batch = s.packed ? 0 : b;
      set.head = h;
      set.sequences = per_batch ? Range{b, b + 1} : Range{0, s.batch};
      set.panels = per_head ? Range{h * panels_of_head, (h + 1) * panels_of_head} : Range{0, std::ssize(panels)};
      for (int64_t i = set.sequences.begin; i < set.sequences.end; ++i) {
        set.targets = std::max(set.targets, sequences.all[i].end());
        set.sources = std::max(set.sources, sequences.all[i].sources);
      }
      set.exponents = exponents;
      exponents += set.targets;
      sets.push_back(set);
    }
  }
  return sets;
}

/// A chunk of targets or of sources of a set, and a range of its columns: sequence by sequence, panel by panel.
struct FullTask {
  int64_t set = 0, chunk = 0;
  Range columns;
  double cost = 0;
};

/// Runs body(task) for all, the dearest first: a thread that is done takes the next.
template <typename Body>
void run_tasks(const ParallelFor& parallel, std::vector<FullTask> tasks, const Body& body) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const auto& a, const auto& b) { return a.cost > b.cost; });
  std::atomic<size_t> next{0};
  const auto count = static_cast<int64_t>(tasks.size());
  parallel.run(std::min(std::max<int64_t>(1, parallel.threads), count), [&](int64_t) {
    for (size_t i = next.fetch_add(1); i < tasks.size(); i = next.fetch_add(1)) body(tasks[i]);
  });
}

/// Columns of a task. Weights are formed anew for each of a chunk's tasks, so there are more than one only if threads
/// would idle; a head stays together where its channels share a key.
inline int64_t columns_per_task(const WeightSet& set, const FullShape& s, int64_t chunks, int64_t threads) {
  constexpr int64_t kTasksPerThread = 8;
  constexpr int64_t kFewest = 16, kMost = 64;
  const int64_t columns = set.columns();
  const int64_t pieces = threads == 1 ? 1 : kTasksPerThread * threads / std::max<int64_t>(1, chunks) + 1;
  const int64_t wanted = std::clamp((columns + pieces - 1) / pieces, kFewest, kMost);
  const int64_t unit = s.key_channels == s.channels ? 1 : std::max<int64_t>(1, set.panels.size());
  return (wanted + unit - 1) / unit * unit;
}

/// The tasks of all sets: every chunk of targets, or of sources, with all columns. Causal, a chunk of targets takes the
/// chunks of sources before it, one of sources the chunks of targets after it; its own costs less than another.
inline std::vector<FullTask> column_tasks(const std::vector<WeightSet>& sets, const FullShape& s, int64_t threads,
                                          Axis axis) {
  constexpr double kOwnChunk = 0.7;
  std::vector<FullTask> tasks;
  for (int64_t i = 0; i < std::ssize(sets); ++i) {
    const WeightSet& set = sets[i];
    const int64_t chunks = chunks_of(set.positions(axis));
    const int64_t step = columns_per_task(set, s, chunks, threads);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t others = axis == Axis::kTargets ? chunk : chunks - 1 - chunk;
      const double products = s.causal ? static_cast<double>(others) + kOwnChunk : 1;
      const auto rows = static_cast<double>(within_chunk({0, set.positions(axis)}, chunk).size());
      for (int64_t c = 0; c < set.columns(); c += step) {
        const Range columns = {c, std::min(c + step, set.columns())};
        tasks.push_back({i, chunk, columns, products * rows * static_cast<double>(columns.size() + 1)});
      }
    }
  }
  return tasks;
}

}  // namespace aft::ops::full

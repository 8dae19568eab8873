// The gradient of the dense operator's weights, the matrix or its factors: a product over channels,
//   dw[t,s] = e^w sum_c ( (g / D)[t] (e^k v)[s] - (g N / D^2)[t] (e^k)[s] ),   g = gy gate.
// Included by kernels inside foreach_target.

#if defined(AFT_OPS_FULL_WEIGHT_GRADIENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_WEIGHT_GRADIENT_INL_H_
#undef AFT_OPS_FULL_WEIGHT_GRADIENT_INL_H_
#else
#define AFT_OPS_FULL_WEIGHT_GRADIENT_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "aft/ops/full.h"
#include "hwy/highway.h"
#include "ops/common/exp-inl.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/full/backward_entries-inl.h"
#include "ops/full/dense-inl.h"
#include "ops/full/plan.h"
#include "ops/full/sums-inl.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Columns whose products with one another are summed at a time: panels of a sequence.
struct Group {
  const Sequence* x;
  Range panels;
};

// What some groups of columns add to the gradient of a set's weights, for one chunk of sources.
template <class D, typename E>
class GroupsGradient {
  using Entries = BackwardEntries<D, E>;
  using T = typename Entries::T;
  using V = typename Entries::V;
  using Exact = typename Entries::Exact;
  using Target = typename Entries::Target;
  static constexpr int64_t kLanes = Entries::kLanes;
  static constexpr int64_t kVectors = 2 * kLanes;
  static constexpr int64_t kSpans = kChunk / kVectors;  // of sources that fill two vectors

 public:
  // Panels of a group: kChunk of e^k, e^k v, or of g N / D^2, g / D, over all their channels.
  static constexpr int64_t kPanels = kChunk / kVectors;

  // factor_sums: [targets of the set][whole pairs of vectors of the factors' width], du; null: not wanted.
  GroupsGradient(const Entries& backward_entries, const WeightSet& weight_set, int64_t source_chunk,
                 const std::vector<Group>& columns, Matrix<T> factor_sums)
      : entries(backward_entries),
        set(weight_set),
        chunk_of_sources(source_chunk),
        sources(within_chunk({0, set.sources}, source_chunk)),
        groups(columns),
        grad_u(factor_sums),
        tiles(p.in.weights, set, shape.causal, scratch),
        left{scratch.take<T>(kTileSize)},
        product{scratch.take<T>(kTileSize), kChunk},
        right(std::ssize(groups) * kSpans * kChunk, scratch),
        factor(kChunk, scratch),
        block(kRowBlock, scratch),
        exact(scratch.take<Exact>(kChunk)),
        weights(scratch.take<T>(kChunk + kVectors)) {}

  void run() const {
    int64_t targets_end = 0;  // of the groups: later targets of the set are none of theirs
    for (const Group& g : groups) targets_end = std::max(targets_end, g.x->end());
    for (size_t i = 0; i < groups.size(); ++i) transpose_sources(i);
    for (int64_t chunk = shape.causal ? chunk_of_sources : 0; chunk < chunks_of(targets_end); ++chunk) {
      add_tile({within_chunk({0, targets_end}, chunk), sources}, chunk);
    }
  }

 private:
  // Sources of a span of group i, transposed: [channels of e^k, e^k v][2 vectors of sources].
  Pairs<D> span_of(size_t i, int64_t span) const {
    return right.from((static_cast<int64_t>(i) * kSpans + span) * kChunk);
  }
  Range own_sources(const Group& g) const { return g.x->sources_in(chunk_of_sources); }

  void transpose_sources(size_t i) const {
    const Group& g = groups[i];
    const Range own = own_sources(g);
    for (int64_t span = 0; span * kVectors < own.size(); ++span) {
      const int64_t n = std::min(kVectors, own.size() - span * kVectors);
      T* to = span_of(i, span).data;
      for (int64_t panel = g.panels.begin; panel < g.panels.end; ++panel) {
        const T* from = entries.source_entries.from(*g.x, panel, own.begin + span * kVectors).data;
        for (int64_t k = 0; k < kVectors; ++k, to += kVectors) {
          for (int64_t s = 0; s < n; ++s) to[s] = from[s * kVectors + k];
          for (int64_t s = n; s < kVectors; ++s) to[s] = T(0);
        }
      }
    }
  }

  // One chunk of targets.
  void add_tile(const TileRange& at, int64_t chunk) const {
    const T scale = largest_scale(chunk);
    std::fill_n(product.data, whole_row_blocks(at.targets.size()) * kChunk, T(0));
    for (size_t i = 0; i < groups.size(); ++i) add_product(i, chunk, scale);
    weigh(at, scale);
    for (const Group& g : groups) add_pairs(g, chunk);
    if (p.in.weights.u == nullptr) {
      add_to_table(at);
    } else {
      add_to_factors(at);
    }
  }

  // Exponents of the products g / D times e^k v and g N / D^2 times e^k, of a panel's channels over a tile. Channels
  // that some target of the chunk saw under a much lower exponent than the keys were packed with (only along the
  // diagonal) take no part: add_pairs does them.
  struct Scales {
    V values, keys;
    hn::Mask<D> apart;
  };
  HWY_INLINE Scales scales(const Sequence& x, int64_t panel, int64_t chunk) const {
    const D d;
    const Pairs<D> target = entries.targets.scale(x, panel, chunk);
    const Pairs<D> source = entries.source_entries.scale(x, panel, chunk_of_sources);
    const V key_exponent = hn::Load(d, source.at(kMost, 0));
    const V reach = entries.reach(x, panel, chunk);
    return {hn::Add(hn::Load(d, target.at(kMost, 0)), hn::Load(d, source.at(kMost, 1))),
            hn::Add(hn::Load(d, target.at(kMost, 1)), key_exponent),
            hn::Lt(hn::Add(reach, hn::Set(d, kHeadroom<T>)), key_exponent)};
  }

  T largest_scale(int64_t chunk) const {
    const D d;
    V largest = hn::Set(d, kExponentFloor<T>);
    for (const Group& g : groups) {
      if (g.x->targets_in(chunk).empty()) continue;
      for (int64_t panel = g.panels.begin; panel < g.panels.end; ++panel) {
        const Scales s = scales(*g.x, panel, chunk);
        largest = hn::IfThenElse(s.apart, largest, Larger(s.values, Larger(s.keys, largest)));
      }
    }
    return hn::GetLane(hn::MaxOfLanes(d, largest));
  }

  // product += the sum over group i's channels, in units of 2^scale.
  void add_product(size_t i, int64_t chunk, T scale) const {
    const D d;
    const Group& g = groups[i];
    const Range rows = pack_targets(g, chunk, scale);
    for (int64_t span = 0; span * kVectors < own_sources(g).size(); ++span) {
      // Along the diagonal earlier targets see none of the span.
      const int64_t first = shape.causal && chunk == chunk_of_sources ? span * kVectors / kRowBlock * kRowBlock : 0;
      MultiplyRows(d, left, {std::max(rows.begin, first), rows.end}, span_of(i, span), g.panels.size() * kVectors,
                   block, [&](int64_t row, V sum0, V sum1) {
                     const Pairs<D> to(product.row(row) + span * kVectors);
                     hn::Store(hn::Add(hn::Load(d, to.at(0, 0)), sum0), d, to.at(0, 0));
                     hn::Store(hn::Add(hn::Load(d, to.at(0, 1)), sum1), d, to.at(0, 1));
                   });
    }
  }

  // To `left`: rows are targets, k counts channels: (-b 2^.., a 2^..), to meet (e^k, e^k v). The rows, in whole blocks;
  // those that the sequence lacks are 0.
  Range pack_targets(const Group& g, int64_t chunk, T scale) const {
    const D d;
    const V common = hn::Set(d, scale);
    const Range rows = g.x->targets_in(chunk).relative_to(chunk * kChunk);
    if (rows.empty()) return {};
    const Range blocks = {rows.begin / kRowBlock * kRowBlock, whole_row_blocks(rows.end)};
    for (int64_t j = 0; j < g.panels.size(); ++j) {
      const int64_t panel = g.panels.begin + j;
      const Scales s = scales(*g.x, panel, chunk);
      const V by_value = hn::IfThenZeroElse(s.apart, Pow2(d, hn::Sub(s.values, common)));
      const V by_key = hn::IfThenZeroElse(s.apart, hn::Neg(Pow2(d, hn::Sub(s.keys, common))));
      const Pairs<D> from = entries.targets.chunk(*g.x, panel, chunk).entries;
      const auto scaled = [&](int64_t row, int64_t part, V by) {
        return row < rows.begin || row >= rows.end ? hn::Zero(d)
                                                   : hn::Mul(by, hn::Load(d, from.at(row - rows.begin, part)));
      };
      for (int64_t row = blocks.begin; row < blocks.end; row += 2) {
        hn::StoreInterleaved2(scaled(row, 1, by_key), scaled(row + 1, 1, by_key), d, left.at(row, j * kVectors));
        hn::StoreInterleaved2(scaled(row, 0, by_value), scaled(row + 1, 0, by_value), d,
                              left.at(row, j * kVectors + kLanes));
      }
    }
    return blocks;
  }

  // product times e^w, and out of the scales; 0 where a target does not see a source.
  void weigh(const TileRange& at, T scale) const {
    const D d;
    const T* exponents = entries.call.exponents_of(set) + at.targets.begin;
    const Matrix<const T> w = tiles.weights(at);
    for (int64_t i = 0; i < at.targets.size(); ++i) {
      tiles.weights_of_row(at, w, i, exponents[i], weights);
      T* to = product.row(i);
      for (int64_t j = 0; j < at.sources.size(); j += kLanes) {
        const V weight = hn::Load(d, weights + j);
        const V value = ScaleBy(d, hn::Mul(hn::Load(d, to + j), weight), hn::Set(d, scale));
        hn::Store(hn::IfThenZeroElse(hn::Eq(weight, hn::Zero(d)), value), d, to + j);
      }
      std::fill(to + tiles.seen(at, i), to + kChunk, T(0));
    }
  }

  // Adds what the product left out, pair by pair: redone targets, and channels apart.
  void add_pairs(const Group& g, int64_t chunk) const {
    const D d;
    const Range targets = g.x->targets_in(chunk);
    if (targets.empty()) return;
    for (int64_t panel = g.panels.begin; panel < g.panels.end; ++panel) {
      const auto apart = scales(*g.x, panel, chunk).apart;
      if (!entries.has_redone(*g.x, panel, chunk) && hn::AllFalse(d, apart)) continue;
      const auto real = hn::FirstN(d, static_cast<size_t>(panels[panel].count));
      for (int64_t t = targets.begin; t < targets.end; ++t) {
        const Target target = entries.target(*g.x, panels[panel], t);
        const auto wanted = hn::And(real, hn::Or(target.redone, apart));
        if (hn::AllFalse(d, wanted)) continue;
        add_pairs_of_target(g, panel, t, target, wanted, product.row(t - chunk * kChunk));
      }
    }
  }

  void add_pairs_of_target(const Group& g, int64_t panel, int64_t t, const Target& target, hn::Mask<D> wanted,
                           T* to) const {
    const D d;
    Range seen = own_sources(g);
    if (shape.causal) seen.end = std::min(seen.end, t + 1);
    tiles.exact_row(t, seen, exact);
    for (int64_t i = 0; i < seen.size(); ++i) {
      if (exact[i].p == 0) continue;
      const V dk = entries.pair_grad(*g.x, panels[panel], seen.begin + i, exact[i], target).second;
      to[i] += hn::GetLane(hn::SumOfLanes(d, hn::IfThenElseZero(wanted, dk)));
    }
  }

  void add_to_table(const TileRange& at) const {
    const PairWeights<T>& g = p.grad_weights;
    const Matrix<T> to = {g.table + set.batch * g.batch_stride + set.head * g.head_stride + at.sources.begin,
                          g.row_stride};
    for (int64_t i = 0; i < at.targets.size(); ++i) {
      T* row = to.row(at.targets.begin + i);
      // Packed sequences that see different sources share the matrix, but not a set.
      for (int64_t j = 0; j < tiles.seen(at, i); ++j) row[j] += product.row(i)[j];
    }
  }

  // du += dw v, dv += dw^T u.
  void add_to_factors(const TileRange& at) const {
    const PairWeights<const T>& w = p.in.weights;
    const Matrix<const T> u = {w.u + set.head * w.u_head_stride + at.targets.begin * w.width, w.width};
    const Matrix<const T> v = {w.v + set.head * w.v_head_stride + at.sources.begin * w.width, w.width};
    const int64_t targets = at.targets.size();
    const int64_t count = at.sources.size();
    if (p.grad_weights.u != nullptr) {
      PackRows(left, targets, count, [&](int64_t i, int64_t k) { return product.row(i)[k]; });
      add_factor(targets, count, v, {grad_u.row(at.targets.begin), grad_u.stride});
    }
    if (p.grad_weights.v != nullptr) {
      T* grad_v = p.grad_weights.v + set.head * p.grad_weights.v_head_stride + at.sources.begin * w.width;
      PackRows(left, count, targets, [&](int64_t i, int64_t k) { return product.row(k)[i]; });
      add_factor(count, targets, u, {grad_v, w.width});
    }
  }

  // to [rows][width] += left [rows][depth] times other [depth][width].
  void add_factor(int64_t rows, int64_t depth, Matrix<const T> other, Matrix<T> to) const {
    const int64_t width = p.in.weights.width;
    for (int64_t c = 0; c < width; c += kVectors) {
      PackColumns(D(), factor, depth, width - c, [&](int64_t k, int64_t l) { return other.row(k)[c + l]; });
      MultiplyRows(D(), left, {0, rows}, factor, depth, block, [&](int64_t row, V sum0, V sum1) {
        HWY_ALIGN T sum[kVectors];
        hn::Store(sum0, D(), sum);
        hn::Store(sum1, D(), sum + kLanes);
        for (int64_t l = 0; l < std::min(kVectors, width - c); ++l) to.row(row)[c + l] += sum[l];
      });
    }
  }

  const Entries& entries;
  const FullBackward<E>& p = entries.p;
  const FullShape& shape = entries.shape;
  const std::vector<Panel>& panels = entries.panels;
  const WeightSet& set;
  const int64_t chunk_of_sources;
  const Range sources;
  const std::vector<Group>& groups;
  const Matrix<T> grad_u;
  Scratch scratch;
  const Tiles<D> tiles;
  const Tile<T> left;
  const Matrix<T> product;  // [targets of a chunk][kChunk]: dw
  const Pairs<D> right;     // [groups][kSpans][kChunk]
  const Pairs<D> factor;    // [kChunk]
  const Pairs<D> block;     // [kRowBlock]
  Exact* const exact;       // [kChunk]
  T* const weights;         // [kChunk], in whole vectors
};

template <class D, typename E>
class WeightGradient {
  using Entries = BackwardEntries<D, E>;
  using T = typename Entries::T;
  static constexpr int64_t kVectors = 2 * Entries::kLanes;

 public:
  explicit WeightGradient(const Entries& backward_entries) : entries(backward_entries) {}

  void run() const {
    std::vector<SharedWeights> all = shared_weights();
    Scratch scratch;
    if (p.grad_weights.u != nullptr) {
      for (SharedWeights& w : all) {
        w.stripes = scratch.take<T>(kStripes * w.stripe_size());
        std::fill_n(w.stripes, kStripes * w.stripe_size(), T(0));
      }
    }
    run_tasks(entries.call.parallel, tasks_of(all),
              [&](const FullTask& task) { sum_chunks(all[task.set], task.chunk); });
    if (p.grad_weights.u == nullptr) return;
    for (const SharedWeights& w : all) add_stripes(w);
  }

 private:
  // Stripes of source chunks that the factors' gradients are summed over, one after another: however many threads.
  static constexpr int64_t kStripes = 8;
  // Groups whose sources lie transposed side by side: memory must not grow with their number.
  static constexpr int64_t kGroupsAtOnce = 32;

  // A matrix of weights, or a pair of factors, and its sets, which are taken one after another (more than one with
  // packed sequences, not causal).
  struct SharedWeights {
    std::vector<const WeightSet*> sets;
    int64_t targets = 0, sources = 0, columns = 0;  // columns of all, the others of the largest set
    int64_t width = 0;                              // of a row of a stripe
    T* stripes = nullptr;                           // [kStripes][targets][width]: du; null: not wanted

    int64_t stripe_size() const { return targets * width; }
    Matrix<T> stripe(int64_t i) const {
      return stripes == nullptr ? Matrix<T>() : Matrix<T>{stripes + i * stripe_size(), width};
    }
  };

  std::vector<SharedWeights> shared_weights() const {
    std::vector<SharedWeights> result;
    for (const WeightSet& set : entries.call.sets) {
      const auto i = static_cast<size_t>(set.batch * entries.call.heads_of_sets() + set.head);
      result.resize(std::max(result.size(), i + 1));
      SharedWeights& w = result[i];
      w.sets.push_back(&set);
      w.targets = std::max(w.targets, set.targets);
      w.sources = std::max(w.sources, set.sources);
      w.columns += set.columns();
      w.width = (p.in.weights.width + kVectors - 1) / kVectors * kVectors;
    }
    return result;
  }

  // By chunks of sources, or by stripes of them.
  std::vector<FullTask> tasks_of(const std::vector<SharedWeights>& all) const {
    std::vector<FullTask> tasks;
    for (int64_t i = 0; i < std::ssize(all); ++i) {
      const int64_t chunks = chunks_of(all[i].sources);
      for (int64_t j = 0; j < (factors ? std::min(chunks, kStripes) : chunks); ++j) {
        const double products = entries.shape.causal && !factors ? static_cast<double>(chunks - j) - 0.4 : 1;
        tasks.push_back({i, j, {}, products * static_cast<double>(all[i].columns + 1)});
      }
    }
    return tasks;
  }

  void sum_chunks(const SharedWeights& w, int64_t first_chunk) const {
    const int64_t step = factors ? kStripes : chunks_of(w.sources);
    for (int64_t chunk = first_chunk; chunk < chunks_of(w.sources); chunk += step) {
      for (const WeightSet* set : w.sets) sum_chunk(*set, chunk, w.stripe(first_chunk));
    }
  }

  void sum_chunk(const WeightSet& set, int64_t chunk, Matrix<T> stripe) const {
    constexpr int64_t kPanels = GroupsGradient<D, E>::kPanels;
    std::vector<Group> groups;
    const auto add = [&] {
      if (!groups.empty()) GroupsGradient<D, E>(entries, set, chunk, groups, stripe).run();
      groups.clear();
    };
    for (int64_t b = set.sequences.begin; b < set.sequences.end; ++b) {
      const Sequence& x = entries.sequences.all[b];
      if (x.sources_in(chunk).empty() || x.targets == 0) continue;
      for (int64_t j = set.panels.begin; j < set.panels.end; j += kPanels) {
        groups.push_back({&x, {j, std::min(j + kPanels, set.panels.end)}});
        if (std::ssize(groups) == kGroupsAtOnce) add();
      }
    }
    add();
  }

  // du: the stripes in order.
  void add_stripes(const SharedWeights& w) const {
    const int64_t width = p.in.weights.width;
    const Matrix<T> to = {p.grad_weights.u + w.sets[0]->head * p.grad_weights.u_head_stride, width};
    for (int64_t i = 0; i < std::min(chunks_of(w.sources), kStripes); ++i) {
      for (int64_t t = 0; t < w.targets; ++t) {
        for (int64_t c = 0; c < width; ++c) to.row(t)[c] += w.stripe(i).row(t)[c];
      }
    }
  }

  const Entries& entries;
  const FullBackward<E>& p = entries.p;
  const bool factors = p.in.weights.u != nullptr;
};

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

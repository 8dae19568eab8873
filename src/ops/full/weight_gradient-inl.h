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
#include "ops/full/backward_entries-inl.h"
#include "ops/full/dense-inl.h"
#include "ops/full/plan.h"
#include "ops/full/tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D, typename E>
class WeightGradient {
  using Entries = BackwardEntries<D, E>;
  using T = typename Entries::T;
  using V = typename Entries::V;
  using Exact = typename Entries::Exact;
  using Target = typename Entries::Target;
  static constexpr int64_t kLanes = Entries::kLanes;
  static constexpr int64_t kVectors = Entries::kVectors;

 public:
  explicit WeightGradient(const Entries& backward_entries) : entries(backward_entries) {}

  void run() const {
    const bool factors = p.in.weights.u != nullptr;
    const int64_t width = p.in.weights.width;
    const int64_t padded = (width + kVectors - 1) / kVectors * kVectors;
    // Sets that share a matrix (packed sequences, not causal) are taken one after another.
    std::vector<std::vector<const WeightSet*>> matrices;
    for (const WeightSet& set : sets) {
      const auto i = static_cast<size_t>(set.batch * entries.heads_of_sets() + set.head);
      matrices.resize(std::max(matrices.size(), i + 1));
      matrices[i].push_back(&set);
    }
    struct Matrix {
      int64_t rows = 0, columns = 0, work = 0, stripes_at = 0;
    };
    std::vector<Matrix> sizes;
    int64_t stripe_size = 0;
    std::vector<FullTask> tasks;
    for (int64_t i = 0; i < static_cast<int64_t>(matrices.size()); ++i) {
      Matrix m;
      for (const WeightSet* set : matrices[i]) {
        m.rows = std::max(m.rows, set->rows);
        m.columns = std::max(m.columns, set->columns);
        m.work += set->columns_of_work();
      }
      m.stripes_at = stripe_size;
      if (factors) stripe_size += kStripes * m.rows * padded;
      sizes.push_back(m);
      const int64_t chunks = chunks_of(m.columns);
      for (int64_t j = 0; j < (factors ? std::min(chunks, kStripes) : chunks); ++j) {
        const double cost = shape.causal && !factors ? static_cast<double>(chunks - j) - 0.4 : 1;
        tasks.push_back({i, j, 0, 0, cost * static_cast<double>(m.work + 1)});
      }
    }
    Scratch scratch;
    T* const stripes = scratch.take<T>(stripe_size);
    std::fill_n(stripes, stripe_size, T(0));
    run_tasks(parallel, std::move(tasks), [&](const FullTask& task) {
      const Matrix& m = sizes[task.set];
      T* stripe = factors ? stripes + m.stripes_at + task.chunk * m.rows * padded : nullptr;
      for (int64_t j = task.chunk; j < chunks_of(m.columns); j += factors ? kStripes : chunks_of(m.columns)) {
        for (const WeightSet* set : matrices[task.set]) weights_task(*set, j, stripe, padded);
      }
    });
    if (!factors || p.grad_weights.u == nullptr) return;
    for (size_t i = 0; i < matrices.size(); ++i) {
      const int64_t used = std::min(chunks_of(sizes[i].columns), kStripes);
      T* to = p.grad_weights.u + matrices[i][0]->head * p.grad_weights.u_head_stride;
      for (int64_t stripe = 0; stripe < used; ++stripe) {
        const T* from = stripes + sizes[i].stripes_at + stripe * sizes[i].rows * padded;
        for (int64_t t = 0; t < sizes[i].rows; ++t) {
          for (int64_t c = 0; c < width; ++c) to[t * width + c] += from[t * padded + c];
        }
      }
    }
  }

 private:
  // Stripes of source chunks that the factors' gradients are summed over, one after another: however many threads.
  static constexpr int64_t kStripes = 8;

  // Panels whose channels are multiplied at a time: kChunk of [a, b] pairs.
  static constexpr int64_t kPanelsAtOnce = kChunk / kVectors;

  struct Group {
    const Sequence* x;
    int64_t first_panel, panels;
  };
  // Groups whose sources lie transposed side by side: memory must not grow with their number.
  static constexpr int64_t kGroupsAtOnce = 32;

  // The weights' gradient of one chunk of sources.
  void weights_task(const WeightSet& set, int64_t source_chunk, T* stripe, int64_t padded) const {
    const int64_t begin = source_chunk * kChunk;
    if (set.columns <= begin) return;
    std::vector<Group> groups;
    for (int64_t b = set.first_sequence; b < set.last_sequence; ++b) {
      if (sequences.all[b].sources <= begin || sequences.all[b].targets == 0) continue;
      for (int64_t j = set.first_panel; j < set.last_panel; j += kPanelsAtOnce) {
        groups.push_back({&sequences.all[b], j, std::min(kPanelsAtOnce, set.last_panel - j)});
        if (std::ssize(groups) < kGroupsAtOnce) continue;
        add_groups(set, source_chunk, groups, stripe, padded);
        groups.clear();
      }
    }
    if (!groups.empty()) add_groups(set, source_chunk, groups, stripe, padded);
  }

  void add_groups(const WeightSet& set, int64_t source_chunk, const std::vector<Group>& groups, T* stripe,
                  int64_t padded) const {
    const D d;
    const int64_t begin = source_chunk * kChunk;
    const int64_t count = std::min(kChunk, set.columns - begin);
    int64_t rows_end = 0;  // of the groups: later rows of the set are none of theirs
    for (const Group& g : groups) rows_end = std::max(rows_end, g.x->end());
    constexpr int64_t kSide = kChunk / kVectors;  // groups of sources that fill two vectors
    Scratch scratch;
    const Tiles<D> tiles(p.in.weights, set, shape.causal, scratch);
    T* left = scratch.take<T>(kTileSize);
    T* product = scratch.take<T>(kTileSize);
    T* right = scratch.take<T>(static_cast<int64_t>(groups.size()) * kTileSize);
    T* block = scratch.take<T>(kRowBlock * kVectors);
    Exact* exact = scratch.take<Exact>(kChunk);
    T* weights = scratch.take<T>(kChunk + kVectors);
    T* factor_room = scratch.take<T>(kChunk * kVectors);
    for (size_t i = 0; i < groups.size(); ++i) {
      transpose_sources(groups[i], source_chunk, right + static_cast<int64_t>(i) * kTileSize);
    }

    for (int64_t chunk = shape.causal ? source_chunk : 0; chunk < chunks_of(rows_end); ++chunk) {
      const int64_t row = chunk * kChunk;
      const TileRange at = {row, std::min(kChunk, rows_end - row), begin, count};
      const T scale = largest_scale(groups, chunk, source_chunk);
      std::fill_n(product, whole_row_blocks(at.rows) * kChunk, T(0));
      for (size_t i = 0; i < groups.size(); ++i) {
        const Group& g = groups[i];
        const auto [low, high] = entries.rows_of(*g.x, chunk);
        if (low >= high) continue;
        // Rows in whole blocks; those that the sequence lacks are zero.
        const int64_t first = (low - row) / kRowBlock * kRowBlock;
        pack_left(g, chunk, source_chunk, scale, first, whole_row_blocks(high - row), left);
        const T* from = right + static_cast<int64_t>(i) * kTileSize;
        const int64_t own = std::min(count, g.x->sources - begin);
        for (int64_t side = 0; side < kSide && side * kVectors < own; ++side) {
          for (int64_t r = first; r < high - row; r += kRowBlock) {
            if (shape.causal && chunk == source_chunk && side * kVectors >= r + kRowBlock) continue;
            Multiply(d, left + r / 2 * kPairStride, from + side * kChunk * kVectors, g.panels * kVectors, block);
            for (int64_t k = 0; k < kRowBlock; ++k) {
              T* to = product + (r + k) * kChunk + side * kVectors;
              hn::Store(hn::Add(hn::Load(d, to), hn::Load(d, block + k * kVectors)), d, to);
              hn::Store(hn::Add(hn::Load(d, to + kLanes), hn::Load(d, block + k * kVectors + kLanes)), d, to + kLanes);
            }
          }
        }
      }
      const TileView<T> view = tiles.view(at);
      for (int64_t i = 0; i < at.rows; ++i) {
        tiles.weights_of_row(at, view, i, entries.exponents_of(set)[row + i], weights);
        const int64_t seen = tiles.seen(at, i);
        T* to = product + i * kChunk;
        for (int64_t j = 0; j < count; j += kLanes) {
          const V w = hn::Load(d, weights + j);
          const V value = ScaleBy(d, hn::Mul(hn::Load(d, to + j), w), hn::Set(d, scale));
          hn::Store(hn::IfThenZeroElse(hn::Eq(w, hn::Zero(d)), value), d, to + j);
        }
        std::fill(to + seen, to + kChunk, T(0));
      }
      for (const Group& g : groups) add_pairs(tiles, g, chunk, source_chunk, count, exact, product);
      if (p.in.weights.u == nullptr) {
        for (int64_t i = 0; i < at.rows; ++i) {
          T* to = p.grad_weights.table + set.batch * p.grad_weights.batch_stride +
                  set.head * p.grad_weights.head_stride + (row + i) * p.grad_weights.row_stride + begin;
          const int64_t seen = tiles.seen(at, i);
          // Packed sequences that see different sources share the matrix, but not a set.
          for (int64_t j = 0; j < seen; ++j) to[j] += product[i * kChunk + j];
        }
      } else {
        add_factors(set, at, product, left, factor_room, block, stripe, padded);
      }
    }
  }

  // [groups of sources][channels of e^k, e^k v][2 vectors of sources].
  void transpose_sources(const Group& g, int64_t source_chunk, T* to) const {
    const int64_t begin = source_chunk * kChunk;
    const int64_t count = std::min(kChunk, g.x->sources - begin);
    for (int64_t side = 0; side * kVectors < count; ++side) {
      T* at = to + side * kChunk * kVectors;
      for (int64_t j = 0; j < g.panels; ++j) {
        const T* from = entries.sources_of(*g.x, g.first_panel + j) + (begin + side * kVectors) * kVectors;
        const int64_t n = std::min(kVectors, count - side * kVectors);
        for (int64_t k = 0; k < kVectors; ++k, at += kVectors) {
          for (int64_t s = 0; s < n; ++s) at[s] = from[s * kVectors + k];
          for (int64_t s = n; s < kVectors; ++s) at[s] = T(0);
        }
      }
    }
  }

  // Exponents of the products g / D times e^k v and g N / D^2 times e^k, of a panel's channels over a tile. Channels
  // that some target of the chunk saw under a much lower exponent than the keys were packed with (only along the
  // diagonal) take no part: add_pairs does them.
  struct Scales {
    V values, keys;
    hn::Mask<D> apart;
  };
  HWY_INLINE Scales scales(const Sequence& x, int64_t panel, int64_t chunk, int64_t source_chunk) const {
    const D d;
    const T* target_scale = entries.target_scale_of(x, panel, chunk);
    const T* source_scale = entries.source_scale_of(x, panel, source_chunk);
    const V key_exponent = hn::Load(d, source_scale);
    const V low = hn::Load(d, entries.reach_of(x, panel) + chunk * kLanes);
    return {hn::Add(hn::Load(d, target_scale), hn::Load(d, source_scale + kLanes)),
            hn::Add(hn::Load(d, target_scale + kLanes), key_exponent),
            hn::Lt(hn::Add(low, hn::Set(d, kHeadroom<T>)), key_exponent)};
  }

  T largest_scale(const std::vector<Group>& groups, int64_t chunk, int64_t source_chunk) const {
    const D d;
    V largest = hn::Set(d, kExponentFloor<T>);
    for (const Group& g : groups) {
      const auto [low, high] = entries.rows_of(*g.x, chunk);
      if (low >= high) continue;
      for (int64_t j = g.first_panel; j < g.first_panel + g.panels; ++j) {
        const Scales s = scales(*g.x, j, chunk, source_chunk);
        largest = hn::IfThenElse(s.apart, largest, Larger(s.values, Larger(s.keys, largest)));
      }
    }
    return hn::GetLane(hn::MaxOfLanes(d, largest));
  }

  // Rows are targets, k counts channels: (-b 2^.., a 2^..), to meet (e^k, e^k v).
  void pack_left(const Group& g, int64_t chunk, int64_t source_chunk, T scale, int64_t first, int64_t last,
                 T* to) const {
    const D d;
    const auto [low, high] = entries.rows_of(*g.x, chunk);
    const int64_t row = chunk * kChunk;
    const V zero = hn::Zero(d);
    for (int64_t j = 0; j < g.panels; ++j) {
      const int64_t panel = g.first_panel + j;
      const Scales s = scales(*g.x, panel, chunk, source_chunk);
      const V common = hn::Set(d, scale);
      const V by_value = hn::IfThenZeroElse(s.apart, Pow2(d, hn::Sub(s.values, common)));
      const V by_key = hn::IfThenZeroElse(s.apart, hn::Neg(Pow2(d, hn::Sub(s.keys, common))));
      const T* from = entries.targets_of(*g.x, panel);
      const int64_t begin = low;  // lambdas cannot take parts of a pair by their names
      const int64_t end = high;
      const auto at = [&](int64_t i, int64_t part, V by) {
        const int64_t t = row + i;
        return t < begin || t >= end ? zero
                                     : hn::Mul(by, hn::Load(d, from + (t - g.x->first) * kVectors + part * kLanes));
      };
      for (int64_t i = first; i < last; i += 2) {
        T* pair = to + i / 2 * kPairStride + 2 * j * kVectors;
        hn::StoreInterleaved2(at(i, 1, by_key), at(i + 1, 1, by_key), d, pair);
        hn::StoreInterleaved2(at(i, 0, by_value), at(i + 1, 0, by_value), d, pair + 2 * kLanes);
      }
    }
  }

  // Adds to the tile what pack_left left out: redone rows, and channels apart.
  void add_pairs(const Tiles<D>& tiles, const Group& g, int64_t chunk, int64_t source_chunk, int64_t count,
                 Exact* exact, T* product) const {
    const D d;
    const auto [low, high] = entries.rows_of(*g.x, chunk);
    const int64_t begin = source_chunk * kChunk;
    for (int64_t panel = g.first_panel; low < high && panel < g.first_panel + g.panels; ++panel) {
      const auto apart = scales(*g.x, panel, chunk, source_chunk).apart;
      const bool has_redone = entries.redone_of(*g.x, panel)[chunk] != 0;
      if (!has_redone && hn::AllFalse(d, apart)) continue;
      const Panel& c = panels[panel];
      const auto real = hn::FirstN(d, static_cast<size_t>(c.count));
      for (int64_t t = low; t < high; ++t) {
        const Target at = entries.target(*g.x, c, t);
        const auto wanted = hn::And(real, hn::Or(at.redone, apart));
        if (hn::AllFalse(d, wanted)) continue;
        const int64_t sees = std::min({count, g.x->sources - begin, shape.causal ? t + 1 - begin : count});
        tiles.exact_row(t, begin, begin + sees, exact);
        for (int64_t i = 0; i < sees; ++i) {
          if (exact[i].p == 0) continue;
          const V dk = entries.pair_grad(*g.x, c, begin + i, exact[i], at).second;
          product[(t - chunk * kChunk) * kChunk + i] += hn::GetLane(hn::SumOfLanes(d, hn::IfThenElseZero(wanted, dk)));
        }
      }
    }
  }

  // du += dw v, dv += dw^T u, of one tile of dw.
  void add_factors(const WeightSet& set, const TileRange& at, const T* product, T* left, T* right, T* block, T* stripe,
                   int64_t padded) const {
    const int64_t width = p.in.weights.width;
    const T* u = p.in.weights.u + set.head * p.in.weights.u_head_stride + at.row * width;
    const T* v = p.in.weights.v + set.head * p.in.weights.v_head_stride + at.column * width;
    const auto multiply = [&](int64_t rows, int64_t depth, const auto& weight, const T* factor, T* to, int64_t stride) {
      const D d;
      for (int64_t i = 0; i < whole_row_blocks(rows); ++i) {
        T* packed = left + i / 2 * kPairStride + i % 2;
        for (int64_t k = 0; k < depth; ++k) packed[2 * k] = i < rows ? weight(i, k) : T(0);
      }
      for (int64_t c = 0; c < width; c += kVectors) {
        const int64_t n = std::min(kVectors, width - c);
        for (int64_t k = 0; k < depth; ++k) {
          for (int64_t l = 0; l < kVectors; ++l) right[k * kVectors + l] = l < n ? factor[k * width + c + l] : T(0);
        }
        for (int64_t i = 0; i < rows; i += kRowBlock) {
          Multiply(d, left + i / 2 * kPairStride, right, depth, block);
          for (int64_t r = 0; r < std::min(kRowBlock, rows - i); ++r) {
            for (int64_t l = 0; l < n; ++l) to[(i + r) * stride + c + l] += block[r * kVectors + l];
          }
        }
      }
    };
    if (p.grad_weights.u != nullptr) {
      multiply(
          at.rows, at.columns, [&](int64_t i, int64_t k) { return product[i * kChunk + k]; }, v,
          stripe + at.row * padded, padded);
    }
    if (p.grad_weights.v != nullptr) {
      multiply(
          at.columns, at.rows, [&](int64_t i, int64_t k) { return product[k * kChunk + i]; }, u,
          p.grad_weights.v + set.head * p.grad_weights.v_head_stride + at.column * width, width);
    }
  }

  const Entries& entries;
  const FullBackward<E>& p = entries.p;
  const FullShape& shape = entries.shape;
  const ParallelFor& parallel = entries.parallel;
  const Sequences& sequences = entries.sequences;
  const std::vector<Panel>& panels = entries.panels;
  const std::vector<WeightSet>& sets = entries.sets;
};

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

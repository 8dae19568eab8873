// Sums of the dense operator: packed tiles of weights times packed entries, and the walk along the diagonal of a causal
// operator. Included by kernels inside foreach_target.
//
// An entry is what one position gives the sums: two vectors of channels with an exponent each, x0 2^n0 and x1 2^n1.
// Forward it is a source's (e^k, e^k v); backward a target's (g / D, g N / D^2). Sums are
//   C0[i] = sum_j w~[i,j] x0[j] 2^n0[j],   C1[i] likewise,
// over the entries j that row i sees: those before it, or, backwards, those after it. w~ = e^w 2^-W, W the largest
// exponent of its target's weights.

#if defined(AFT_OPS_FULL_SUMS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_SUMS_INL_H_
#undef AFT_OPS_FULL_SUMS_INL_H_
#else
#define AFT_OPS_FULL_SUMS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/common/exp-inl.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/full/dense-inl.h"
#include "ops/full/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V = hn::Vec<D>>
struct Entry {
  V x0, x1, n0, n1;
};

// The scale of a chunk of packed entries, [kScaleSize][2 vectors]: its largest exponents, in units of which entries are
// stored, and its smallest.
enum : int64_t { kMost, kLeast, kScaleSize };

// Packed entries of a chunk.
template <class D>
struct EntryChunk {
  Pairs<D> entries, scale;
  Range rows;  // where in the chunk they begin and end
};

// Packed entries that a block of rows on the diagonal takes. first.data null: none.
template <class D>
struct DiagonalEntries {
  Pairs<D> first, scale;
  int64_t step = 1;  // -1: the entries after the first lie before it
};

// Rows of a chunk that have all their summands.
template <class D>
struct EndedRows {
  Range rows;
  Pairs<D> sums;                    // [rows.size()], in units of
  hn::Vec<D> exponent0, exponent1;  // 2^these
};

// Sums of one column over one chunk of rows.
template <class D>
struct Sums {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  // Exponents: now, and at the start of the walk.
  enum : int64_t { kNow, kAtStart, kExponentsSize };
  // What sums are multiplied by where something is added to them, and what that is.
  enum : int64_t { kKeep, kTake };

  D d;
  Range rows;          // that the column has, within the chunk
  Pairs<D> sums;       // [kChunk]. In the walk entries take the place of the rows that have ended
  Pairs<D> exponents;  // [kExponentsSize]: what the sums are in units of

  void clear() const {
    const V floor = hn::Set(d, kExponentFloor<T>);
    hn::Store(floor, d, exponents.at(kNow, 0));
    hn::Store(floor, d, exponents.at(kNow, 1));
    std::fill(sums.data, sums.at(whole_row_blocks(rows.end)), T(0));
  }

  // Adds the tile times entries; element k of its rows belongs to entry k of the chunk. `next`, from where as many will
  // be read after these, is fetched meanwhile. `block`: [kRowBlock], overwritten.
  void add(Tile<T> tile, const EntryChunk<D>& chunk, Pairs<D> next, Pairs<D> block) const {
    HWY_ALIGN T scales_at[2 * Pairs<D>::kStride];
    const Pairs<D> scales(scales_at);
    for (int64_t i = 0; i < 2; ++i) {
      const V old = hn::Load(d, exponents.at(kNow, i));
      const V e = hn::Load(d, chunk.scale.at(kMost, i));
      const V now = hn::IfThenElse(hn::Gt(e, old), hn::Add(e, hn::Set(d, kHeadroom<T>)), old);
      hn::Store(now, d, exponents.at(kNow, i));
      hn::Store(Pow2(d, hn::Sub(old, now)), d, scales.at(kKeep, i));
      hn::Store(Pow2(d, hn::Sub(e, now)), d, scales.at(kTake, i));
    }
    const int64_t first_row = rows.begin / kRowBlock * kRowBlock;
    const int64_t n = chunk.rows.size();
    const int64_t row_count = rows.end - first_row;
    const int64_t ahead = (n * kRowBlock + row_count - 1) / row_count * Pairs<D>::kStride;
    const T* fetched = next.data;
    for (int64_t row = first_row; row < rows.end; row += kRowBlock, fetched += ahead) {
      for (int64_t i = 0; i < ahead; i += hn::MaxLanes(d)) hwy::Prefetch(fetched + i);
      MultiplyOnto(d, tile.at(row, chunk.rows.begin), chunk.entries.data, n, scales.data, block.data, sums.at(row));
    }
  }

  // The sums of all rows, where there is no walk.
  EndedRows<D> all() const { return ended(rows, sums.from(rows.begin)); }

  // Along the diagonal: row o sees the entries up to and including o, and its exponents depend on those alone. Walks
  // the block of rows at `at`, after start_walk() and the blocks before it, and calls finish(EndedRows). The entries,
  // which take the place of the rows' sums, come from `packed` if no exponent moves and none of them lost a bit: then
  // that is what take(o), the entry of o in [0, rows.end), gives one by one. `block` as in add().
  template <class Take, class Finish>
  void walk(Tile<T> tile, int64_t at, const DiagonalEntries<D>& packed, Pairs<D> block, const Take& take,
            const Finish& finish) const {
    if (at + kRowBlock > rows.begin && HWY_LIKELY(fits(packed))) {
      HWY_ALIGN T scales_at[2 * Pairs<D>::kStride];
      const Pairs<D> scales(scales_at);
      for (int64_t i = 0; i < 2; ++i) {
        const V e = hn::Load(d, exponents.at(kNow, i));
        hn::Store(Pow2(d, hn::Sub(hn::Load(d, exponents.at(kAtStart, i)), e)), d, scales.at(kKeep, i));
        hn::Store(Pow2(d, hn::Sub(hn::Load(d, packed.scale.at(kMost, i)), e)), d, scales.at(kTake, i));
      }
      MultiplyDiagonal(d, tile.pairs(at), at, sums.at(at), packed.first.data, packed.step * Pairs<D>::kStride,
                       scales.data, block.data);
      const Range own = {std::max(at, rows.begin), std::min(at + kRowBlock, rows.end)};
      if (!own.empty()) finish(ended(own, block.from(own.begin - at)));
      return;
    }
    walk_by_row(tile, at, block, take, finish);
  }

  void start_walk() const {
    hn::Store(hn::Load(d, exponents.at(kNow, 0)), d, exponents.at(kAtStart, 0));
    hn::Store(hn::Load(d, exponents.at(kNow, 1)), d, exponents.at(kAtStart, 1));
  }

 private:
  EndedRows<D> ended(Range own, Pairs<D> at) const {
    return {own, at, hn::Load(d, exponents.at(kNow, 0)), hn::Load(d, exponents.at(kNow, 1))};
  }

  bool fits(const DiagonalEntries<D>& packed) const {
    if (packed.first.data == nullptr) return false;
    // Half way to where a power of two is rounded to 0.
    const V lowest = hn::Set(d, -FloatFormat<T>::kBias / 2);
    for (int64_t i = 0; i < 2; ++i) {
      const V own = hn::Load(d, exponents.at(kNow, i));
      const V most = hn::Load(d, packed.scale.at(kMost, i));
      const V least = hn::Load(d, packed.scale.at(kLeast, i));
      if (!hn::AllTrue(d, hn::And(hn::Le(most, own), hn::Ge(hn::Sub(least, own), lowest)))) return false;
    }
    return true;
  }

  // The walk of a block whose exponents may move.
  template <class Take, class Finish>
  HWY_NOINLINE void walk_by_row(Tile<T> tile, int64_t at, Pairs<D> block, const Take& take,
                                const Finish& finish) const {
    V e0 = hn::Load(d, exponents.at(kNow, 0));
    V e1 = hn::Load(d, exponents.at(kNow, 1));
    const bool ends = at + kRowBlock > rows.begin;
    if (ends) begin_block(tile, at, block);
    for (int64_t row = at; row < std::min(at + kRowBlock, rows.end); ++row) {
      const Entry<D> x = take(row);
      const auto above0 = hn::Gt(x.n0, e0);
      const auto above1 = hn::Gt(x.n1, e1);
      if (HWY_UNLIKELY(!hn::AllFalse(d, hn::Or(above0, above1)))) {
        const V headroom = hn::Set(d, kHeadroom<T>);
        const V new0 = hn::IfThenElse(above0, hn::Add(x.n0, headroom), e0);
        const V new1 = hn::IfThenElse(above1, hn::Add(x.n1, headroom), e1);
        const V down0 = Pow2(d, hn::Sub(e0, new0));
        const V down1 = Pow2(d, hn::Sub(e1, new1));
        scale(sums, row, down0, down1);
        if (ends) scale(block, kRowBlock, down0, down1);
        e0 = new0;
        e1 = new1;
      }
      hn::Store(hn::Mul(x.x0, Pow2(d, hn::Sub(x.n0, e0))), d, sums.at(row, 0));
      hn::Store(hn::Mul(x.x1, Pow2(d, hn::Sub(x.n1, e1))), d, sums.at(row, 1));
      if (row < rows.begin) continue;
      add_triangle(tile, at, row, block.from(row - at));
      finish(EndedRows<D>{{row, row + 1}, block.from(row - at), e0, e1});
    }
    hn::Store(e0, d, exponents.at(kNow, 0));
    hn::Store(e1, d, exponents.at(kNow, 1));
  }

  // to[r] = what the block's rows summed before the walk, under today's exponents, and the entries before the block.
  void begin_block(Tile<T> tile, int64_t at, Pairs<D> to) const {
    const V keep0 = Pow2(d, hn::Sub(hn::Load(d, exponents.at(kAtStart, 0)), hn::Load(d, exponents.at(kNow, 0))));
    const V keep1 = Pow2(d, hn::Sub(hn::Load(d, exponents.at(kAtStart, 1)), hn::Load(d, exponents.at(kNow, 1))));
    Multiply(d, tile.pairs(at), sums.data, at, to.data);
    for (int64_t r = 0; r < kRowBlock; ++r) {
      hn::Store(hn::MulAdd(hn::Load(d, sums.at(at + r, 0)), keep0, hn::Load(d, to.at(r, 0))), d, to.at(r, 0));
      hn::Store(hn::MulAdd(hn::Load(d, sums.at(at + r, 1)), keep1, hn::Load(d, to.at(r, 1))), d, to.at(r, 1));
    }
  }

  // Adds to a row's sums the entries of its block up to its own.
  void add_triangle(Tile<T> tile, int64_t at, int64_t row, Pairs<D> to) const {
    V c0 = hn::Load(d, to.at(0, 0));
    V c1 = hn::Load(d, to.at(0, 1));
    for (int64_t j = at; j <= row; ++j) {
      const V w = hn::Set(d, *tile.at(row, j));
      c0 = hn::MulAdd(w, hn::Load(d, sums.at(j, 0)), c0);
      c1 = hn::MulAdd(w, hn::Load(d, sums.at(j, 1)), c1);
    }
    hn::Store(c0, d, to.at(0, 0));
    hn::Store(c1, d, to.at(0, 1));
  }

  void scale(Pairs<D> at, int64_t n, V by0, V by1) const {
    for (int64_t i = 0; i < n; ++i) {
      hn::Store(hn::Mul(hn::Load(d, at.at(i, 0)), by0), d, at.at(i, 0));
      hn::Store(hn::Mul(hn::Load(d, at.at(i, 1)), by1), d, at.at(i, 1));
    }
  }
};

// A column and its sums over the rows of a task's chunk.
template <class D>
struct Column {
  int64_t sequence;
  const Sequence* x;
  int64_t panel;
  Sums<D> sums;
};

// The columns of a task that have rows in its chunk, and what their sums take in turns.
template <class D>
class TaskSums {
 public:
  using T = hn::TFromD<D>;

  std::vector<Column<D>> columns;
  const Tile<T> tile;    // of the weights that are being multiplied
  const Pairs<D> block;  // [kRowBlock]

  // rows_of(sequence): its rows within the task's chunk.
  template <class RowsOf>
  TaskSums(const Sequences& sequences, const WeightSet& set, Range task_columns, const RowsOf& rows_of,
           Scratch& scratch)
      : tile{scratch.take<T>(kTileSize)}, block(kRowBlock, scratch) {
    const Pairs<D> sums(task_columns.size() * kChunk, scratch);
    const Pairs<D> exponents(task_columns.size() * Sums<D>::kExponentsSize, scratch);
    for (int64_t i = task_columns.begin; i < task_columns.end; ++i) {
      const ColumnIndex index = set.column(i);
      const Sequence& x = sequences.all[index.sequence];
      const Range rows = rows_of(x);
      if (rows.empty()) continue;
      const int64_t nth = std::ssize(columns);
      columns.push_back({index.sequence,
                         &x,
                         index.panel,
                         {D(), rows, sums.from(nth * kChunk), exponents.from(nth * Sums<D>::kExponentsSize)}});
      columns.back().sums.clear();
    }
  }

  // Adds the tile times the entries of a chunk, entries(column, chunk); that of `next_chunk` will be the next.
  template <class Entries>
  void add(int64_t chunk, int64_t next_chunk, const Entries& entries) const {
    for (size_t i = 0; i < columns.size(); ++i) {
      const EntryChunk<D> own = entries(columns[i], chunk);
      if (own.rows.empty()) continue;
      const bool last = i + 1 == columns.size();
      const EntryChunk<D> next = entries(columns[last ? 0 : i + 1], last ? next_chunk : chunk);
      columns[i].sums.add(tile, own, next.entries, block);
    }
  }
};

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

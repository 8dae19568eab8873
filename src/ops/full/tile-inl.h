// Tiles of the dense operator's weights: kChunk x kChunk of w, from the matrix or from factors, as e^w 2^-W in the
// packed form that Multiply reads. Included by kernels inside foreach_target.

#if defined(AFT_OPS_FULL_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_FULL_TILE_INL_H_
#undef AFT_OPS_FULL_TILE_INL_H_
#else
#define AFT_OPS_FULL_TILE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "aft/ops/full.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/scratch.h"
#include "ops/common/vector_view.h"
#include "ops/full/dense-inl.h"
#include "ops/full/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A view of [rows][stride].
template <typename T>
struct Matrix {
  T* data = nullptr;
  int64_t stride = 0;

  T* row(int64_t i) const { return data + i * stride; }
};

// The weights of some targets for some sources, kChunk of each at most.
struct TileRange {
  Range targets, sources;
};

// Packs the left matrix of a product, element(i, k) of [rows][depth]; 0 in the rows that fill the last row block.
template <typename T, class Element>
void PackRows(Tile<T> to, int64_t rows, int64_t depth, const Element& element) {
  for (int64_t i = 0; i < whole_row_blocks(rows); ++i) {
    T* row = to.at(i, 0);
    for (int64_t k = 0; k < depth; ++k) row[2 * k] = i < rows ? element(i, k) : T(0);
  }
}

// Packs the right one, element(k, l) of [depth][columns], columns at most two vectors; 0 in the lanes beyond.
template <class D, class Element>
void PackColumns(D /*d*/, Pairs<D> to, int64_t depth, int64_t columns, const Element& element) {
  using T = hn::TFromD<D>;
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t l = 0; l < Pairs<D>::kStride; ++l) to.at(k)[l] = l < columns ? element(k, l) : T(0);
  }
}

template <class D>
class Tiles {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t kLanes = hn::MaxLanes(D());
  static constexpr int64_t kVectors = 2 * kLanes;
  // e^w of one weight, split: p 2^n.
  struct Exact {
    T p, n;
  };

  Tiles(const PairWeights<const T>& weights, const WeightSet& set, bool causal_, Scratch& scratch)
      : w(weights), causal(causal_) {
    if (w.u != nullptr) {
      u = w.u + set.head * w.u_head_stride;
      v = w.v + set.head * w.v_head_stride;
      dots = {scratch.take<T>(kTileSize), kChunk};
      left.data = scratch.take<T>(kTileSize);
      right = Pairs<D>(kChunk, scratch);
      block = Pairs<D>(kRowBlock, scratch);
    } else {
      table = w.table + set.batch * w.batch_stride + set.head * w.head_stride;
    }
  }

  // w itself, [targets][sources]; good until the next tile is asked for.
  Matrix<const T> weights(const TileRange& at) const {
    if (table != nullptr) return {table + at.targets.begin * w.row_stride + at.sources.begin, w.row_stride};
    multiply_factors(at);
    return {dots.data, dots.stride};
  }

  // Largest exponents of the tile's targets over what they see of it, if that exceeds what stands in `exponents`.
  void raise_exponents(const TileRange& at, T* exponents) const {
    const Matrix<const T> x = weights(at);
    for (int64_t i = 0; i < at.targets.size(); ++i) {
      const int64_t n = seen(at, i);
      V max = hn::Set(d, -std::numeric_limits<T>::infinity());
      int64_t j = 0;
      for (; j + kLanes <= n; j += kLanes) max = Larger(hn::LoadU(d, x.row(i) + j), max);
      T largest = hn::GetLane(hn::MaxOfLanes(d, max));
      for (; j < n; ++j) {
        const T value = x.row(i)[j];
        if (value > largest) largest = value;
      }
      exponents[i] = std::max(exponents[i], exponent_of(largest));
    }
  }

  // For sums over sources: rows of the packed tile are targets, k counts sources.
  void pack_targets(const TileRange& at, const T* exponents, Tile<T> packed) const {
    constexpr int64_t kAhead = 4;  // rows that lie far apart are fetched before
    const Matrix<const T> x = weights(at);
    const int64_t rows = at.targets.size();
    for (int64_t i = 0; i < whole_row_blocks(rows); i += 2) {
      const int64_t n0 = i < rows ? seen(at, i) : 0;
      const int64_t n1 = i + 1 < rows ? seen(at, i + 1) : 0;
      const T* ahead0 = x.row(std::min(i + kAhead, rows - 1));
      const T* ahead1 = x.row(std::min(i + kAhead + 1, rows - 1));
      for (int64_t j = 0; j < at.sources.size(); j += kLanes) {
        hwy::Prefetch(ahead0 + j);
        hwy::Prefetch(ahead1 + j);
        const V a = weight(x.row(i) + j, n0 - j, n0 > j ? exponents[i] : T(0));
        const V b = weight(x.row(i + 1) + j, n1 - j, n1 > j ? exponents[i + 1] : T(0));
        hn::StoreInterleaved2(a, b, d, packed.at(i, j));
      }
    }
  }

  // For sums over targets: rows of the packed tile are sources, k counts targets. Reversed, both count down from the
  // chunks' ends.
  void pack_sources(const TileRange& at, const T* exponents, bool reverse_targets, bool reverse_sources,
                    Tile<T> packed) const {
    const Matrix<const T> x = weights(at);
    const int64_t targets = at.targets.size();
    const int64_t sources = at.sources.size();
    HWY_ALIGN T row[kChunk + 2 * kLanes];
    if (sources < kChunk || targets < kChunk) std::fill_n(packed.data, kTileSize, T(0));
    for (int64_t i = 0; i < targets; ++i) {
      weights_of_row(at, x, i, exponents[i], row);
      const Tile<T> to = {packed.at(0, reverse_targets ? kChunk - 1 - i : i)};
      if (reverse_sources) {
        for (int64_t j = 0; j < sources; ++j) *to.at(kChunk - 1 - j, 0) = row[j];
      } else {
        for (int64_t j = 0; j < sources; ++j) *to.at(j, 0) = row[j];
      }
    }
  }

  // e^w 2^-W of the tile's i-th target, [sources], in whole vectors; 0 where it is not seen. x: weights(at).
  void weights_of_row(const TileRange& at, Matrix<const T> x, int64_t i, T exponent, T* row) const {
    const int64_t n = seen(at, i);
    for (int64_t j = 0; j < at.sources.size(); j += kLanes) {
      hn::Store(weight(x.row(i) + j, n - j, exponent), d, row + j);
    }
  }

  // p and n of the weights of one target for some sources.
  void exact_row(int64_t target, Range sources, Exact* out) const {
    HWY_ALIGN T p[HWY_MAX_BYTES / sizeof(T)];
    HWY_ALIGN T n[HWY_MAX_BYTES / sizeof(T)];
    for (int64_t j = sources.begin; j < sources.end; j += kLanes) {
      const int64_t count = std::min(kLanes, sources.end - j);
      HWY_ALIGN T values[HWY_MAX_BYTES / sizeof(T)] = {};
      for (int64_t i = 0; i < count; ++i) {
        values[i] = table != nullptr ? table[target * w.row_stride + j + i] : dot(target, j + i);
      }
      const SplitExp<V> e = Split(d, hn::Load(d, values));
      hn::Store(e.p, d, p);
      hn::Store(e.n, d, n);
      for (int64_t i = 0; i < count; ++i) out[j - sources.begin + i] = {p[i], n[i]};
    }
  }

  // Sources of the tile that its i-th target sees.
  int64_t seen(const TileRange& at, int64_t i) const {
    const int64_t sources = at.sources.size();
    return causal ? std::clamp<int64_t>(at.targets.begin + i + 1 - at.sources.begin, 0, sources) : sources;
  }

 private:
  T exponent_of(T x) const {
    if (x < -kKeyLimit<T>) return kExponentFloor<T>;
    return hn::GetLane(Split(d, hn::Set(d, std::min(x, kKeyLimit<T>))).n);
  }

  // e^w 2^-W of a vector, of which `count` are seen.
  HWY_INLINE V weight(const T* x, int64_t count, T exponent) const {
    if (count <= 0) return hn::Zero(d);
    const SplitExp<V> e = Split(d, LoadSome(d, x, count));
    const V value = hn::Mul(e.p, Pow2(d, hn::Sub(e.n, hn::Set(d, exponent))));
    return count >= kLanes ? value : hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(count)), value);
  }

  T dot(int64_t target, int64_t source) const {
    const T* a = u + target * w.width;
    const T* b = v + source * w.width;
    V sum = hn::Zero(d);
    int64_t c = 0;
    for (; c + kLanes <= w.width; c += kLanes) sum = hn::MulAdd(hn::LoadU(d, a + c), hn::LoadU(d, b + c), sum);
    T rest = hn::GetLane(hn::SumOfLanes(d, sum));
    for (; c < w.width; ++c) rest += a[c] * b[c];
    return rest;
  }

  // dots = u v^T of the tile.
  void multiply_factors(const TileRange& at) const {
    const Matrix<const T> u_rows = {u + at.targets.begin * w.width, w.width};
    const Matrix<const T> v_rows = {v + at.sources.begin * w.width, w.width};
    for (int64_t c = 0; c < w.width; c += kChunk) {
      const int64_t depth = std::min(kChunk, w.width - c);
      PackRows(left, at.targets.size(), depth, [&](int64_t i, int64_t k) { return u_rows.row(i)[c + k]; });
      for (int64_t j = 0; j < at.sources.size(); j += kVectors) {
        PackColumns(d, right, depth, at.sources.size() - j,
                    [&](int64_t k, int64_t l) { return v_rows.row(j + l)[c + k]; });
        MultiplyRows(d, left, {0, at.targets.size()}, right, depth, block, [&](int64_t i, V dot0, V dot1) {
          const Pairs<D> to(dots.row(i) + j);
          hn::Store(c == 0 ? dot0 : hn::Add(dot0, hn::Load(d, to.at(0, 0))), d, to.at(0, 0));
          hn::Store(c == 0 ? dot1 : hn::Add(dot1, hn::Load(d, to.at(0, 1))), d, to.at(0, 1));
        });
      }
    }
    if (w.width == 0) std::fill_n(dots.data, kTileSize, T(0));
  }

  D d;
  const PairWeights<const T>& w;
  bool causal;
  const T* table = nullptr;
  const T* u = nullptr;
  const T* v = nullptr;
  Matrix<T> dots;  // [kChunk][kChunk]
  Tile<T> left;    // u
  Pairs<D> right;  // [kChunk]: v^T
  Pairs<D> block;  // [kRowBlock]
};

// The exact weights of one target at a time: the columns of a task ask for those of the same ones.
template <class D>
class ExactRow {
 public:
  using Exact = typename Tiles<D>::Exact;

  ExactRow(const Tiles<D>& weight_tiles, int64_t sources, Scratch& scratch)
      : tiles(weight_tiles), row(scratch.take<Exact>(sources)) {}

  // [sources], good until another target is asked for.
  const Exact* of(int64_t of_target, int64_t sources) {
    if (target != of_target) tiles.exact_row(of_target, {0, sources}, row);
    target = of_target;
    return row;
  }

 private:
  const Tiles<D>& tiles;
  Exact* const row;
  int64_t target = -1;
};

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

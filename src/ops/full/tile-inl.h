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
#include "ops/full/dense-inl.h"
#include "ops/full/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::full::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// w of some rows, [rows][stride].
template <typename T>
struct TileView {
  const T* data;
  int64_t stride;
};

// Targets [row, row + rows) and sources [column, column + columns) of a set.
struct TileRange {
  int64_t row = 0, rows = 0, column = 0, columns = 0;
};

inline int64_t whole_row_blocks(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock * kRowBlock; }

template <class D>
class Tiles {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr int64_t kLanes = hn::MaxLanes(D());
  // e^(w - W) of one weight, split: p 2^n.
  struct Exact {
    T p, n;
  };

  Tiles(const PairWeights<const T>& weights, const WeightSet& set, bool causal_, Scratch& scratch)
      : w(weights), causal(causal_) {
    if (w.u != nullptr) {
      u = w.u + set.head * w.u_head_stride;
      v = w.v + set.head * w.v_head_stride;
      dots = scratch.take<T>(kTileSize);
      left = scratch.take<T>(kTileSize);
      right = scratch.take<T>(kChunk * 2 * kLanes);
      block = scratch.take<T>(kRowBlock * 2 * kLanes);
    } else {
      table = w.table + set.batch * w.batch_stride + set.head * w.head_stride;
    }
  }

  TileView<T> view(const TileRange& at) const {
    if (table != nullptr) return {table + at.row * w.row_stride + at.column, w.row_stride};
    factor_products(at);
    return {dots, kChunk};
  }

  // Largest exponents of the tile's rows over what they see of it, if that exceeds what stands in `exponents`.
  void raise_exponents(const TileRange& at, T* exponents) const {
    const TileView<T> x = view(at);
    for (int64_t i = 0; i < at.rows; ++i) {
      const int64_t n = seen(at, i);
      V max = hn::Set(d, -std::numeric_limits<T>::infinity());
      int64_t j = 0;
      for (; j + kLanes <= n; j += kLanes) max = Larger(hn::LoadU(d, x.data + i * x.stride + j), max);
      T largest = hn::GetLane(hn::MaxOfLanes(d, max));
      for (; j < n; ++j) {
        const T value = x.data[i * x.stride + j];
        if (value > largest) largest = value;
      }
      exponents[i] = std::max(exponents[i], exponent_of(largest));
    }
  }

  // For sums over sources: packed rows are targets, k counts sources.
  void pack_targets(const TileRange& at, const T* exponents, T* packed) const {
    constexpr int64_t kAhead = 4;  // rows that lie far apart are fetched before
    const TileView<T> x = view(at);
    for (int64_t i = 0; i < whole_row_blocks(at.rows); i += 2, packed += kPairStride) {
      const int64_t n0 = i < at.rows ? seen(at, i) : 0;
      const int64_t n1 = i + 1 < at.rows ? seen(at, i + 1) : 0;
      const T* ahead0 = x.data + std::min(i + kAhead, at.rows - 1) * x.stride;
      const T* ahead1 = x.data + std::min(i + kAhead + 1, at.rows - 1) * x.stride;
      for (int64_t j = 0; j < at.columns; j += kLanes) {
        hwy::Prefetch(ahead0 + j);
        hwy::Prefetch(ahead1 + j);
        const V a = weight(x.data + i * x.stride + j, n0 - j, n0 > j ? exponents[i] : T(0));
        const V b = weight(x.data + (i + 1) * x.stride + j, n1 - j, n1 > j ? exponents[i + 1] : T(0));
        hn::StoreInterleaved2(a, b, d, packed + 2 * j);
      }
    }
  }

  // For sums over targets: packed rows are sources, k counts targets. Reversed, both count down from the chunks' ends.
  void pack_sources(const TileRange& at, const T* exponents, bool reverse_targets, bool reverse_sources,
                    T* packed) const {
    const TileView<T> x = view(at);
    HWY_ALIGN T row[kChunk + 2 * kLanes];
    if (at.columns < kChunk || at.rows < kChunk) std::fill(packed, packed + kTileSize, T(0));
    for (int64_t i = 0; i < at.rows; ++i) {
      const int64_t n = seen(at, i);
      for (int64_t j = 0; j < at.columns; j += kLanes) {
        hn::Store(weight(x.data + i * x.stride + j, n - j, exponents[i]), d, row + j);
      }
      T* to = packed + 2 * (reverse_targets ? kChunk - 1 - i : i);
      if (reverse_sources) {
        for (int64_t j = 0; j < at.columns; ++j) {
          const int64_t o = kChunk - 1 - j;
          to[o / 2 * kPairStride + o % 2] = row[j];
        }
      } else {
        for (int64_t j = 0; j < at.columns; ++j) to[j / 2 * kPairStride + j % 2] = row[j];
      }
    }
  }

  // e^w 2^-W of the row, [columns]; 0 where it is not seen.
  void weights_of_row(const TileRange& at, const TileView<T>& x, int64_t i, T exponent, T* row) const {
    const int64_t n = seen(at, i);
    for (int64_t j = 0; j < at.columns; j += kLanes) {
      hn::Store(weight(x.data + i * x.stride + j, n - j, exponent), d, row + j);
    }
  }

  // p and n of the weights of one target for sources [begin, end).
  void exact_row(int64_t target, int64_t begin, int64_t end, Exact* out) const {
    HWY_ALIGN T p[HWY_MAX_BYTES / sizeof(T)];
    HWY_ALIGN T n[HWY_MAX_BYTES / sizeof(T)];
    for (int64_t j = begin; j < end; j += kLanes) {
      const int64_t count = std::min(kLanes, end - j);
      HWY_ALIGN T values[HWY_MAX_BYTES / sizeof(T)] = {};
      for (int64_t i = 0; i < count; ++i) {
        values[i] = table != nullptr ? table[target * w.row_stride + j + i] : dot(target, j + i);
      }
      const SplitExp<V> e = Split(d, hn::Load(d, values));
      hn::Store(e.p, d, p);
      hn::Store(e.n, d, n);
      for (int64_t i = 0; i < count; ++i) out[j - begin + i] = {p[i], n[i]};
    }
  }

  // Sources of the tile that row i sees.
  int64_t seen(const TileRange& at, int64_t i) const {
    return causal ? std::clamp<int64_t>(at.row + i + 1 - at.column, 0, at.columns) : at.columns;
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
  void factor_products(const TileRange& at) const {
    for (int64_t c = 0; c < w.width; c += kChunk) {
      const int64_t depth = std::min(kChunk, w.width - c);
      for (int64_t i = 0; i < whole_row_blocks(at.rows); i += 2) {
        T* to = left + i / 2 * kPairStride;
        for (int64_t k = 0; k < depth; ++k) {
          to[2 * k] = i < at.rows ? u[(at.row + i) * w.width + c + k] : T(0);
          to[2 * k + 1] = i + 1 < at.rows ? u[(at.row + i + 1) * w.width + c + k] : T(0);
        }
      }
      for (int64_t j = 0; j < at.columns; j += 2 * kLanes) {
        const int64_t count = std::min(2 * kLanes, at.columns - j);
        for (int64_t k = 0; k < depth; ++k) {
          for (int64_t l = 0; l < 2 * kLanes; ++l) {
            right[k * 2 * kLanes + l] = l < count ? v[(at.column + j + l) * w.width + c + k] : T(0);
          }
        }
        for (int64_t i = 0; i < at.rows; i += kRowBlock) {
          Multiply(d, left + i / 2 * kPairStride, right, depth, block);
          for (int64_t r = 0; r < std::min(kRowBlock, at.rows - i); ++r) {
            T* to = dots + (i + r) * kChunk + j;
            for (int64_t l = 0; l < 2 * kLanes; l += kLanes) {
              const V product = hn::Load(d, block + r * 2 * kLanes + l);
              hn::Store(c == 0 ? product : hn::Add(product, hn::Load(d, to + l)), d, to + l);
            }
          }
        }
      }
    }
    if (w.width == 0) std::fill(dots, dots + kTileSize, T(0));
  }

  D d;
  const PairWeights<const T>& w;
  bool causal;
  const T* table = nullptr;
  const T* u = nullptr;
  const T* v = nullptr;
  T* dots = nullptr;   // [kChunk][kChunk]
  T* left = nullptr;   // u, packed
  T* right = nullptr;  // v^T, [depth][2 vectors]
  T* block = nullptr;
};

}  // namespace aft::ops::full::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

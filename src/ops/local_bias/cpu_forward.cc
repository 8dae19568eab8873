// band[h, t, j] = u[h, t] . v[h, t - left + j]. Vectors run along the width of the factors; a tile of rows x sources
// keeps one accumulator per pair in registers, so that a load of u serves kSources pairs and a load of v kRows of them.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/local_bias/cpu_forward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "aft/ops/local_bias.h"
#include "ops/common/dispatch.h"
#include "ops/local_bias/check.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::local_bias::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// 16 accumulators of AVX-512's 32 registers, 8 of AVX2's 16.
constexpr int64_t kRows = HWY_TARGET == HWY_AVX3 ? 4 : 2;
constexpr int64_t kSources = 4;

// Adds up the lanes of four vectors: out[i] = sum of vi.
#if HWY_TARGET == HWY_SCALAR
template <class D, class V>
HWY_INLINE void sum_lanes(D, V v0, V v1, V v2, V v3, hn::TFromD<D>* out) {
  out[0] = hn::GetLane(v0);
  out[1] = hn::GetLane(v1);
  out[2] = hn::GetLane(v2);
  out[3] = hn::GetLane(v3);
}
#else
// Every 128-bit block holds partial sums of the same outputs: adds the blocks up and stores one.
template <class D, class V>
HWY_INLINE void sum_blocks(D d, V v, hn::TFromD<D>* out) {
  if constexpr (hn::MaxLanes(D()) * sizeof(hn::TFromD<D>) > 16) {
    const hn::Half<D> half;
    sum_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)), out);
  } else {
    hn::StoreU(v, d, out);
  }
}

// [a0 + a2, b0 + b2, a1 + a3, b1 + b3] in every block of four lanes, [a0 + a1, b0 + b1] in every block of two.
template <class D, class V>
HWY_INLINE V add_pairs(D d, V a, V b) {
  return hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
}

template <class D, class V>
HWY_INLINE void sum_lanes(D d, V v0, V v1, V v2, V v3, float* out) {
  const hn::Repartition<double, D> pairs;
  const auto v01 = hn::BitCast(pairs, add_pairs(d, v0, v1));
  const auto v23 = hn::BitCast(pairs, add_pairs(d, v2, v3));
  sum_blocks(d,
             hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, v01, v23)),
                     hn::BitCast(d, hn::InterleaveUpper(pairs, v01, v23))),
             out);
}

template <class D, class V>
HWY_INLINE void sum_lanes(D d, V v0, V v1, V v2, V v3, double* out) {
  sum_blocks(d, add_pairs(d, v0, v1), out);
  sum_blocks(d, add_pairs(d, v2, v3), out + 2);
}
#endif

// dots[r * kSources + i] = u_r . v_i, each summed in the same order wherever it stands in a tile.
template <typename T>
HWY_INLINE void tile_of_dots(const T* const* u, const T* const* v, int64_t width, T* dots) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  using V = decltype(hn::Zero(d));
  V sum[kRows][kSources];
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t i = 0; i < kSources; ++i) sum[r][i] = hn::Zero(d);
  }
  const auto add = [&](const auto load) HWY_ATTR {
    V source[kSources];
    for (int64_t i = 0; i < kSources; ++i) source[i] = load(v[i]);
    for (int64_t r = 0; r < kRows; ++r) {
      const V row = load(u[r]);
      for (int64_t i = 0; i < kSources; ++i) sum[r][i] = hn::MulAdd(row, source[i], sum[r][i]);
    }
  };
  int64_t c = 0;
  for (; c + lanes <= width; c += lanes) add([&](const T* row) HWY_ATTR { return hn::LoadU(d, row + c); });
  if (c < width) {
    const auto rest = hn::FirstN(d, static_cast<size_t>(width - c));
    add([&](const T* row) HWY_ATTR { return hn::MaskedLoad(rest, d, row + c); });
  }
  for (int64_t r = 0; r < kRows; ++r) sum_lanes(d, sum[r][0], sum[r][1], sum[r][2], sum[r][3], dots + r * kSources);
}

// Rows [begin, end) of one head; u, v and band point at the head.
template <typename T>
void forward_rows(const LocalBiasShape& s, const T* u, const T* v, T* band, int64_t begin, int64_t end) {
  const int64_t span = s.columns();
  for (int64_t t0 = begin; t0 < end; t0 += kRows) {
    const int64_t rows = std::min(kRows, end - t0);
    const T* u_rows[kRows];
    for (int64_t r = 0; r < kRows; ++r) u_rows[r] = u + (t0 + std::min(r, rows - 1)) * s.width;
    for (int64_t r = 0; r < rows; ++r) {
      // Entries outside the sequence.
      const int64_t t = t0 + r;
      T* row = band + t * span;
      std::fill_n(row, std::min(span, std::max<int64_t>(0, s.left - t)), T(0));
      const int64_t last = std::min(span, s.rows - t + s.left);
      std::fill_n(row + last, span - last, T(0));
    }
    const int64_t last_source = std::min(s.rows, t0 + rows + s.right);
    for (int64_t s0 = std::max<int64_t>(0, t0 - s.left); s0 < last_source; s0 += kSources) {
      const T* v_rows[kSources];
      for (int64_t i = 0; i < kSources; ++i) v_rows[i] = v + std::min(s0 + i, last_source - 1) * s.width;
      HWY_ALIGN T dots[kRows * kSources];
      tile_of_dots(u_rows, v_rows, s.width, dots);
      const int64_t sources = std::min(kSources, last_source - s0);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t j0 = s0 - (t0 + r) + s.left;  // the band's column of source s0
        T* row = band + (t0 + r) * span;
        for (int64_t i = std::max<int64_t>(0, -j0); i < std::min(sources, span - j0); ++i) {
          row[j0 + i] = dots[r * kSources + i];
        }
      }
    }
  }
}

}  // namespace
}  // namespace aft::ops::local_bias::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {
namespace local_bias {
namespace {

template <typename T>
void forward(const LocalBiasForward<T>& p, const Cpu& cpu) {
  const LocalBiasShape& s = p.in.shape;
  const int64_t tasks = (s.rows + kTaskRows - 1) / kTaskRows;
  if (tasks == 0) return;
  const auto run = AFT_DISPATCH(forward_rows<T>);
  cpu.parallel.run(s.heads * tasks, [&](int64_t task) {
    const int64_t first = task / tasks * s.rows;  // row 0 of the head
    const int64_t begin = task % tasks * kTaskRows;
    run(s, p.in.u + first * s.width, p.in.v + first * s.width, p.band + first * s.columns(), begin,
        std::min(s.rows, begin + kTaskRows));
  });
}

}  // namespace
}  // namespace local_bias

template <typename T>
void local_bias_forward(const LocalBiasForward<T>& p, const Cpu& cpu) {
  local_bias::check_sizes(p);
  local_bias::forward(p, cpu);
}

template void local_bias_forward<float>(const LocalBiasForward<float>&, const Cpu&);
template void local_bias_forward<double>(const LocalBiasForward<double>&, const Cpu&);

}  // namespace aft::ops
#endif

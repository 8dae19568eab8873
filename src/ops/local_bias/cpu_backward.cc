// grad_u[t] = sum_j grad_band[t, j] v[t - left + j] and grad_v[t'] = sum_t grad_band[t, t' - t + left] u[t]: one
// product of a band of coefficients with rows, read along its rows for u and along its diagonals for v. A tile of rows
// x vectors stays in registers while the partners pass, so that a load of a partner serves kRows rows.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/local_bias/cpu_backward.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>

#include "aft/ops/local_bias.h"
#include "ops/common/dispatch.h"
#include "ops/local_bias/banded_product.h"
#include "ops/local_bias/check.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::local_bias::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kRows = 4;
// 16 accumulators of AVX-512's 32 registers, 8 of AVX2's 16.
constexpr int64_t kVectors = HWY_TARGET == HWY_AVX3 ? 4 : 2;

// `rows` output rows from i0, `vectors` vectors of columns from c (the last one of `rest` lanes).
template <int64_t vectors, typename T, class Load, class Store>
HWY_INLINE void tile(const BandedProduct<T>& p, int64_t i0, int64_t rows, const Load load, const Store store) {
  const hn::ScalableTag<T> d;
  using V = decltype(hn::Zero(d));
  V sum[kRows][vectors];
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t x = 0; x < vectors; ++x) sum[r][x] = hn::Zero(d);
  }
  // Partners [begin, end), those rows only that see them.
  const auto some_rows = [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t partner = begin; partner < end; ++partner) {
      V row[vectors];
      for (int64_t x = 0; x < vectors; ++x) row[x] = load(partner, x);
      for (int64_t r = 0; r < kRows; ++r) {
        if (r >= rows || partner < i0 + r - p.before || partner > i0 + r + p.after) continue;
        const V w = hn::Set(d, p.coefficient(i0 + r, partner));
        for (int64_t x = 0; x < vectors; ++x) sum[r][x] = hn::MulAdd(w, row[x], sum[r][x]);
      }
    }
  };
  const int64_t begin = std::max<int64_t>(0, i0 - p.before);
  const int64_t end = std::min(p.count, i0 + rows + p.after);
  // Every one of kRows rows sees the partners [common, uncommon); a short last tile takes the careful loop throughout.
  const int64_t common = rows == kRows ? std::clamp(i0 + kRows - 1 - p.before, begin, end) : end;
  const int64_t uncommon = std::clamp(i0 + p.after + 1, common, end);
  some_rows(begin, common);
  for (int64_t partner = common; partner < uncommon; ++partner) {
    V row[vectors];
    for (int64_t x = 0; x < vectors; ++x) row[x] = load(partner, x);
    for (int64_t r = 0; r < kRows; ++r) {
      const V w = hn::Set(d, p.coefficient(i0 + r, partner));
      for (int64_t x = 0; x < vectors; ++x) sum[r][x] = hn::MulAdd(w, row[x], sum[r][x]);
    }
  }
  some_rows(uncommon, end);
  for (int64_t r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    for (int64_t x = 0; x < vectors; ++x) store(i0 + r, x, sum[r][x]);
  }
}

template <typename T>
void product_rows(const BandedProduct<T>& p, int64_t begin, int64_t end) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t i0 = begin; i0 < end; i0 += kRows) {
    const int64_t rows = std::min(kRows, end - i0);
    int64_t c = 0;
    const auto load = [&](int64_t partner, int64_t x)
                          HWY_ATTR { return hn::LoadU(d, p.partners + partner * p.width + c + x * lanes); };
    const auto store = [&](int64_t i, int64_t x, auto value)
                           HWY_ATTR { hn::StoreU(value, d, p.out + i * p.width + c + x * lanes); };
    for (; c + kVectors * lanes <= p.width; c += kVectors * lanes) tile<kVectors>(p, i0, rows, load, store);
    for (; c + lanes <= p.width; c += lanes) tile<1>(p, i0, rows, load, store);
    if (c == p.width) continue;
    const int64_t rest = p.width - c;
    const auto mask = hn::FirstN(d, static_cast<size_t>(rest));
    tile<1>(
        p, i0, rows,
        [&](int64_t partner, int64_t) HWY_ATTR { return hn::MaskedLoad(mask, d, p.partners + partner * p.width + c); },
        [&](int64_t i, int64_t, auto value) HWY_ATTR {
          HWY_ALIGN T lane[HWY_MAX_BYTES / sizeof(T)];
          hn::Store(value, d, lane);
          std::copy_n(lane, rest, p.out + i * p.width + c);
        });
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
void backward(const LocalBiasBackward<T>& p, const Cpu& cpu) {
  const LocalBiasShape& s = p.in.shape;
  const int64_t tasks = (s.rows + kTaskRows - 1) / kTaskRows;
  if (tasks == 0 || s.width == 0) return;
  cpu.parallel.run(s.heads * tasks, [&](int64_t task) {
    const int64_t head = task / tasks;
    const int64_t begin = task % tasks * kTaskRows;
    const int64_t end = std::min(s.rows, begin + kTaskRows);
    if (p.grad_u != nullptr) AFT_DISPATCH(product_rows<T>)(product_of_u(p, head), begin, end);
    if (p.grad_v != nullptr) AFT_DISPATCH(product_rows<T>)(product_of_v(p, head), begin, end);
  });
}

}  // namespace
}  // namespace local_bias

template <typename T>
void local_bias_backward(const LocalBiasBackward<T>& p, const Cpu& cpu) {
  local_bias::check_sizes(p);
  local_bias::backward(p, cpu);
}

template void local_bias_backward<float>(const LocalBiasBackward<float>&, const Cpu&);
template void local_bias_backward<double>(const LocalBiasBackward<double>&, const Cpu&);

}  // namespace aft::ops
#endif

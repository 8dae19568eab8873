#include "runtime/kernels.h"

#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/kernels.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::runtime::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
namespace simd = aft::ops::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

constexpr int64_t kLanes = hn::MaxLanes(D());  // all targets here have vectors of a fixed size

// Asks for the `N` floats that lie a page ahead in a stream, for the second-level cache: measured the best of distances
// from 1 to 16 KiB and of all levels.
template <int64_t N>
HWY_INLINE void prefetch(const float* stream) {
  constexpr int64_t kAhead = 1024;
  for (int64_t line = 0; line < N; line += 16) __builtin_prefetch(stream + kAhead + line, 0, 2);
}

// One row at a time in four sums: the weights are then one unbroken stream, which the hardware prefetches best (several
// rows at once read at half the speed), and the explicit prefetch carries it over the joints between rows.
HWY_INLINE float dot(const float* HWY_RESTRICT w, const float* HWY_RESTRICT x, int64_t columns) {
  const D d;
  constexpr int64_t n = kLanes;
  V s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  int64_t c = 0;
  for (; c + 4 * n <= columns; c += 4 * n) {
    prefetch<4 * n>(w + c);
    s0 = hn::MulAdd(hn::LoadU(d, w + c), hn::LoadU(d, x + c), s0);
    s1 = hn::MulAdd(hn::LoadU(d, w + c + n), hn::LoadU(d, x + c + n), s1);
    s2 = hn::MulAdd(hn::LoadU(d, w + c + 2 * n), hn::LoadU(d, x + c + 2 * n), s2);
    s3 = hn::MulAdd(hn::LoadU(d, w + c + 3 * n), hn::LoadU(d, x + c + 3 * n), s3);
  }
  for (; c < columns; c += n) {
    s0 = hn::MulAdd(simd::LoadSome(d, w + c, columns - c), simd::LoadSome(d, x + c, columns - c), s0);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
}

void matvec(const float* w, int64_t rows, int64_t columns, int64_t stride, const float* x, const float* bias,
            bool add_to_y, float* y) {
  // A bias that comes from memory at the end of a row would hold up the stream.
  for (int64_t r = 0; bias != nullptr && r < rows; r += 16) __builtin_prefetch(bias + r);
  for (int64_t r = 0; r < rows; ++r) {
    const float sum = dot(w + r * stride, x, columns) + (bias == nullptr ? 0.0F : bias[r]);
    y[r] = add_to_y ? y[r] + sum : sum;
  }
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y) {
  const D d;
  V sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kLanes) sum = hn::Add(sum, simd::LoadSome(d, x + i, n - i));
  const float mean = hn::GetLane(hn::SumOfLanes(d, sum)) / static_cast<float>(n);
  const V vmean = hn::Set(d, mean);
  V squares = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kLanes) {
    V centred = hn::Sub(simd::LoadSome(d, x + i, n - i), vmean);
    if (n - i < kLanes) centred = hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n - i)), centred);
    squares = hn::MulAdd(centred, centred, squares);
  }
  const float variance = hn::GetLane(hn::SumOfLanes(d, squares)) / static_cast<float>(n);
  const V scale = hn::Set(d, 1.0F / std::sqrt(variance + eps));
  for (int64_t i = 0; i < n; i += kLanes) {
    const V normal = hn::Mul(hn::Sub(simd::LoadSome(d, x + i, n - i), vmean), scale);
    simd::StoreSome(hn::MulAdd(normal, simd::LoadSome(d, weight + i, n - i), simd::LoadSome(d, bias + i, n - i)), d,
                    y + i, n - i);
  }
}

void add(const float* bias, int64_t n, float* x) {
  const D d;
  for (int64_t i = 0; i < n; i += kLanes) {
    simd::StoreSome(hn::Add(simd::LoadSome(d, x + i, n - i), simd::LoadSome(d, bias + i, n - i)), d, x + i, n - i);
  }
}

// ln Phi(-a) for a >= 0: a polynomial fitted on [0, 6] so that a Phi(-a) is off by at most 5e-9, then a straight line
// steep enough to reach 0.
HWY_INLINE V log_normal_tail(D d, V a) {
  constexpr float kCoefficients[] = {-1.5603113467932417e-08F, 4.847148034059501e-07F,  -6.433242560888175e-06F,
                                     4.6265751734608784e-05F,  -0.0001708411582512781F, -4.767753853229806e-05F,
                                     0.004873891826719046F,    -0.03638981282711029F,   -0.3182940185070038F,
                                     -0.797886312007904F,      -0.6931471228599548F};
  const V inside = hn::Min(a, hn::Set(d, 6.0F));
  V p = hn::Set(d, kCoefficients[0]);
  for (int i = 1; i < 11; ++i) p = hn::MulAdd(p, inside, hn::Set(d, kCoefficients[i]));
  return hn::NegMulAdd(hn::Sub(a, inside), hn::Set(d, 16.0F), p);
}

void gelu(const float* bias, int64_t n, float* x) {
  const D d;
  for (int64_t i = 0; i < n; i += kLanes) {
    V z = simd::LoadSome(d, x + i, n - i);
    if (bias != nullptr) z = hn::Add(z, simd::LoadSome(d, bias + i, n - i));
    const V tail = simd::ExpNegative(d, log_normal_tail(d, hn::Abs(z)));
    const V product = hn::Mul(z, tail);
    simd::StoreSome(hn::IfThenElse(hn::Lt(z, hn::Zero(d)), product, hn::Sub(z, product)), d, x + i, n - i);
  }
}

void softmax(float scale, int64_t n, float* x) {
  const D d;
  float max = x[0];
  for (int64_t i = 1; i < n; ++i) max = x[i] > max ? x[i] : max;
  const V vmax = hn::Set(d, max);
  const V vscale = hn::Set(d, scale);
  V sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += kLanes) {
    V e = simd::ExpNegative(d, hn::Mul(hn::Sub(simd::LoadSome(d, x + i, n - i), vmax), vscale));
    if (n - i < kLanes) e = hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n - i)), e);
    sum = hn::Add(sum, e);
    simd::StoreSome(e, d, x + i, n - i);
  }
  const V inverse = hn::Set(d, 1.0F / hn::GetLane(hn::SumOfLanes(d, sum)));
  for (int64_t i = 0; i < n; i += kLanes) {
    simd::StoreSome(hn::Mul(simd::LoadSome(d, x + i, n - i), inverse), d, x + i, n - i);
  }
}

void weighted_sum(const float* values, int64_t rows, int64_t columns, int64_t stride, const float* weights, float* y) {
  const D d;
  for (int64_t c = 0; c < columns; c += kLanes) {
    V even = hn::Zero(d);
    V odd = hn::Zero(d);
    int64_t i = 0;
    for (; i + 2 <= rows; i += 2) {
      even = hn::MulAdd(hn::Set(d, weights[i]), simd::LoadSome(d, values + i * stride + c, columns - c), even);
      odd = hn::MulAdd(hn::Set(d, weights[i + 1]), simd::LoadSome(d, values + (i + 1) * stride + c, columns - c), odd);
    }
    if (i < rows) {
      even = hn::MulAdd(hn::Set(d, weights[i]), simd::LoadSome(d, values + i * stride + c, columns - c), even);
    }
    simd::StoreSome(hn::Add(even, odd), d, y + c, columns - c);
  }
}

float stream_sum(const float* x, int64_t n) {
  const D d;
  constexpr int kSums = 8;
  V sums[kSums];
  for (V& sum : sums) sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + kSums * kLanes <= n; i += kSums * kLanes) {
    prefetch<kSums * kLanes>(x + i);
    for (int s = 0; s < kSums; ++s) sums[s] = hn::Add(sums[s], hn::LoadU(d, x + i + s * kLanes));
  }
  for (; i < n; i += kLanes) sums[0] = hn::Add(sums[0], simd::LoadSome(d, x + i, n - i));
  for (int s = 1; s < kSums; ++s) sums[0] = hn::Add(sums[0], sums[s]);
  return hn::GetLane(hn::SumOfLanes(d, sums[0]));
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace aft::runtime::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::runtime::kernels {

HWY_EXPORT(matvec);
HWY_EXPORT(layer_norm);
HWY_EXPORT(add);
HWY_EXPORT(gelu);
HWY_EXPORT(softmax);
HWY_EXPORT(weighted_sum);
HWY_EXPORT(stream_sum);
HWY_EXPORT(target_name);

void matvec(const float* w, int64_t rows, int64_t columns, int64_t stride, const float* x, const float* bias,
            bool add_to_y, float* y) {
  HWY_DYNAMIC_DISPATCH(matvec)(w, rows, columns, stride, x, bias, add_to_y, y);
}
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(layer_norm)(x, weight, bias, eps, n, y);
}
void add(const float* bias, int64_t n, float* x) { HWY_DYNAMIC_DISPATCH(add)(bias, n, x); }
void gelu(const float* bias, int64_t n, float* x) { HWY_DYNAMIC_DISPATCH(gelu)(bias, n, x); }
void softmax(float scale, int64_t n, float* x) { HWY_DYNAMIC_DISPATCH(softmax)(scale, n, x); }
void weighted_sum(const float* values, int64_t rows, int64_t columns, int64_t stride, const float* weights, float* y) {
  HWY_DYNAMIC_DISPATCH(weighted_sum)(values, rows, columns, stride, weights, y);
}
float stream_sum(const float* x, int64_t n) { return HWY_DYNAMIC_DISPATCH(stream_sum)(x, n); }
const char* target_name() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

}  // namespace aft::runtime::kernels
#endif

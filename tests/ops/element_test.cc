// 16-bit elements to float and back, as every SIMD target: every pattern, every tie, every neighbour of a tie.

#include "tests/ops/element.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/ops/backend.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/ops/element_test.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

template <typename E>
void Widened(const E* from, float* to, int64_t size) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < size; i += lanes) StoreSome(LoadSome(d, from + i, size - i), d, to + i, size - i);
}
template <typename E>
void Narrowed(const float* from, E* to, int64_t size) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = 0; i < size; i += lanes) StoreOut(LoadSome(d, from + i, size - i), d, to + i, size - i, false);
}

void WidenedBFloat16(const BFloat16* from, float* to, int64_t size) { Widened(from, to, size); }
void WidenedFloat16(const Float16* from, float* to, int64_t size) { Widened(from, to, size); }
void NarrowedBFloat16(const float* from, BFloat16* to, int64_t size) { Narrowed(from, to, size); }
void NarrowedFloat16(const float* from, Float16* to, int64_t size) { Narrowed(from, to, size); }

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {

HWY_EXPORT(WidenedBFloat16);
HWY_EXPORT(WidenedFloat16);
HWY_EXPORT(NarrowedBFloat16);
HWY_EXPORT(NarrowedFloat16);

namespace test {
namespace {

std::vector<float> widen(const std::vector<BFloat16>& x) {
  std::vector<float> y(x.size());
  HWY_DYNAMIC_DISPATCH(WidenedBFloat16)(x.data(), y.data(), int64_t(x.size()));
  return y;
}
std::vector<float> widen(const std::vector<Float16>& x) {
  std::vector<float> y(x.size());
  HWY_DYNAMIC_DISPATCH(WidenedFloat16)(x.data(), y.data(), int64_t(x.size()));
  return y;
}
void narrow(const std::vector<float>& x, std::vector<BFloat16>& y) {
  HWY_DYNAMIC_DISPATCH(NarrowedBFloat16)(x.data(), y.data(), int64_t(x.size()));
}
void narrow(const std::vector<float>& x, std::vector<Float16>& y) {
  HWY_DYNAMIC_DISPATCH(NarrowedFloat16)(x.data(), y.data(), int64_t(x.size()));
}

template <typename E>
class Element : public ::testing::Test {};
using Types = ::testing::Types<BFloat16, Float16>;
TYPED_TEST_SUITE(Element, Types);

TYPED_TEST(Element, EveryPatternIsItsValueAndComesBack) {
  using E = TypeParam;
  std::vector<E> all(0x10000);
  for (uint32_t i = 0; i < 0x10000; ++i) all[i].bits = static_cast<uint16_t>(i);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const TargetScope scope(target);
    const std::vector<float> wide = widen(all);
    std::vector<E> back(all.size());
    narrow(wide, back);
    for (uint32_t i = 0; i < 0x10000; ++i) {
      const double value = value_of<E>(i);
      if (std::isnan(value)) {
        ASSERT_TRUE(std::isnan(wide[i])) << std::hex << i << ", " << hwy::TargetName(target);
        ASSERT_TRUE(std::isnan(value_of<E>(back[i].bits))) << std::hex << i << ", " << hwy::TargetName(target);
        continue;
      }
      ASSERT_EQ(double(wide[i]), value) << std::hex << i << ", " << hwy::TargetName(target);
      ASSERT_EQ(std::signbit(wide[i]), std::signbit(value)) << std::hex << i << ", " << hwy::TargetName(target);
      ASSERT_EQ(back[i].bits, i) << std::hex << i << ", " << hwy::TargetName(target);
      ASSERT_EQ(element<E>(wide[i]).bits, i) << "tests/ops/element.h";
    }
  }
}

// Between every two neighbours: the middle goes to the even one, what is next to it to the nearer one.
TYPED_TEST(Element, RoundsToNearestTiesToEven) {
  using E = TypeParam;
  constexpr uint32_t kInfinity =
      (0x8000 >> Format<E>::kMantissaBits << Format<E>::kMantissaBits) - (1 << Format<E>::kMantissaBits);
  std::vector<float> x;
  std::vector<uint32_t> want;
  for (const uint32_t sign : {0u, 0x8000u}) {
    for (uint32_t low = 0; low < kInfinity; ++low) {
      // Past the largest number the next step of the same size counts as infinite.
      const double below = value_of<E>(low);
      const double above = low + 1 < kInfinity ? value_of<E>(low + 1) : 2 * below - value_of<E>(low - 1);
      const float middle = static_cast<float>((below + above) / 2 * (sign != 0 ? -1 : 1));
      if (double(middle) != (below + above) / 2 * (sign != 0 ? -1 : 1)) continue;  // below the float subnormals
      x.insert(x.end(), {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 2 * middle)});
      want.insert(want.end(), {sign | low, sign | (low % 2 == 0 ? low : low + 1), sign | (low + 1)});
    }
    for (const double huge : {3.4028234e38, HUGE_VAL}) {
      x.push_back(static_cast<float>(sign != 0 ? -huge : huge));
      want.push_back(sign | kInfinity);
    }
    for (const float tiny : {0x1p-149f, 0x1p-126f}) {
      if (kInfinity != 0x7C00) continue;  // ordinary numbers of bfloat16
      x.push_back(sign != 0 ? -tiny : tiny);
      want.push_back(sign);
    }
  }
  for (const uint32_t nan : {0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0xFFFFFFFFu, 0x7FC00000u}) {
    x.push_back(std::bit_cast<float>(nan));
    want.push_back(0xFFFFFFFF);
  }
  for (size_t i = 0; i < x.size(); ++i) {
    if (want[i] != 0xFFFFFFFF) {
      ASSERT_EQ(element<E>(rounded<E>(x[i])).bits, want[i]) << x[i] << ", tests/ops/element.h";
    }
  }
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const TargetScope scope(target);
    std::vector<E> got(x.size());
    narrow(x, got);
    for (size_t i = 0; i < x.size(); ++i) {
      if (want[i] == 0xFFFFFFFF) {
        ASSERT_TRUE(std::isnan(value_of<E>(got[i].bits))) << i << ", " << hwy::TargetName(target);
      } else {
        ASSERT_EQ(got[i].bits, want[i]) << x[i] << ", " << hwy::TargetName(target);
      }
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace aft::ops
#endif

// Vectors of the accumulation type from and to the elements of a tensor, for every SIMD target. Included by kernels
// inside foreach_target.
//
// D is the tag of the accumulation type; E is that type, or BFloat16 or Float16 where it is float. 16-bit elements are
// exact in float, and are rounded to nearest, ties to even, when stored: NaN stays NaN, too large becomes infinite.
// (Highway 1.0 has conversions that truncate: all of bfloat16, binary16 where it is emulated.)

#if defined(AFT_OPS_COMMON_ELEMENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_COMMON_ELEMENT_INL_H_
#undef AFT_OPS_COMMON_ELEMENT_INL_H_
#else
#define AFT_OPS_COMMON_ELEMENT_INL_H_
#endif

#include <cstring>
#include <type_traits>

#include "aft/ops/operands.h"
#include "hwy/highway.h"

// F16C comes with AVX2 and AVX-512; the others convert binary16 in integers.
#undef AFT_OPS_NATIVE_FLOAT16
#if HWY_TARGET <= HWY_AVX2 && HWY_ARCH_X86 && !defined(HWY_DISABLE_F16C)
#define AFT_OPS_NATIVE_FLOAT16 1
#else
#define AFT_OPS_NATIVE_FLOAT16 0
#endif

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using Float32Tag = hn::ScalableTag<float>;
using Float32Vec = hn::Vec<Float32Tag>;
using Bits16Tag = hn::Rebind<uint16_t, Float32Tag>;  // as many lanes of half the size
using Bits16Vec = hn::Vec<Bits16Tag>;

// What 16-bit elements are worth in float, by their bits.
HWY_INLINE Float32Vec Widen(Float32Tag d, BFloat16, Bits16Vec bits) {
  const hn::RebindToUnsigned<Float32Tag> du;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}

HWY_INLINE Float32Vec Widen(Float32Tag d, Float16, Bits16Vec bits) {
#if AFT_OPS_NATIVE_FLOAT16
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, Float32Tag>(), bits));
#else
  const hn::RebindToUnsigned<Float32Tag> du;
  const auto wide = hn::PromoteTo(du, bits);
  const auto magnitude = hn::ShiftLeft<13>(hn::And(wide, hn::Set(du, 0x7FFF)));
  const auto exponent = hn::And(magnitude, hn::Set(du, 0x7C00 << 13));
  const auto normal = hn::Add(magnitude, hn::Set(du, (127 - 15) << 23));
  const auto infinite = hn::Add(normal, hn::Set(du, (128 - 16) << 23));
  // 2^-14 (1 + mantissa) - 2^-14: exact.
  const auto least = hn::Set(du, (127 - 14) << 23);
  const auto subnormal = hn::BitCast(du, hn::Sub(hn::BitCast(d, hn::Add(magnitude, least)), hn::BitCast(d, least)));
  const auto value = hn::IfThenElse(hn::Eq(exponent, hn::Zero(du)), subnormal,
                                    hn::IfThenElse(hn::Eq(exponent, hn::Set(du, 0x7C00 << 13)), infinite, normal));
  return hn::BitCast(d, hn::Or(value, hn::ShiftLeft<16>(hn::And(wide, hn::Set(du, 0x8000)))));
#endif
}

// The bits of the 16-bit elements nearest to `v`.
HWY_INLINE Bits16Vec Narrow(Float32Tag, BFloat16, Float32Vec v) {
  const Bits16Tag d16;
  const hn::RebindToUnsigned<Float32Tag> du;
  const hn::RebindToSigned<Float32Tag> di;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  const auto kept = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
  return hn::DemoteTo(d16, hn::BitCast(di, hn::ShiftRight<16>(kept)));
}

HWY_INLINE Bits16Vec Narrow(Float32Tag d, Float16, Float32Vec v) {
  const Bits16Tag d16;
#if AFT_OPS_NATIVE_FLOAT16
  (void)d;
  return hn::BitCast(d16, hn::DemoteTo(hn::Rebind<hwy::float16_t, Float32Tag>(), v));
#else
  const hn::RebindToUnsigned<Float32Tag> du;
  const hn::RebindToSigned<Float32Tag> di;
  const auto bits = hn::BitCast(du, v);
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFF));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1));
  const auto normal =
      hn::ShiftRight<13>(hn::Sub(hn::Add(magnitude, hn::Add(odd, hn::Set(du, 0xFFF))), hn::Set(du, (127 - 15) << 23)));
  // Added to 1/2, whose last bit is worth 2^-24, a number below 2^-14 is rounded to the subnormals of binary16.
  const auto half = hn::Set(du, 126u << 23);
  const auto subnormal = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), hn::BitCast(d, half))), half);
  const auto infinite = hn::IfThenElse(
      hn::RebindMask(du, hn::IsNaN(v)),
      hn::Or(hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 0x3FF)), hn::Set(du, 0x7E00)), hn::Set(du, 0x7C00));
  const auto value = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, (127 - 14) << 23)), subnormal,
                                    hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, (127 + 16) << 23)), normal, infinite));
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000));
  return hn::DemoteTo(d16, hn::BitCast(di, hn::Or(value, sign)));
#endif
}

// A whole vector, at any address.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE hn::Vec<D> LoadWhole(D d, const T* from) {
  return hn::LoadU(d, from);
}
HWY_INLINE Float32Vec LoadWhole(Float32Tag d, const BFloat16* from) {
  return Widen(d, BFloat16(), hn::LoadU(Bits16Tag(), &from->bits));
}
HWY_INLINE Float32Vec LoadWhole(Float32Tag d, const Float16* from) {
  return Widen(d, Float16(), hn::LoadU(Bits16Tag(), &from->bits));
}

template <class D, typename T = hn::TFromD<D>>
HWY_INLINE void StoreWhole(hn::Vec<D> v, D d, T* to) {
  hn::StoreU(v, d, to);
}
HWY_INLINE void StoreWhole(Float32Vec v, Float32Tag d, BFloat16* to) {
  hn::StoreU(Narrow(d, BFloat16(), v), Bits16Tag(), &to->bits);
}
HWY_INLINE void StoreWhole(Float32Vec v, Float32Tag d, Float16* to) {
  hn::StoreU(Narrow(d, Float16(), v), Bits16Tag(), &to->bits);
}

// The same past the caches, to the boundary of a vector.
template <class D, typename T = hn::TFromD<D>>
HWY_INLINE void StreamWhole(hn::Vec<D> v, D d, T* to) {
  hn::Stream(v, d, to);
}
HWY_INLINE void StreamWhole(Float32Vec v, Float32Tag d, BFloat16* to) {
  hn::Stream(Narrow(d, BFloat16(), v), Bits16Tag(), &to->bits);
}
HWY_INLINE void StreamWhole(Float32Vec v, Float32Tag d, Float16* to) {
  hn::Stream(Narrow(d, Float16(), v), Bits16Tag(), &to->bits);
}

// Loads and stores of a vector of which only the first `count` lanes lie inside the row. The mask tells the compiler
// that a part is never more than a vector.
template <typename E, class D>
HWY_INLINE size_t PartBytes(D d, int64_t count) {
  return (static_cast<size_t>(count) & (hn::Lanes(d) - 1)) * sizeof(E);
}

template <class D, typename E>
HWY_INLINE hn::Vec<D> LoadSome(D d, const E* from, int64_t count) {
  if (HWY_LIKELY(count >= static_cast<int64_t>(hn::Lanes(d)))) return LoadWhole(d, from);
  HWY_ALIGN E lanes[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)] = {};
  std::memcpy(lanes, from, PartBytes<E>(d, count));
  return LoadWhole(d, lanes);
}

// One element in every lane.
template <class D, typename E>
HWY_INLINE hn::Vec<D> LoadBroadcast(D d, const E* from) {
  if constexpr (std::is_same_v<E, hn::TFromD<D>>) {
    return hn::Set(d, *from);
  } else {
    return hn::Set(d, hn::GetLane(LoadSome(d, from, 1)));
  }
}

template <class D, typename E>
HWY_INLINE void StoreSome(hn::Vec<D> v, D d, E* to, int64_t count) {
  if (HWY_LIKELY(count >= static_cast<int64_t>(hn::Lanes(d)))) {
    StoreWhole(v, d, to);
    return;
  }
  HWY_ALIGN E lanes[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)];
  StoreWhole(v, d, lanes);
  std::memcpy(to, lanes, PartBytes<E>(d, count));
}

// Past the caches if `stream`: for rows of which every store is a whole aligned vector (see streams_past_caches).
template <class D, typename E>
HWY_INLINE void StoreOut(hn::Vec<D> v, D d, E* to, int64_t count, bool stream) {
  if (stream) {
    StreamWhole(v, d, to);
  } else {
    StoreSome(v, d, to, count);
  }
}

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

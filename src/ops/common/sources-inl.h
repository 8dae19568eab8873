// Reading a source and writing its gradient, wherever it lies (sources.h). Included by kernels inside foreach_target.

#if defined(AFT_OPS_COMMON_SOURCES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_COMMON_SOURCES_INL_H_
#undef AFT_OPS_COMMON_SOURCES_INL_H_
#else
#define AFT_OPS_COMMON_SOURCES_INL_H_
#endif

#include <limits>

#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/sources.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

template <class D, typename X>
HWY_INLINE hn::Vec<D> LoadKey(D d, const X* row, const ChannelVector& c) {
  return c.shares_key ? LoadBroadcast(d, row + c.key) : LoadSome(d, row + c.key, c.count);
}

// Of a source of this call, s >= 0: -inf where the mask hides it.
template <class D, typename E>
HWY_INLINE hn::Vec<D> OwnKey(D d, const SourceRows<E>& rows, const ChannelVector& c, int64_t s) {
  if (HWY_UNLIKELY(rows.mask != nullptr) && !rows.mask[s]) {
    return hn::Set(d, -std::numeric_limits<hn::TFromD<D>>::infinity());
  }
  return LoadKey(d, rows.k + s * rows.k_stride, c);
}

template <class D, typename E>
HWY_INLINE hn::Vec<D> OwnValue(D d, const SourceRows<E>& rows, const ChannelVector& c, int64_t s) {
  return LoadSome(d, rows.v + s * rows.v_stride + c.begin, c.count);
}

// Of any source.
template <class D, typename E>
HWY_INLINE hn::Vec<D> SourceKey(D d, const SourceRows<E>& rows, const ChannelVector& c, int64_t s) {
  if (HWY_LIKELY(s >= 0)) return OwnKey(d, rows, c, s);
  return LoadKey(d, rows.ring_k + rows.slot(s) * rows.ring_k_stride, c);
}

template <class D, typename E>
HWY_INLINE hn::Vec<D> SourceValue(D d, const SourceRows<E>& rows, const ChannelVector& c, int64_t s) {
  if (HWY_LIKELY(s >= 0)) return OwnValue(d, rows, c, s);
  return LoadSome(d, rows.ring_v + rows.slot(s) * rows.ring_v_stride + c.begin, c.count);
}

// Writes dv, with what the ring after the call adds to it.
template <class D, typename E, class V = hn::Vec<D>>
HWY_INLINE void WriteValueGrad(D d, const SourceRows<E>& rows, const SourceGradRows<E>& to, const ChannelVector& c,
                               int64_t s, V dv) {
  if (s >= to.ring_begin && to.final_ring_v != nullptr) {
    dv = hn::Add(dv, LoadSome(d, to.final_ring_v + rows.slot(s) * rows.ring_v_stride + c.begin, c.count));
  }
  if (HWY_UNLIKELY(rows.masked(s))) dv = hn::Zero(d);
  if (s >= 0) {
    StoreOut(dv, d, to.v + s * to.v_stride + c.begin, c.count, to.streams_v);
  } else if (to.initial_ring_v != nullptr) {
    StoreSome(dv, d, to.initial_ring_v + rows.slot(s) * rows.ring_v_stride + c.begin, c.count);
  }
}

// Writes dk likewise; a key that its whole head shares is written once, of the sum over the head's channels.
template <class D, typename E, class V = hn::Vec<D>>
HWY_INLINE void WriteKeyGrad(D d, const SourceRows<E>& rows, const SourceGradRows<E>& to, const ChannelVector& c,
                             int64_t s, V dk) {
  const int64_t count = c.key_count();
  if (s >= to.ring_begin && to.final_ring_k != nullptr) {
    dk = hn::Add(dk, LoadSome(d, to.final_ring_k + rows.slot(s) * rows.ring_k_stride + c.key, count));
  }
  if (HWY_UNLIKELY(rows.masked(s))) dk = hn::Zero(d);
  if (s >= 0) {
    StoreOut(dk, d, to.k + s * to.k_stride + c.key, count, to.streams_k);
  } else if (to.initial_ring_k != nullptr) {
    StoreSome(dk, d, to.initial_ring_k + rows.slot(s) * rows.ring_k_stride + c.key, count);
  }
}

// What the channels of a vector ask of the key that they share.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::TFromD<D> SumOfChannels(D d, V dk, const ChannelVector& c) {
  if (c.count < static_cast<int64_t>(hn::Lanes(d))) dk = hn::IfThenElseZero(hn::FirstN(d, c.count), dk);
  return hn::GetLane(hn::SumOfLanes(d, dk));
}

}  // namespace aft::ops::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

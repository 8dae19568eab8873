// What the backward with and without a band share: the rows a task reads and writes, a target's a and b, and what a
// source's sums come to. Included by kernels inside foreach_target.

#if defined(AFT_OPS_WINDOW_BACKWARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef AFT_OPS_WINDOW_BACKWARD_INL_H_
#undef AFT_OPS_WINDOW_BACKWARD_INL_H_
#else
#define AFT_OPS_WINDOW_BACKWARD_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "aft/ops/window.h"
#include "hwy/highway.h"
#include "ops/common/element-inl.h"
#include "ops/common/exp-inl.h"
#include "ops/common/gate-inl.h"
#include "ops/window/channels-inl.h"
#include "ops/window/plan.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

template <class D, typename E>
class BackwardTask {
 public:
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;

  BackwardTask(const WindowBackward<E>& params, const WindowTask& window_task)
      : p(params), shape(alone(params.in.shape, window_task.sequence)), task(window_task) {
    const Sequence& one = task.sequence;
    if (shape.gate != Gate::kNone) {
      q = first_row(p.in.q, one) + task.begin;
      grad_q = first_row(p.grad_q, one) + task.begin;
    }
    gy = first_row(p.grad_y, one) + task.begin;
    key_per_head = shape.key_channels != shape.channels;
    key_begin = key_per_head ? task.head : task.begin;
    width = task.end - task.begin;
    vectors = (width + lanes - 1) / lanes;
    chunk = chunk_rows(shape);
    const int64_t tokens = token_count(p.in.shape);
    streams_q = grad_q != nullptr && streams_past_caches(shape, tokens, grad_q, p.grad_q.time_stride, width);
    grads.k = first_row(p.grad_k, one) + key_begin;
    grads.v = first_row(p.grad_v, one) + task.begin;
    grads.k_stride = p.grad_k.time_stride;
    grads.v_stride = p.grad_v.time_stride;
    grads.streams_k = !key_per_head && streams_past_caches(shape, tokens, grads.k, grads.k_stride, width);
    grads.streams_v = streams_past_caches(shape, tokens, grads.v, grads.v_stride, width);
    grads.ring_begin = shape.time - shape.left;
    const auto ring = [&](auto* data, int64_t channels, int64_t begin) {
      return data == nullptr ? nullptr : data + one.index * shape.left * channels + begin;
    };
    grads.final_ring_k = ring(p.grad_final_state.ring_key, shape.key_channels, key_begin);
    grads.final_ring_v = ring(p.grad_final_state.ring_value, shape.channels, task.begin);
    grads.initial_ring_k = ring(p.grad_initial_state.ring_key, shape.key_channels, key_begin);
    grads.initial_ring_v = ring(p.grad_initial_state.ring_value, shape.channels, task.begin);
    has_final = p.grad_final_state.num != nullptr || p.grad_final_state.den != nullptr;
  }

  void flush() const {
    if (streams_q || grads.streams_k || grads.streams_v) hwy::FlushStream();
  }

  const WindowBackward<E>& p;
  const WindowShape shape;  // of the sequence alone
  const WindowTask& task;
  const E* q = nullptr;
  E* grad_q = nullptr;
  const E* gy = nullptr;
  SourceGradRows<E> grads;
  bool key_per_head = false;
  int64_t key_begin = 0;
  D d;
  static constexpr int64_t lanes = static_cast<int64_t>(hn::MaxLanes(D()));
  int64_t width = 0, vectors = 0, chunk = 0;
  bool streams_q = false;
  bool has_final = false;  // the final sums have a gradient

  int64_t count(int64_t j) const { return std::min(lanes, width - j * lanes); }

  // den and num under any common scale, num less by 1 / value_scale; a and b come out times that of den. Nothing was
  // seen where den is 0: all three are 0 whatever the query and gy hold.
  HWY_INLINE TargetGrad<V> target_grad(int64_t t, int64_t j, V den, V num, V value_scale) const {
    const int64_t at = j * lanes;
    const V g = LoadSome(d, gy + t * p.grad_y.time_stride + at, count(j));
    const V query = grad_q == nullptr ? hn::Zero(d) : LoadSome(d, q + t * p.in.q.time_stride + at, count(j));
    const V ratio = hn::Mul(hn::Div(num, den), value_scale);
    return GradOfTarget(d, EvaluateGate(d, shape.gate, query), den, g, ratio, g, ratio);
  }

  HWY_INLINE void write_query(int64_t t, int64_t j, V dq) const {
    if (grad_q != nullptr) StoreOut(dq, d, grad_q + t * p.grad_q.time_stride + j * lanes, count(j), streams_q);
  }

  // What the gradient of the final sums asks of every source before the ring, as a and b of a virtual target at T.
  TargetGrad<V> final_grad(const Channels<D, E>& s, int64_t j) const {
    V g_num = hn::Zero(d);
    V g_den = g_num;
    if (p.grad_final_state.num != nullptr) {
      g_num = s.load_value(p.grad_final_state.num + task.sequence.index * shape.channels + task.begin, j);
    }
    if (p.grad_final_state.den != nullptr) {
      g_den = s.load_key(p.grad_final_state.den + task.sequence.index * shape.key_channels + key_begin, j);
      // A den that serves its whole head is asked for once.
      if (key_per_head) g_den = j == 0 ? hn::IfThenElseZero(hn::FirstN(d, 1), g_den) : hn::Zero(d);
    }
    return {g_num, hn::Neg(g_den), hn::Zero(d)};
  }

  // The sums at the start of a chunk, of vectors [begin, end): saved, or the initial state's.
  void restore_sums(const Channels<D, E>& s, int64_t index, int64_t begin, int64_t end) const {
    const T* from =
        index == 0 ? nullptr : p.saved + (task.sequence.boundary + index - 1) * 3 * shape.channels + task.begin;
    for (int64_t j = begin; j < end; ++j) {
      RunningSum<V> sum = s.initial_sums(p.in.initial_state, j);
      if (index > 0) {
        const int64_t n = count(j);
        sum.max = LoadSome(d, from + j * lanes, n);
        sum.den = LoadSome(d, from + shape.channels + j * lanes, n);
        sum.num = LoadSome(d, from + 2 * shape.channels + j * lanes, n);
      }
      s.store_sums(sum, s.sums + j * kSumParts * lanes);
    }
  }

  // dv = k a, dk = k (v a - b), plus the gradient of the final state's ring, which is a copy. A key that serves its
  // whole head gathers dk in key_sum; write_key writes it.
  HWY_INLINE void write_source(const Channels<D, E>& s, int64_t j, int64_t source, V k, V a, V b, T& key_sum) const {
    const V key = s.source_key(source, j);
    // A value that no target sees may be infinite.
    const V value = hn::IfThenZeroElse(hn::Eq(a, hn::Zero(d)), MaskAbsent(d, key, s.source_value(source, j)));
    const V dv = hn::Mul(k, a);
    const V dk = hn::Mul(k, hn::MulSub(value, a, b));
    WriteValueGrad(d, s.sources, grads, s.at(j), source, dv);
    if (key_per_head) {
      key_sum += SumOfChannels(d, dk, s.at(j));
    } else {
      WriteKeyGrad(d, s.sources, grads, s.at(j), source, dk);
    }
  }

  // dk of a head that shares its key.
  void write_key(const Channels<D, E>& s, int64_t source, T key_sum) const {
    WriteKeyGrad(d, s.sources, grads, s.at(0), source, hn::Set(d, key_sum));
  }

  // The gradient of the initial sums. den_sum gathers the den of a head whose channels share their key; complete with
  // the last vector.
  void write_initial_sums(int64_t j, V g_num, V g_den, T& den_sum) const {
    const int64_t n = count(j);
    if (p.grad_initial_state.num != nullptr) {
      StoreSome(g_num, d, p.grad_initial_state.num + task.sequence.index * shape.channels + task.begin + j * lanes, n);
    }
    if (p.grad_initial_state.den == nullptr) return;
    T* den = p.grad_initial_state.den + task.sequence.index * shape.key_channels + key_begin;
    if (key_per_head) {
      den_sum += hn::GetLane(hn::SumOfLanes(d, g_den));
      *den = den_sum;
    } else {
      StoreSome(g_den, d, den + j * lanes, n);
    }
  }
};

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard

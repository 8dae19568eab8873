// Backward of the windowed operator without a band (AFT-simple). Cost and layout: README.md.
//
// With a[t] = gy gate / D and b[t] = a N/D:   dv[t'] = e^k sum_t a[t]    dk[t'] = v dv - e^k sum_t b[t].

#include "ops/common/for_each_element.h"
#include "ops/window/backward.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/window/cpu_backward_simple.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/window/backward-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::window::HWY_NAMESPACE {

template <class D, typename E>
class BackwardSimple : BackwardTask<D, E> {
  using Base = BackwardTask<D, E>;
  using Base::chunk, Base::d, Base::has_final, Base::key_per_head, Base::lanes, Base::p, Base::shape, Base::task,
      Base::vectors;
  using typename Base::T;
  using typename Base::V;

 public:
  BackwardSimple(const WindowBackward<E>& params, const WindowTask& window_task) : Base(params, window_task) {}

  void run() {
    if (shape.causal) {
      causal();
    } else {
      whole();
    }
    Base::flush();
  }

 private:
  T* later = nullptr;  // [vectors][kSumParts][lanes]: sums of b and a over later targets

  // Everything stands under the maximum M[t] of the running sums at its row: K = e^k 2^-M, a = gy gate / den. Going
  // back in time M falls, so the sums of a and b are rescaled by 2^(M[t] - M[t+1]), mostly 1.
  void causal() {
    constexpr int64_t kKept = 4;  // K, a, b, -M of a row
    const int64_t size = chunk * vectors * kKept * lanes;
    Scratch scratch;
    Channels<D, E> s(shape, task, p.in, scratch);
    later = scratch.take<T>(vectors * kSumParts * lanes);
    T* kept = scratch.take<T>(size);
    const V one = hn::Set(d, T(1));
    const int64_t ahead = s.rows_ahead();
    for (int64_t begin = (shape.time - 1) / chunk * chunk; shape.time > 0 && begin >= 0; begin -= chunk) {
      const int64_t end = std::min(begin + chunk, shape.time);
      Base::restore_sums(s, begin / chunk, 0, vectors);
      T* row = kept;
      for (int64_t t = begin; t < end; ++t) {
        const int64_t next = std::min(t + ahead, end - 1);
        for (int64_t j = 0; j < vectors; ++j, row += kKept * lanes) {
          s.prefetch_sources(j, next, 1);
          prefetch_target(s, j, next);
          keep_row(s, t, j, row);
        }
      }
      if (end == shape.time) {
        for (int64_t j = 0; j < vectors; ++j) start_later(s, j, hn::Load(d, s.sums + j * kSumParts * lanes));
      }
      for (int64_t t = end - 1; t >= begin; --t) {
        row = kept + (t - begin) * vectors * kKept * lanes;
        const int64_t next = std::max(t - ahead, begin);
        T key_sum = 0;
        for (int64_t j = 0; j < vectors; ++j, row += kKept * lanes) {
          prefetch_source_gradients(s, j, next);
          RunningSum<V> sum = s.load_sums(later + j * kSumParts * lanes);
          rescale(sum, hn::Load(d, row + 3 * lanes));
          AddCompensated(hn::Load(d, row + lanes), one, sum.num, sum.num_low);
          AddCompensated(hn::Load(d, row + 2 * lanes), one, sum.den, sum.den_low);
          s.store_sums(sum, later + j * kSumParts * lanes);
          Base::write_source(s, j, t, hn::Load(d, row), sum.num, sum.den, key_sum);
        }
        if (key_per_head) Base::write_key(s, t, key_sum);
      }
    }
    if (p.in.initial_state.position == nullptr) return;
    T den_sum = 0;
    for (int64_t j = 0; j < vectors; ++j) {
      const V max = s.initial_sums(p.in.initial_state, j).max;
      if (shape.time == 0) start_later(s, j, max);
      RunningSum<V> sum = s.load_sums(later + j * kSumParts * lanes);
      rescale(sum, hn::Neg(max));
      Base::write_initial_sums(j, sum.num, hn::Neg(sum.den), den_sum);
    }
  }

  void keep_row(const Channels<D, E>& s, int64_t t, int64_t j, T* row) const {
    T* sum_at = s.sums + j * kSumParts * lanes;
    RunningSum<V> sum = s.load_sums(sum_at);
    const V key = s.own_key(t, j);
    const SplitExp<V> e = Split(d, key);
    AddTerm(d, sum, e.n, e.p, hn::Mul(e.p, MaskAbsent(d, key, s.own_value(t, j))));
    s.store_sums(sum, sum_at);
    const TargetGrad<V> grad = Base::target_grad(t, j, sum.den, sum.num, hn::Set(d, T(1)));
    hn::Store(hn::Mul(e.p, Pow2(d, hn::Sub(e.n, sum.max))), d, row);
    hn::Store(grad.a, d, row + lanes);
    hn::Store(grad.b, d, row + 2 * lanes);
    hn::Store(hn::Neg(sum.max), d, row + 3 * lanes);
    Base::write_query(t, j, grad.query);
  }

  // The sums over later targets begin with what the gradient of the final sums asks.
  void start_later(const Channels<D, E>& s, int64_t j, V max) const {
    RunningSum<V> sum = StartSum(d, hn::Neg(max));
    if (has_final) {
      const auto seen = hn::Gt(max, hn::Set(d, kExponentFloor<T>));
      const TargetGrad<V> grad = Base::final_grad(s, j);
      sum.num = hn::IfThenElseZero(seen, grad.a);
      sum.den = hn::IfThenElseZero(seen, grad.b);
    }
    s.store_sums(sum, later + j * kSumParts * lanes);
  }

  void rescale(RunningSum<V>& sum, V max) const {
    if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Eq(max, sum.max)))) Rescale(d, sum, max);
  }

  // Target and source t of a walk row by row.
  HWY_INLINE void prefetch_target(const Channels<D, E>& s, int64_t j, int64_t t) const {
    s.prefetch(Base::gy, p.grad_y.time_stride, j, t, 1);
    if (Base::grad_q == nullptr) return;
    s.prefetch(Base::q, p.in.q.time_stride, j, t, 1);
    if (!Base::streams_q) s.prefetch_to_write(Base::grad_q, p.grad_q.time_stride, j, t, 1);
  }
  HWY_INLINE void prefetch_source_gradients(const Channels<D, E>& s, int64_t j, int64_t t) const {
    if (!Base::grads.streams_v) s.prefetch_to_write(Base::grads.v, p.grad_v.time_stride, j, t, 1);
    if (!Base::grads.streams_k && !key_per_head) s.prefetch_to_write(Base::grads.k, p.grad_k.time_stride, j, t, 1);
  }

  // Not causal: every target sees every source, so there is one D, one maximum, and one pair of sums.
  void whole() {
    Scratch scratch;
    Channels<D, E> s(shape, task, p.in, scratch);
    later = scratch.take<T>(vectors * kSumParts * lanes);
    const V one = hn::Set(d, T(1));
    const int64_t ahead = s.rows_ahead();
    s.sum_sources();
    for (int64_t j = 0; j < vectors; ++j) {
      const V max = s.load_sums(s.sums_at(j)).max;
      s.store_sums(StartSum(d, hn::Neg(max)), later + j * kSumParts * lanes);
    }
    for (int64_t t = 0; t < shape.time; ++t) {
      const int64_t next = std::min(t + ahead, shape.time - 1);
      for (int64_t j = 0; j < vectors; ++j) {
        prefetch_target(s, j, next);
        const RunningSum<V> sum = s.load_sums(s.sums_at(j));
        const TargetGrad<V> grad = Base::target_grad(t, j, sum.den, sum.num, one);
        Base::write_query(t, j, grad.query);
        RunningSum<V> targets = s.load_sums(later + j * kSumParts * lanes);
        AddCompensated(grad.a, one, targets.num, targets.num_low);
        AddCompensated(grad.b, one, targets.den, targets.den_low);
        s.store_sums(targets, later + j * kSumParts * lanes);
      }
    }
    for (int64_t t = 0; t < shape.time; ++t) {
      const int64_t next = std::min(t + ahead, shape.time - 1);
      T key_sum = 0;
      for (int64_t j = 0; j < vectors; ++j) {
        s.prefetch_sources(j, next, 1);
        prefetch_source_gradients(s, j, next);
        const V max = s.load_sums(s.sums_at(j)).max;
        const RunningSum<V> targets = s.load_sums(later + j * kSumParts * lanes);
        const SplitExp<V> e = Split(d, s.own_key(t, j));
        const V k = hn::Mul(e.p, Pow2(d, hn::Sub(e.n, max)));
        Base::write_source(s, j, t, k, targets.num, targets.den, key_sum);
      }
      if (key_per_head) Base::write_key(s, t, key_sum);
    }
  }
};

template <typename E>
void Simple(const WindowBackward<E>& p, const WindowTask& task) {
  BackwardSimple<hn::ScalableTag<Accumulate<E>>, E>(p, task).run();
}

}  // namespace aft::ops::window::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops::window {

template <typename E>
void backward_simple_task(const WindowBackward<E>& p, const WindowTask& task) {
  AFT_DISPATCH(Simple<E>)(p, task);
}

#define AFT_INSTANTIATE(E) template void backward_simple_task<E>(const WindowBackward<E>&, const WindowTask&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops::window
#endif

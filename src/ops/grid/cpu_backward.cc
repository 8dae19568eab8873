// Backward of the grid operator on the CPU. Cost and layout: README.md.
//
// With a[t] = gy gate / D and b[t] = a N/D:   dv[t'] = e^k sum_t e^w a[t]    dk[t'] = v dv - e^k sum_t e^w b[t]
// and dw[dy,dx] = e^w sum_t' e^k (v a[t] - b[t]): the sums over t are the operator run backwards, its kernel turned.
//
// An image of a vector of channels at a time, in its own scale: K, KV and D as in the forward, a and b from gy 2^-G and
// D in that scale, so that a <= 2^52 while every row passes the forward's certificate; what a product loses is then
// below 2^-74. An image of which a row fails is done exactly, from p and n of every pair.

#include <algorithm>
#include <cstdint>

#include "aft/ops/grid.h"
#include "ops/common/for_each_element.h"
#include "ops/common/redo.h"
#include "ops/common/scratch.h"
#include "ops/grid/check.h"
#include "ops/grid/plan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/grid/cpu_backward.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/common/dispatch.h"
#include "ops/common/exp-inl.h"
#include "ops/common/gate-inl.h"
#include "ops/grid/panel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace aft::ops::grid::HWY_NAMESPACE {

template <typename E>
class BackwardTask {
 public:
  using T = Accumulate<E>;
  using D = hn::ScalableTag<T>;
  using V = hn::Vec<D>;

  // kernel_sums: [reach.size()][channels] of the task's chunk of the batch, its own channels overwritten; null: not
  // wanted.
  BackwardTask(const GridBackward<E>& params, const GridTask& grid_task, T* kernel_sums, RedoCount* redo_count)
      : p(params),
        task(grid_task),
        out_kernel(kernel_sums),
        counters(redo_count),
        gated(params.in.shape.gate != Gate::kNone),
        panel(params.in, grid_task, true, scratch) {
    const int64_t padded = panel.reach.rows() * kernel_row();
    targets = scratch.take<T>(panel.time * 2 * lanes);
    exact_targets = scratch.take<T>(panel.time * 3 * lanes);
    image_kernel = scratch.take<T>(padded);
    kernel = scratch.take<T>(panel.vectors * panel.reach.size() * lanes);
    key_sums = scratch.take<T>(panel.time * heads());
    std::fill_n(kernel, panel.vectors * panel.reach.size() * lanes, T(0));
  }

  void run() {
    for (int64_t b = task.first; b < task.last; ++b) {
      if (panel.key_per_head) std::fill_n(key_sums, panel.time * heads(), T(0));
      for (int64_t j = 0; j < panel.vectors; ++j) image(b, j);
      if (panel.key_per_head) write_keys(b);
    }
    if (out_kernel != nullptr) write_kernel();
    count_redone(counters, redone, task.pairs(p.in.shape));
  }

 private:
  const GridBackward<E>& p;
  const GridTask& task;
  T* out_kernel;
  RedoCount* counters;
  bool gated;
  Scratch scratch;
  Panel<D, E> panel;
  D d;
  static constexpr int64_t lanes = Panel<D, E>::lanes;
  int64_t redone = 0;
  T* targets = nullptr;        // field of a and b
  T* exact_targets = nullptr;  // [T][3][lanes]: a, b and their exponent, for an image done exactly
  T* image_kernel = nullptr;   // [rows][kPad + columns + kPad][lanes]: sums of an image over its targets
  T* kernel = nullptr;         // [vectors][rows][columns][lanes]: the kernel's gradient
  T* key_sums = nullptr;       // [T][heads of the panel]: dk where a head shares its key

  int64_t heads() const { return (task.end - task.begin) / (p.in.shape.channels / p.in.shape.heads); }
  int64_t kernel_row() const { return (2 * Panel<D, E>::kPad + panel.reach.columns()) * lanes; }

  // For D and N under any common scale; N/D less the centre in b.
  HWY_INLINE TargetGrad<V> target_grad(int64_t b, int64_t t, int64_t j, V to_g, V den, V num) const {
    const V g = panel.load(p.grad_y, b, t, j);
    const V query = gated ? panel.load(p.in.q, b, t, j) : hn::Zero(d);
    const V ratio = hn::Div(num, den);
    return GradOfTarget(d, EvaluateGate(d, p.in.shape.gate, query), den, hn::Mul(g, to_g), ratio, g,
                        hn::Mul(hn::Add(ratio, panel.centre), panel.from_x));
  }

  HWY_INLINE void write_query(int64_t b, int64_t t, int64_t j, V dq) const {
    if (gated) StoreSome(dq, d, panel.row(p.grad_q, b, t, j), panel.count(j));
  }

  // 2^-G, 2^G, and 2^(X + G) in two factors, neither of which ends the range.
  struct Scale {
    V to_g, from_g, half, rest;
  };
  Scale gradient_scale(int64_t b, int64_t j) const {
    V largest = hn::Zero(d);
    for (int64_t t = 0; t < panel.time; ++t) {
      const V g = panel.load(p.grad_y, b, t, j);
      // What is not finite needs no scale, and may belong to a row that sees nothing.
      largest = hn::Max(hn::IfThenElseZero(hn::IsFinite(g), hn::Abs(g)), largest);
    }
    const V g = ScaleExponent(d, largest);
    const V exponent = hn::Add(panel.x, g);
    const V magic = hn::Set(d, FloatFormat<T>::kMagic);
    const V half = hn::Sub(hn::MulAdd(exponent, hn::Set(d, T(0.5)), magic), magic);
    return {Pow2(d, hn::Neg(g)), Pow2(d, g), Pow2(d, half), Pow2(d, hn::Sub(exponent, half))};
  }

  void image(int64_t b, int64_t j) {
    panel.load_image(b, j, true);
    panel.sum_outside(panel.sources);
    const Scale scale = gradient_scale(b, j);
    if (!leave_targets(b, j, scale.to_g) && redo_enabled()) {
      redone += panel.time * panel.count(j);
      exact_image(b, j, scale);
      return;
    }
    panel.sum_outside(targets);
    write_sources(b, j, scale);
    if (out_kernel != nullptr) {
      sum_kernel();
      add_image_kernel(j, scale);
    }
  }

  // The forward of every target: dq, and a and b in the image's scale. False if a row failed its certificate.
  HWY_NOINLINE bool leave_targets(int64_t b, int64_t j, V to_g) const {
    auto failed = hn::Lt(to_g, hn::Zero(d));
    const auto before = [&](int64_t t, int64_t n) {
      panel.prefetch_sources(b + 1, t, n, j);
      panel.prefetch(p.grad_y, b + 1, t, n, j);
      if (gated) panel.prefetch(p.in.q, b + 1, t, n, j);
    };
    panel.for_each_sum(panel.sources, panel.weights(j), j, before, [&](int64_t t, V den, V num) {
      failed = hn::Or(failed, panel.failed(den));
      const TargetGrad<V> grad = target_grad(b, t, j, to_g, den, num);
      hn::Store(grad.a, d, targets + t * 2 * lanes);
      hn::Store(grad.b, d, targets + t * 2 * lanes + lanes);
      write_query(b, t, j, grad.query);
    });
    return hn::AllFalse(d, failed);
  }

  // dv = K sum a 2^G, dk = (KV sum a - K sum b) 2^(X + G).
  HWY_NOINLINE void write_sources(int64_t b, int64_t j, const Scale& scale) const {
    const auto before = [](int64_t, int64_t) {};
    panel.for_each_sum(targets, panel.flipped(j), j, before, [&](int64_t t, V sum_a, V sum_b) {
      const T* source = panel.sources + t * 2 * lanes;
      const V key = hn::Load(d, source);
      const V dk = hn::MulSub(hn::Load(d, source + lanes), sum_a, hn::Mul(key, sum_b));
      write_source(b, t, j, hn::Mul(key, sum_a), dk, scale);
    });
  }

  HWY_INLINE void write_source(int64_t b, int64_t t, int64_t j, V dv, V dk, const Scale& scale) const {
    const int64_t n = panel.count(j);
    StoreSome(hn::Mul(dv, scale.from_g), d, panel.row(p.grad_v, b, t, j), n);
    dk = hn::Mul(hn::Mul(dk, scale.half), scale.rest);
    if (!panel.key_per_head) {
      StoreSome(dk, d, panel.row(p.grad_k, b, t, j), n);
      return;
    }
    HWY_ALIGN T lane[HWY_MAX_BYTES / sizeof(T)] = {};
    hn::Store(dk, d, lane);
    T* sums = key_sums + t * heads() - panel.head(task.begin);
    for (int64_t i = 0; i < n; ++i) sums[panel.head(panel.channel(j, i))] += lane[i];
  }

  void write_keys(int64_t b) const {
    for (int64_t t = 0; t < panel.time; ++t) {
      E* to = p.grad_k.data + b * p.grad_k.batch_stride + t * p.grad_k.time_stride + panel.head(task.begin);
      for (int64_t h = 0; h < heads(); ++h) StoreSome(hn::Set(d, key_sums[t * heads() + h]), d, to + h, 1);
    }
  }

  // sum over the image's targets of KV a - K b, for every element of the kernel.
  HWY_NOINLINE void sum_kernel() const {
    std::fill_n(image_kernel, panel.reach.rows() * kernel_row(), T(0));
    const GridShape& s = p.in.shape;
    for (int64_t iy = 0; iy < panel.reach.rows(); ++iy) {
      const int64_t dy = iy - panel.reach.y;
      for (int64_t y = std::max<int64_t>(0, -dy); y < std::min(s.height, s.height - dy); ++y) {
        for (int64_t i = 0; i < panel.blocks; ++i) {
          const int64_t n = std::min(kTargets, s.width - i * kTargets);
          if (n == 4) {
            sum_pairs<4>(iy, y, y + dy, i);
          } else if (n == 3) {
            sum_pairs<3>(iy, y, y + dy, i);
          } else if (n == 2) {
            sum_pairs<2>(iy, y, y + dy, i);
          } else {
            sum_pairs<1>(iy, y, y + dy, i);
          }
        }
      }
    }
  }

  // The R targets of block i in row y against the sources in row source_row. Going one source on, target r + 1 meets
  // the element of the kernel that target r met: its sum moves on with them.
  template <int64_t R>
  HWY_INLINE void sum_pairs(int64_t iy, int64_t y, int64_t source_row, int64_t i) const {
    const int64_t width = p.in.shape.width;
    const T* HWY_RESTRICT target = targets + (y * width + i * kTargets) * 2 * lanes;
    V a[R], b[R], plus[R], minus[R];
    for (int64_t r = 0; r < R; ++r) {
      a[r] = hn::Load(d, target + r * 2 * lanes);
      b[r] = hn::Load(d, target + r * 2 * lanes + lanes);
      plus[r] = minus[r] = hn::Zero(d);
    }
    const int64_t begin = panel.low(i);
    const int64_t end = panel.high(i);
    const T* HWY_RESTRICT source = panel.sources + (source_row * width + begin) * 2 * lanes;
    T* HWY_RESTRICT to = image_kernel + panel.weight_at(iy, begin - i * kTargets + panel.reach.x);
    const auto leave = [&](int64_t r) {
      T* at = to - r * lanes;
      hn::Store(hn::Add(hn::Load(d, at), hn::Sub(plus[r], minus[r])), d, at);
    };
    for (int64_t s = begin; s < end; ++s, source += 2 * lanes, to += lanes) {
      const V key = hn::Load(d, source);
      const V key_value = hn::Load(d, source + lanes);
      for (int64_t r = 0; r < R; ++r) {
        plus[r] = hn::MulAdd(key_value, a[r], plus[r]);
        minus[r] = hn::MulAdd(key, b[r], minus[r]);
      }
      leave(R - 1);
      for (int64_t r = R - 1; r > 0; --r) {
        plus[r] = plus[r - 1];
        minus[r] = minus[r - 1];
      }
      plus[0] = minus[0] = hn::Zero(d);
    }
    for (int64_t r = R - 1; r > 0; --r) leave(r);
  }

  // dw of vector j += w~ image_kernel 2^(X + G).
  void add_image_kernel(int64_t j, const Scale& scale) const {
    const T* weights = panel.weights(j);
    T* to = kernel + j * panel.reach.size() * lanes;
    for (int64_t iy = 0; iy < panel.reach.rows(); ++iy) {
      for (int64_t ix = 0; ix < panel.reach.columns(); ++ix, to += lanes) {
        const int64_t at = panel.weight_at(iy, ix);
        const V sum = hn::Mul(hn::Mul(hn::Load(d, image_kernel + at), hn::Load(d, weights + at)), scale.half);
        hn::Store(hn::MulAdd(sum, scale.rest, hn::Load(d, to)), d, to);
      }
    }
  }

  void write_kernel() const {
    for (int64_t j = 0; j < panel.vectors; ++j) {
      for (int64_t o = 0; o < panel.reach.size(); ++o) {
        const V sum = hn::Load(d, kernel + (j * panel.reach.size() + o) * lanes);
        StoreSome(sum, d, out_kernel + o * p.in.shape.channels + panel.channel(j, 0), panel.count(j));
      }
    }
  }

  // The whole image from p and n of every pair: a row is worth a 2^exponent, so that e^(k+w)/D keeps its own scale.
  HWY_NOINLINE void exact_image(int64_t b, int64_t j, const Scale& scale) {
    for (int64_t t = 0; t < panel.time; ++t) {
      const ExactRow<V> row = panel.exact_row(b, j, t);
      const TargetGrad<V> grad = target_grad(b, t, j, scale.to_g, row.den, row.num);
      const V den_exponent = ExponentOf(d, row.den);
      const V normal = Pow2(d, den_exponent);
      const auto empty = hn::Eq(row.den, hn::Zero(d));
      const V exponent = hn::Neg(hn::Add(row.exponent, den_exponent));
      T* to = exact_targets + t * 3 * lanes;
      hn::Store(hn::Mul(grad.a, normal), d, to);
      hn::Store(hn::Mul(grad.b, normal), d, to + lanes);
      hn::Store(hn::IfThenElse(empty, hn::Set(d, kExponentFloor<T>), exponent), d, to + 2 * lanes);
      write_query(b, t, j, grad.query);
    }
    for (int64_t s = 0; s < panel.time; ++s) exact_source(b, j, s, scale);
  }

  // Source s: its dv and dk, and what it adds to dw.
  HWY_INLINE void exact_source(int64_t b, int64_t j, int64_t s, const Scale& scale) const {
    T* dw = kernel + j * panel.reach.size() * lanes;
    const T* source = panel.exact_source(s);
    const V key = hn::Load(d, source), n_key = hn::Load(d, source + lanes), value = hn::Load(d, source + 2 * lanes);
    V dv = hn::Zero(d), db = dv;
    panel.template for_each_pair<-1>(j, s, [&](int64_t t, V p_weight, V n_weight, int64_t element) {
      const T* target = exact_targets + t * 3 * lanes;
      const V n = hn::Add(hn::Add(n_key, n_weight), hn::Load(d, target + 2 * lanes));
      const V pair = hn::Mul(hn::Mul(key, p_weight), Pow2(d, hn::Min(n, hn::Set(d, kPairExponentLimit<T>))));
      const V a = hn::Mul(pair, hn::Load(d, target));
      const V ab = hn::Mul(pair, hn::Load(d, target + lanes));
      dv = hn::Add(dv, a);
      db = hn::Add(db, ab);
      if (element < 0) return;
      T* to = dw + element * lanes;
      const V terms = hn::Mul(hn::MulSub(value, a, ab), scale.half);
      hn::Store(hn::MulAdd(terms, scale.rest, hn::Load(d, to)), d, to);
    });
    write_source(b, s, j, dv, hn::MulSub(value, dv, db), scale);
  }
};

template <typename E>
void RunBackward(const GridBackward<E>& p, const GridTask& task, Accumulate<E>* kernel_sums, RedoCount* counters) {
  BackwardTask<E>(p, task, kernel_sums, counters).run();
}

}  // namespace aft::ops::grid::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace aft::ops {
namespace grid {
namespace {

// Adds the chunks' sums, [chunks][reach.size()][channels], in their order, and the channels of a head in theirs.
template <typename T>
void add_kernel_sums(const GridShape& s, int64_t chunks, const T* sums, T* grad_kernel, const ParallelFor& parallel) {
  const GridReach reach = grid_reach(s);
  const int64_t corner = (s.kernel - 1) / 2;
  const int64_t head_width = s.channels / s.heads;
  parallel.run(reach.rows(), [&](int64_t iy) {
    for (int64_t ix = 0; ix < reach.columns(); ++ix) {
      const T* from = sums + (iy * reach.columns() + ix) * s.channels;
      T* to = grad_kernel + (corner - reach.y + iy) * s.kernel + corner - reach.x + ix;
      for (int64_t h = 0; h < s.heads; ++h) {
        T total = 0;
        for (int64_t c = h * head_width; c < (h + 1) * head_width; ++c) {
          for (int64_t i = 0; i < chunks; ++i) total += from[i * reach.size() * s.channels + c];
        }
        to[h * s.kernel * s.kernel] = total;
      }
    }
  });
}

template <typename E>
void backward(const GridBackward<E>& p, const Cpu& cpu) {
  using T = Accumulate<E>;
  const GridShape& s = p.in.shape;
  const bool wants_kernel = p.grad_kernel != nullptr;
  if (wants_kernel) std::fill_n(p.grad_kernel, s.heads * s.kernel * s.kernel, T(0));
  if (s.batch * s.time() * s.channels == 0) return;
  const GridPlan<T> plan(s);
  const int64_t chunk_size = grid_reach(s).size() * s.channels;
  Scratch scratch;
  T* const sums = wants_kernel ? scratch.take<T>(plan.chunks() * chunk_size) : nullptr;
  cpu.parallel.run(plan.tasks(), [&](int64_t i) {
    T* chunk_sums = wants_kernel ? sums + plan.chunk_of(i) * chunk_size : nullptr;
    AFT_DISPATCH(RunBackward<E>)(p, plan.task(i), chunk_sums, cpu.redone);
  });
  if (wants_kernel) add_kernel_sums(s, plan.chunks(), sums, p.grad_kernel, cpu.parallel);
}

}  // namespace
}  // namespace grid

template <typename E>
void grid_backward(const GridBackward<E>& p, const Cpu& cpu) {
  grid::check_sizes(p);
  grid::backward(p, cpu);
}

#define AFT_INSTANTIATE(E) template void grid_backward<E>(const GridBackward<E>&, const Cpu&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops
#endif

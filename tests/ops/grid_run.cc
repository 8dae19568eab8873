#include "tests/ops/grid_run.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "tests/ops/element.h"
#include "tests/ops/plain_number.h"
#include "tests/ops/poisoned.h"
#include "tests/ops/window_run.h"

namespace aft::ops::test {
namespace {

template <typename T>
Rows<const T> as_const(Rows<T> rows) {
  return {rows.data, rows.batch_stride, rows.time_stride};
}

// A dense tensor [B, T, width] in strided rows.
template <typename E>
struct PoisonedRows {
  using T = Accumulate<E>;
  PoisonedRows(const GridShape& s, int64_t columns, int64_t shift)
      : width(columns), shape(s), memory(shift + s.batch * (s.time() + 1) * (columns + 3)) {
    rows = memory.claim_rows(shift, s.batch, s.time(), width, width + 3, (s.time() + 1) * (width + 3));
  }
  template <typename F>
  void for_each(const F& f) const {
    int64_t i = 0;
    for (int64_t b = 0; b < shape.batch; ++b) {
      for (int64_t t = 0; t < shape.time(); ++t) {
        for (int64_t c = 0; c < width; ++c) f(rows.data[b * rows.batch_stride + t * rows.time_stride + c], i++);
      }
    }
  }
  void put(const std::vector<T>& from) const {
    for_each([&](E& x, int64_t i) { x = element<E>(from[i]); });
  }
  std::vector<T> get() const {
    std::vector<T> to(shape.batch * shape.time() * width);
    for_each([&](E& x, int64_t i) { to[i] = number(x); });
    return to;
  }

  int64_t width;
  GridShape shape;
  Poisoned<E> memory;
  Rows<E> rows;
};

template <typename E>
KeyMask mask_of(const GridInputs<E>& in) {
  if (in.mask.empty()) return {};
  return {reinterpret_cast<const bool*>(in.mask.data()), in.shape.time()};
}

}  // namespace

template <typename E>
GridInputs<E> make_grid_inputs(const GridCase& c) {
  WindowCase window{.input = c.input,
                    .batch = c.batch,
                    .time = c.height * c.width,
                    .channels = c.channels,
                    .heads = c.heads,
                    .key_per_head = c.key_per_head,
                    .causal = false,
                    .has_band = true,
                    .left = (c.kernel * c.kernel - 1) / 2,
                    .right = (c.kernel * c.kernel - 1) / 2,
                    .gate = c.gate,
                    .shared_row = true,
                    .seed = c.seed};
  const WindowInputs<E> from = make_inputs<E>(window);
  GridInputs<E> in{shape_of(c), from.q, from.k, from.v, from.grad_y, from.band, {}};
  if (c.masked) {
    const int64_t time = in.shape.time();
    for (int64_t i = 0; i < c.batch * time; ++i) in.mask.push_back(i / time + 1 < c.batch && (i * 7 + c.seed) % 5 != 0);
  }
  return in;
}

template <typename R, typename E>
GridInputs<R> convert(const GridInputs<E>& in) {
  const auto wide = [](const std::vector<Accumulate<E>>& x) { return std::vector<R>(x.begin(), x.end()); };
  return {in.shape, wide(in.q), wide(in.k), wide(in.v), wide(in.grad_y), wide(in.kernel), in.mask};
}

template <typename E>
GridOutputs<E> run_grid(const GridInputs<E>& in, const GridRunOptions& options) {
  using T = Accumulate<E>;
  const GridShape& s = in.shape;
  const int64_t shift = options.shift;
  const bool gated = s.gate != Gate::kNone;
  PoisonedRows<E> q(s, s.channels, shift), k(s, s.key_channels, shift), v(s, s.channels, shift),
      y(s, s.channels, shift);
  if (gated) q.put(in.q);
  k.put(in.k);
  v.put(in.v);
  GridOutputs<E> out;
  GridForward<E> forward;
  forward.in.shape = s;
  if (gated) forward.in.q = as_const(q.rows);
  forward.in.k = as_const(k.rows);
  forward.in.v = as_const(v.rows);
  forward.y = y.rows;
  forward.in.kernel = in.kernel.data();
  forward.in.key_mask = mask_of(in);
  grid_forward(forward, Cpu{options.parallel, options.redone});
  out.of[kGridY] = y.get();
  y.memory.expect_gaps_untouched("y");
  if (!options.backward) return out;

  PoisonedRows<E> grad_y(s, s.channels, shift + 1), grad_q(s, s.channels, shift), grad_k(s, s.key_channels, shift),
      grad_v(s, s.channels, shift);
  grad_y.put(in.grad_y);
  const int64_t size = in.kernel.size();
  Poisoned<T> grad_kernel(shift + size);
  GridBackward<E> backward;
  backward.in = forward.in;
  backward.grad_y = as_const(grad_y.rows);
  if (gated) backward.grad_q = grad_q.rows;
  backward.grad_k = grad_k.rows;
  backward.grad_v = grad_v.rows;
  if (options.grad_kernel) backward.grad_kernel = grad_kernel.claim(shift, size);
  grid_backward(backward, Cpu{options.parallel, options.redone});
  if (gated) out.of[kGridGradQ] = grad_q.get();
  out.of[kGridGradK] = grad_k.get();
  out.of[kGridGradV] = grad_v.get();
  if (options.grad_kernel) out.of[kGridGradKernel].assign(backward.grad_kernel, backward.grad_kernel + size);
  grad_q.memory.expect_gaps_untouched("grad_q");
  grad_k.memory.expect_gaps_untouched("grad_k");
  grad_v.memory.expect_gaps_untouched("grad_v");
  grad_kernel.expect_gaps_untouched("grad_kernel");
  return out;
}

template <typename R>
GridOutputs<R> run_grid_reference(const GridInputs<R>& in, bool backward) {
  const GridShape& s = in.shape;
  GridOutputs<R> out;
  const auto rows = [&](auto& data, int64_t width) {
    return Rows<std::remove_reference_t<decltype(data[0])>>{data.data(), s.time() * width, width};
  };
  const int64_t n = s.batch * s.time() * s.channels;
  GridForward<R> f;
  f.in.shape = s;
  f.in.q = rows(in.q, s.channels);
  f.in.k = rows(in.k, s.key_channels);
  f.in.v = rows(in.v, s.channels);
  out.of[kGridY].resize(n);
  f.y = rows(out.of[kGridY], s.channels);
  f.in.kernel = in.kernel.data();
  f.in.key_mask = mask_of(in);
  grid_forward_reference(f);
  if (!backward) return out;
  if (s.gate != Gate::kNone) out.of[kGridGradQ].resize(n);
  out.of[kGridGradK].resize(in.k.size());
  out.of[kGridGradV].resize(n);
  out.of[kGridGradKernel].resize(in.kernel.size());
  GridBackward<R> b;
  b.in = f.in;
  b.grad_y = rows(in.grad_y, s.channels);
  b.grad_q = rows(out.of[kGridGradQ], s.channels);
  b.grad_k = rows(out.of[kGridGradK], s.key_channels);
  b.grad_v = rows(out.of[kGridGradV], s.channels);
  b.grad_kernel = out.of[kGridGradKernel].data();
  grid_backward_reference(b);
  return out;
}

template <typename E>
GridPlain<E> run_grid_plain(const GridInputs<E>& in) {
  using T = Accumulate<E>;
  const GridShape& s = in.shape;
  const T absent = -std::numeric_limits<T>::infinity();
  const bool gated = s.gate != Gate::kNone;
  const int64_t time = s.time();
  using Number = PlainNumber<T>;
  std::array<std::vector<Number>, kGridOutputs> out;
  const int64_t n = s.batch * time * s.channels;
  const int64_t sizes[] = {n, gated ? n : 0, int64_t(in.k.size()), n, int64_t(in.kernel.size())};
  for (int o = 0; o < kGridOutputs; ++o) out[o].assign(sizes[o], Number());
  const int64_t reach = (s.kernel - 1) / 2;
  std::vector<T> exponent(time);
  std::vector<Number> e(time);
  for (int64_t b = 0; b < s.batch; ++b) {
    for (int64_t c = 0; c < s.channels; ++c) {
      const int64_t h = c / (s.channels / s.heads);
      const int64_t kc = s.key_channels == s.channels ? c : h;
      for (int64_t t = 0; t < time; ++t) {
        const auto element = [&](int64_t i) {
          const int64_t dy = i / s.width - t / s.width, dx = i % s.width - t % s.width;
          const bool inside = std::abs(dy) <= reach && std::abs(dx) <= reach;
          return inside ? (h * s.kernel + reach + dy) * s.kernel + reach + dx : int64_t{-1};
        };
        T max = absent;
        for (int64_t i = 0; i < time; ++i) {
          const bool hidden = !in.mask.empty() && in.mask[b * time + i] == 0;
          exponent[i] =
              hidden ? absent
                     : in.k[(b * time + i) * s.key_channels + kc] + (element(i) < 0 ? T(0) : in.kernel[element(i)]);
          max = std::max(max, exponent[i]);
        }
        if (max == absent) continue;  // nothing to see: 0 and no gradient
        Number den, num;
        for (int64_t i = 0; i < time; ++i) {
          e[i] = exponent[i] == absent ? Number() : Number::exp(exponent[i] - max);
          if (e[i].value() == 0) continue;
          den += e[i];
          num += e[i] * in.v[(b * time + i) * s.channels + c];
        }
        const int64_t at = (b * time + t) * s.channels + c;
        const Number ratio = num / den;
        out[kGridY][at] = ratio;
        Number grad = in.grad_y[at];
        if (gated) {
          const Number gate = plain_gate(s.gate, in.q[at]);
          out[kGridY][at] = gate * ratio;
          out[kGridGradQ][at] = grad * ratio * plain_slope(s.gate, in.q[at]);
          grad = grad * gate;
        }
        const Number grad_num = grad / den;
        const Number grad_den = -grad_num * ratio;
        for (int64_t i = 0; i < time; ++i) {
          if (e[i].value() == 0) continue;
          out[kGridGradV][(b * time + i) * s.channels + c] += e[i] * grad_num;
          for (const Number& through : {e[i] * grad_num * in.v[(b * time + i) * s.channels + c], e[i] * grad_den}) {
            out[kGridGradK][(b * time + i) * s.key_channels + kc] += through;
            if (element(i) >= 0) out[kGridGradKernel][element(i)] += through;
          }
        }
      }
    }
  }
  GridPlain<E> plain;
  for (int o = 0; o < kGridOutputs; ++o) {
    if (o == kGridGradKernel) {
      store_plain<T>(out[o], plain.outputs.of[o], plain.scale[o]);
    } else {
      store_plain<E>(out[o], plain.outputs.of[o], plain.scale[o]);
    }
  }
  return plain;
}

template <typename E>
GridInputs<E> slice_batch(const GridInputs<E>& in, int64_t b) {
  GridInputs<E> out = in;
  out.shape.batch = 1;
  const auto cut = [&](auto& x) {
    const int64_t size = x.size() / in.shape.batch;
    x = {x.begin() + b * size, x.begin() + (b + 1) * size};
  };
  cut(out.q), cut(out.k), cut(out.v), cut(out.grad_y), cut(out.mask);
  return out;
}

#define AFT_INSTANTIATE(E)                                                          \
  template GridInputs<E> make_grid_inputs<E>(const GridCase&);                      \
  template GridOutputs<E> run_grid<E>(const GridInputs<E>&, const GridRunOptions&); \
  template GridPlain<E> run_grid_plain<E>(const GridInputs<E>&);                    \
  template GridInputs<E> slice_batch<E>(const GridInputs<E>&, int64_t);
AFT_INSTANTIATE(float)
AFT_INSTANTIATE(double)
AFT_INSTANTIATE(BFloat16)
AFT_INSTANTIATE(Float16)
#undef AFT_INSTANTIATE
template GridOutputs<double> run_grid_reference<double>(const GridInputs<double>&, bool);
template GridOutputs<long double> run_grid_reference<long double>(const GridInputs<long double>&, bool);
template GridInputs<double> convert<double, float>(const GridInputs<float>&);
template GridInputs<double> convert<double, BFloat16>(const GridInputs<BFloat16>&);
template GridInputs<double> convert<double, Float16>(const GridInputs<Float16>&);
template GridInputs<long double> convert<long double, double>(const GridInputs<double>&);

}  // namespace aft::ops::test

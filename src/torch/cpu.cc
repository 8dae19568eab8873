// The operators on the CPU: tensors to the params structs of aft/ops, and LibTorch's threads.

#include <torch/library.h>
#include <torch/types.h>

#include <tuple>

#include "aft/ops/device.h"
#include "tensors.h"
#include "torch_threads.h"
#include "window_arguments.h"

namespace aft::dispatch {
namespace {

using at::Tensor;
using at::TensorList;

// Row stride 0 means one shared row to the operator; a table that is expanded from one row is not that.
Tensor readable_band(const Tensor& t) {
  const bool expanded = t.dim() == 3 && t.size(1) > 1 && t.stride(1) == 0;
  return (t.size(-1) <= 1 || t.stride(-1) == 1) && !expanded ? t : t.contiguous();
}

// [heads, rows, J], or [heads, J]: one row for every position.
template <typename T>
ops::Band<T> band_of(const Tensor& t) {
  if (!t.defined() || t.size(-1) == 0) return {};
  T* data = t.data_ptr<std::remove_const_t<T>>();
  if (t.dim() == 2) return {data, t.stride(0), 0, 1};
  const bool one_row = t.size(1) == 1;  // its stride may be anything
  return {data, t.stride(0), one_row ? t.size(-1) : t.stride(1), t.size(1)};
}

// den, num, ring_key, ring_value.
template <typename T>
ops::StateGrad<T> state_grad_of(TensorList s) {
  if (s.empty()) return {};
  using Value = std::remove_const_t<T>;
  return {s[0].data_ptr<Value>(), s[1].data_ptr<Value>(), s[2].data_ptr<Value>(), s[3].data_ptr<Value>()};
}

// What a call reads, checked and readable, kept alive for as long as the operator runs.
struct Inputs {
  ops::WindowShape shape;
  Tensor q, k, v, key_mask, cu_seqlens;
  Tensor band;                // in the dtype that the operator computes in
  std::vector<Tensor> state;  // empty: none
  int64_t saved_size = 0;

  template <typename E>
  ops::WindowInputs<E> inputs() const {
    ops::WindowInputs<E> x;
    x.shape = shape;
    x.q = rows_of<const E>(q);
    x.k = rows_of<const E>(k);
    x.v = rows_of<const E>(v);
    x.band = band_of<const ops::Accumulate<E>>(band);
    if (key_mask.defined()) x.key_mask = {key_mask.const_data_ptr<bool>(), key_mask.stride(0)};
    if (cu_seqlens.defined()) x.cu_seqlens = cu_seqlens.const_data_ptr<int64_t>();
    x.longest = shape.time;
    x.initial_state = state_of<const ops::Accumulate<E>>(state);
    return x;
  }
};

Inputs checked_inputs(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                      const OptionalTensor& band, bool causal, std::string_view gate, int64_t heads,
                      const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                      std::optional<TensorList> state = std::nullopt) {
  const WindowSizes sizes = check_window(op, q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  Inputs in;
  in.shape = sizes.shape();
  if (sizes.gate != ops::Gate::kNone) in.q = readable(*q);
  in.k = readable(k);
  in.v = readable(v);
  if (key_mask.has_value()) in.key_mask = readable(*key_mask);
  if (cu_seqlens.has_value()) in.cu_seqlens = cu_seqlens->contiguous();
  if (band.has_value()) in.band = readable_band(band->to(accumulated(v)));
  in.saved_size = saved_size(sizes).guard_int(__FILE__, __LINE__);
  if (state.has_value()) {
    check_state(op, sizes, v, *state);
    in.state = contiguous(*state);
  }
  return in;
}

void run_forward(const Inputs& in, const Tensor& y, TensorList final_state, const Tensor& saved) {
  with_element_type(in.v, [&]<typename E>(E) {
    using T = ops::Accumulate<E>;
    ops::WindowForward<E> p;
    p.in = in.inputs<E>();
    p.y = rows_of<E>(y);
    p.final_state = state_of<T>(final_state);
    if (saved.defined()) p.saved = saved.data_ptr<T>();
    ops::window_forward(p, {torch_threads(), &redo_counters()});
  });
}

Tensor empty_saved(const Inputs& in) { return at::empty({in.saved_size}, accumulated(in.v)); }

Tensor empty_y(const Tensor& v) { return at::empty(v.sizes(), v.options()); }

// The ring starts as zeros: the operator leaves slots that hold no source yet as they are.
std::vector<Tensor> empty_state(const ops::WindowShape& s, const at::TensorOptions& options) {
  return {at::empty({s.batch}, options.dtype(at::kLong)),        at::empty({s.batch, s.key_channels}, options),
          at::empty({s.batch, s.key_channels}, options),         at::empty({s.batch, s.channels}, options),
          at::zeros({s.batch, s.left, s.key_channels}, options), at::zeros({s.batch, s.left, s.channels}, options)};
}

// ---- whole sequences

Tensor window(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, bool causal,
              std::string_view gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  const Inputs in = checked_inputs("window", q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  Tensor y = empty_y(v);
  run_forward(in, y, {}, {});
  return y;
}

void window_out(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, bool causal,
                std::string_view gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                const Tensor& out) {
  const Inputs in = checked_inputs("window", q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  check_same("window", "out", out, "v", v);
  check_writable("window", "out", out, {q, k, v, band, key_mask, cu_seqlens});
  run_forward(in, out, {}, {});
}

std::tuple<Tensor, Tensor> window_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                          const OptionalTensor& band, bool causal, std::string_view gate, int64_t heads,
                                          const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  const Inputs in = checked_inputs("window_forward", q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  Tensor y = empty_y(v);
  Tensor saved = empty_saved(in);
  run_forward(in, y, {}, saved);
  return {y, saved};
}

// Gradients of the inputs; undefined: not there, or not wanted.
struct Gradients {
  Tensor q, k, v, band;
};

void run_backward(std::string_view op, const Inputs& in, const Tensor& grad_y, const Tensor& saved,
                  const Gradients& grad, TensorList grad_final_state = {}, TensorList grad_initial_state = {}) {
  check_same(op, "grad_y", grad_y, "v", in.v);
  check_accumulated(op, "saved", saved, in.v);
  if (saved.dim() != 1 || saved.size(0) != in.saved_size) {
    fail("aft::", op, ": saved must have shape [", in.saved_size, "], got ", sizes_of(saved),
         ": pass what the forward saved");
  }
  const Tensor gy = readable(grad_y);
  const Tensor kept = saved.contiguous();
  const WeightsGradient grad_band(grad.band, in.band.defined() ? in.band.sizes() : at::IntArrayRef(), in.v);
  with_element_type(in.v, [&]<typename E>(E) {
    using T = ops::Accumulate<E>;
    ops::WindowBackward<E> p;
    p.in = in.inputs<E>();
    p.grad_y = rows_of<const E>(gy);
    p.grad_q = rows_of<E>(grad.q);
    p.grad_k = rows_of<E>(grad.k);
    p.grad_v = rows_of<E>(grad.v);
    p.grad_band = band_of<T>(grad_band.sum());
    p.saved = kept.const_data_ptr<T>();
    p.grad_final_state = state_grad_of<const T>(grad_final_state);
    p.grad_initial_state = state_grad_of<T>(grad_initial_state);
    ops::window_backward(p, {torch_threads(), &redo_counters()});
  });
  grad_band.finish();
}

Gradients empty_gradients(const Tensor& v, const Tensor& k, const OptionalTensor& band, ops::Gate gate,
                          bool weights_gradient) {
  Gradients grad;
  if (gate != ops::Gate::kNone) grad.q = at::empty(v.sizes(), v.options());
  grad.k = at::empty(k.sizes(), k.options());
  grad.v = at::empty(v.sizes(), v.options());
  if (weights_gradient && band.has_value()) grad.band = at::empty(band->sizes(), band->options());
  return grad;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> window_backward(const Tensor& grad_y, const OptionalTensor& q,
                                                           const Tensor& k, const Tensor& v, const OptionalTensor& band,
                                                           const Tensor& saved, bool causal, std::string_view gate,
                                                           int64_t heads, const OptionalTensor& key_mask,
                                                           const OptionalTensor& cu_seqlens, bool weights_gradient) {
  constexpr std::string_view op = "window_backward";
  const Inputs in = checked_inputs(op, q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  const Gradients grad = empty_gradients(v, k, band, in.shape.gate, weights_gradient);
  run_backward(op, in, grad_y, saved, grad);
  return {or_empty(grad.q, v), grad.k, grad.v, or_empty(grad.band, v)};
}

void window_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                         const OptionalTensor& band, const Tensor& saved, bool causal, std::string_view gate,
                         int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                         const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                         const OptionalTensor& grad_band) {
  constexpr std::string_view op = "window_backward";
  const Inputs in = checked_inputs(op, q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  const std::vector<GradientOutput> outputs = window_gradients(op, q, k, v, band, grad_q, grad_k, grad_v, grad_band);
  check_writable(op, outputs, {q, k, v, band, key_mask, cu_seqlens, grad_y, saved});
  const Gradients grad{grad_q.value_or(Tensor()), grad_k, grad_v, grad_band.value_or(Tensor())};
  run_backward(op, in, grad_y, saved, grad);
}

// ---- with state

using YAndState = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

YAndState window_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band,
                            TensorList state, std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                            const OptionalTensor& cu_seqlens) {
  const Inputs in =
      checked_inputs("window_with_state", q, k, v, band, /*causal=*/true, gate, heads, key_mask, cu_seqlens, state);
  Tensor y = empty_y(v);
  const std::vector<Tensor> s = empty_state(in.shape, accumulated(v));
  run_forward(in, y, s, {});
  return {y, s[0], s[1], s[2], s[3], s[4], s[5]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state_forward(
    const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, TensorList state,
    std::string_view gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  const Inputs in = checked_inputs("window_with_state_forward", q, k, v, band, /*causal=*/true, gate, heads, key_mask,
                                   cu_seqlens, state);
  Tensor y = empty_y(v);
  Tensor saved = empty_saved(in);
  const std::vector<Tensor> s = empty_state(in.shape, accumulated(v));
  run_forward(in, y, s, saved);
  return {y, s[0], s[1], s[2], s[3], s[4], s[5], saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state_backward(
    const Tensor& grad_y, const Tensor& grad_den, const Tensor& grad_num, const Tensor& grad_ring_key,
    const Tensor& grad_ring_value, const OptionalTensor& q, const Tensor& k, const Tensor& v,
    const OptionalTensor& band, TensorList state, const Tensor& saved, std::string_view gate, int64_t heads,
    const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens, bool weights_gradient) {
  constexpr std::string_view op = "window_with_state_backward";
  const Inputs in = checked_inputs(op, q, k, v, band, /*causal=*/true, gate, heads, key_mask, cu_seqlens, state);
  check_state_gradients(op, grad_den, grad_num, grad_ring_key, grad_ring_value, state);
  const Gradients grad = empty_gradients(v, k, band, in.shape.gate, weights_gradient);
  const std::vector<Tensor> from = contiguous({grad_den, grad_num, grad_ring_key, grad_ring_value});
  std::vector<Tensor> to;
  for (const Tensor& t : from) to.push_back(at::empty(t.sizes(), t.options()));
  run_backward(op, in, grad_y, saved, grad, from, to);
  return {or_empty(grad.q, v), grad.k, grad.v, or_empty(grad.band, v), to[0], to[1], to[2], to[3]};
}

Tensor window_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band,
                   TensorList state, std::string_view gate, int64_t heads) {
  constexpr std::string_view op = "window_step_";
  const Inputs in = checked_inputs(op, q, k, v, band, /*causal=*/true, gate, heads, std::nullopt, std::nullopt, state);
  check_step(op, v, state);
  Tensor y = empty_y(v);
  with_element_type(v, [&]<typename E>(E) {
    ops::WindowStep<E> p;
    p.in = in.inputs<E>();
    p.y = rows_of<E>(y);
    p.state = state_of<ops::Accumulate<E>>(state);
    ops::window_step(p, {torch_threads(), &redo_counters()});
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> initial_state(const Tensor& k, const Tensor& v,
                                                                         int64_t left) {
  const ops::WindowShape s = check_initial_state(k, v, left).shape();
  const std::vector<Tensor> state = empty_state(s, accumulated(v));
  with_scalar_type(state[1], [&]<typename T>(T) { ops::window_state_init(s, state_of<T>(state)); });
  return {state[0], state[1], state[2], state[3], state[4], state[5]};
}

// ---- factors of local

void run_local_bias(const ops::LocalBiasShape& shape, const Tensor& u, const Tensor& v, const Tensor& out) {
  const Tensor u_dense = u.contiguous();
  const Tensor v_dense = v.contiguous();
  with_scalar_type(u, [&]<typename T>(T) {
    ops::local_bias_forward(
        ops::LocalBiasForward<T>{{shape, u_dense.const_data_ptr<T>(), v_dense.const_data_ptr<T>()}, out.data_ptr<T>()},
        {torch_threads()});
  });
}

void run_local_bias_backward(const ops::LocalBiasShape& shape, const Tensor& grad_bias, const Tensor& u,
                             const Tensor& v, const Tensor& grad_u, const Tensor& grad_v) {
  check_shape("local_bias_backward", "grad_bias", grad_bias, local_bias_shape(u, shape.left, shape.right), u);
  const Tensor u_dense = u.contiguous();
  const Tensor v_dense = v.contiguous();
  const Tensor grad_dense = grad_bias.contiguous();
  with_scalar_type(u, [&]<typename T>(T) {
    ops::local_bias_backward(
        ops::LocalBiasBackward<T>{{shape, u_dense.const_data_ptr<T>(), v_dense.const_data_ptr<T>()},
                                  grad_dense.const_data_ptr<T>(),
                                  grad_u.data_ptr<T>(),
                                  grad_v.data_ptr<T>()},
        {torch_threads()});
  });
}

void check_dense(std::string_view op, std::string_view name, const Tensor& out) {
  if (!out.is_contiguous()) {
    fail("aft::", op, ": ", name, " must be contiguous, got strides ", out.strides(), ": allocate it with torch.empty");
  }
}

Tensor local_bias(const Tensor& u, const Tensor& v, int64_t left, int64_t right) {
  const ops::LocalBiasShape shape = check_local_bias("local_bias", u, v, left, right).shape();
  Tensor out = at::empty_symint(local_bias_shape(u, left, right), u.options());
  run_local_bias(shape, u, v, out);
  return out;
}

void local_bias_out(const Tensor& u, const Tensor& v, int64_t left, int64_t right, const Tensor& out) {
  const ops::LocalBiasShape shape = check_local_bias("local_bias", u, v, left, right).shape();
  check_shape("local_bias", "out", out, local_bias_shape(u, left, right), u);
  check_dense("local_bias", "out", out);
  check_writable("local_bias", "out", out, {u, v});
  run_local_bias(shape, u, v, out);
}

std::tuple<Tensor, Tensor> local_bias_backward(const Tensor& grad_bias, const Tensor& u, const Tensor& v, int64_t left,
                                               int64_t right) {
  const ops::LocalBiasShape shape = check_local_bias("local_bias_backward", u, v, left, right).shape();
  Tensor grad_u = at::empty(u.sizes(), u.options());
  Tensor grad_v = at::empty(u.sizes(), u.options());
  run_local_bias_backward(shape, grad_bias, u, v, grad_u, grad_v);
  return {grad_u, grad_v};
}

void local_bias_backward_out(const Tensor& grad_bias, const Tensor& u, const Tensor& v, int64_t left, int64_t right,
                             const Tensor& grad_u, const Tensor& grad_v) {
  constexpr std::string_view op = "local_bias_backward";
  const ops::LocalBiasShape shape = check_local_bias(op, u, v, left, right).shape();
  const std::vector<GradientOutput> outputs = local_bias_gradients(op, u, v, grad_u, grad_v);
  check_dense(op, "grad_u", grad_u);
  check_dense(op, "grad_v", grad_v);
  check_writable(op, outputs, {grad_bias, u, v});
  run_local_bias_backward(shape, grad_bias, u, v, grad_u, grad_v);
}

std::tuple<int64_t, int64_t> redo_count() {
  const ops::RedoCount count = redo_counters();
  return {count.redone, count.total};
}

TORCH_LIBRARY_IMPL(aft, CPU, m) {
  m.impl("window", window);
  m.impl("window.out", window_out);
  m.impl("window_forward", window_forward);
  m.impl("window_backward", window_backward);
  m.impl("window_backward.out", window_backward_out);
  m.impl("window_with_state", window_with_state);
  m.impl("window_step_", window_step);
  m.impl("window_with_state_forward", window_with_state_forward);
  m.impl("window_with_state_backward", window_with_state_backward);
  m.impl("initial_state", initial_state);
  m.impl("local_bias", local_bias);
  m.impl("local_bias.out", local_bias_out);
  m.impl("local_bias_backward", local_bias_backward);
  m.impl("local_bias_backward.out", local_bias_backward_out);
}

// No tensor among its arguments, so no device decides.
TORCH_LIBRARY_IMPL(aft, CompositeExplicitAutograd, m) { m.impl("redo_count", redo_count); }

}  // namespace
}  // namespace aft::dispatch

// The operators on the CPU: tensors to the params structs of aft/ops, and LibTorch's threads.

#include <ATen/MemoryOverlap.h>
#include <torch/library.h>
#include <torch/types.h>

#include <array>
#include <tuple>

#include "torch_threads.h"
#include "window_arguments.h"

namespace aft::dispatch {
namespace {

using at::Tensor;
using at::TensorList;

// Calls body(T{}) with the C++ type of the tensors.
template <typename Body>
auto with_scalar_type(const Tensor& t, const Body& body) {
  return t.scalar_type() == at::kFloat ? body(float{}) : body(double{});
}

// Operators read any batch and time stride, but channels one after another.
Tensor readable(const Tensor& t) { return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous(); }

// Row stride 0 means one shared row to the operator; a table that is expanded from one row is not that.
Tensor readable_bias(const Tensor& t) {
  return (t.size(-1) <= 1 || t.stride(-1) == 1) && (t.size(-2) <= 1 || t.stride(-2) != 0) ? t : t.contiguous();
}

void check_writable(std::string_view op, std::string_view name, const Tensor& out, TensorList inputs) {
  if (out.size(-1) > 1 && out.stride(-1) != 1) {
    fail("aft::", op, ": ", name, " must have its last dimension contiguous, got strides ", out.strides(),
         ": allocate it with torch.empty");
  }
  if (at::has_internal_overlap(out) == at::MemOverlap::Yes) {
    fail("aft::", op, ": ", name, " must own each of its elements, got strides ", out.strides(),
         ": allocate it with torch.empty");
  }
  for (const Tensor& input : inputs) {
    if (!input.defined()) continue;
    const at::MemOverlapStatus status = at::get_overlap_status(out, input);
    if (status == at::MemOverlapStatus::Full || status == at::MemOverlapStatus::Partial) {
      fail("aft::", op, ": ", name, " must not share memory with another argument: give it memory of its own");
    }
  }
}

template <typename T>
ops::Rows<T> rows_of(const Tensor& t) {
  if (!t.defined()) return {};
  return {t.data_ptr<std::remove_const_t<T>>(), t.stride(0), t.stride(1)};
}

template <typename T>
ops::Band<T> band_of(const Tensor& t) {
  if (!t.defined() || t.size(-1) == 0) return {};
  const bool one_row = t.size(-2) == 1;  // its stride may be anything
  return {t.data_ptr<std::remove_const_t<T>>(), t.dim() == 3 ? t.stride(0) : 0, one_row ? t.size(-1) : t.stride(-2),
          t.size(-2)};
}

template <typename T>
ops::State<T> state_of(TensorList s) {
  if (s.empty()) return {};
  using Value = std::remove_const_t<T>;
  return {s[0].data_ptr<int64_t>(), s[1].data_ptr<Value>(), s[2].data_ptr<Value>(),
          s[3].data_ptr<Value>(),   s[4].data_ptr<Value>(), s[5].data_ptr<Value>()};
}

// den, num, ring_key, ring_value.
template <typename T>
ops::StateGrad<T> state_grad_of(TensorList s) {
  if (s.empty()) return {};
  using Value = std::remove_const_t<T>;
  return {s[0].data_ptr<Value>(), s[1].data_ptr<Value>(), s[2].data_ptr<Value>(), s[3].data_ptr<Value>()};
}

std::vector<Tensor> contiguous(TensorList tensors) {
  std::vector<Tensor> result;
  result.reserve(tensors.size());
  for (const Tensor& t : tensors) result.push_back(t.contiguous());
  return result;
}

// What a call reads, checked and readable, kept alive for as long as the operator runs.
struct Inputs {
  ops::WindowShape shape;
  Tensor q, k, v, bias;
  std::vector<Tensor> state;  // empty: none

  template <typename Params, typename T>
  void fill(Params& p) const {
    p.shape = shape;
    p.q = rows_of<const T>(q);
    p.k = rows_of<const T>(k);
    p.v = rows_of<const T>(v);
    p.band = band_of<const T>(bias);
  }
};

Inputs checked_inputs(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                      const OptionalTensor& bias, bool causal, std::string_view gate, int64_t heads,
                      std::optional<TensorList> state = std::nullopt) {
  const WindowSizes sizes = check_window(op, q, k, v, bias, causal, gate, heads);
  Inputs in;
  in.shape = sizes.shape();
  if (sizes.gate != ops::Gate::kNone) in.q = readable(*q);
  in.k = readable(k);
  in.v = readable(v);
  if (bias.has_value()) in.bias = readable_bias(*bias);
  if (state.has_value()) {
    check_state(op, sizes, v, *state);
    in.state = contiguous(*state);
  }
  return in;
}

void run_forward(const Inputs& in, const Tensor& y, TensorList final_state, const Tensor& saved) {
  with_scalar_type(in.v, [&]<typename T>(T) {
    ops::WindowForward<T> p;
    in.fill<ops::WindowForward<T>, T>(p);
    p.y = rows_of<T>(y);
    p.initial_state = state_of<const T>(in.state);
    p.final_state = state_of<T>(final_state);
    if (saved.defined()) p.saved = saved.data_ptr<T>();
    ops::window_forward(p, torch_threads());
  });
}

Tensor empty_saved(const Inputs& in) {
  return with_scalar_type(
      in.v, [&]<typename T>(T) { return at::empty({ops::window_saved_size<T>(in.shape)}, in.v.options()); });
}

Tensor empty_y(const Tensor& v) { return at::empty(v.sizes(), v.options()); }

// The ring starts as zeros: the operator leaves slots that hold no source yet as they are.
std::vector<Tensor> empty_state(const ops::WindowShape& s, const at::TensorOptions& options) {
  return {at::empty({s.batch}, options.dtype(at::kLong)),        at::empty({s.batch, s.key_channels}, options),
          at::empty({s.batch, s.key_channels}, options),         at::empty({s.batch, s.channels}, options),
          at::zeros({s.batch, s.left, s.key_channels}, options), at::zeros({s.batch, s.left, s.channels}, options)};
}

// ---- whole sequences

Tensor forward(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v,
               const OptionalTensor& bias, bool causal, std::string_view gate, int64_t heads) {
  const Inputs in = checked_inputs(op, q, k, v, bias, causal, gate, heads);
  Tensor y = empty_y(v);
  run_forward(in, y, {}, {});
  return y;
}

void forward_out(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                 const OptionalTensor& bias, bool causal, std::string_view gate, int64_t heads, const Tensor& out) {
  const Inputs in = checked_inputs(op, q, k, v, bias, causal, gate, heads);
  check_same(op, "out", out, "v", v);
  check_writable(op, "out", out, {in.q, in.k, in.v, in.bias});
  run_forward(in, out, {}, {});
}

std::tuple<Tensor, Tensor> forward_saving(std::string_view op, const OptionalTensor& q, const Tensor& k,
                                          const Tensor& v, const OptionalTensor& bias, bool causal,
                                          std::string_view gate, int64_t heads) {
  const Inputs in = checked_inputs(op, q, k, v, bias, causal, gate, heads);
  Tensor y = empty_y(v);
  Tensor saved = empty_saved(in);
  run_forward(in, y, {}, saved);
  return {y, saved};
}

// Gradients in the order of their inputs; bias only where there is one.
struct Gradients {
  Tensor q, k, v, bias;
};

void run_backward(std::string_view op, const Inputs& in, const Tensor& grad_y, const Tensor& saved,
                  const Gradients& grad, TensorList grad_final_state = {}, TensorList grad_initial_state = {}) {
  check_same(op, "grad_y", grad_y, "v", in.v);
  const Tensor gy = readable(grad_y);
  with_scalar_type(in.v, [&]<typename T>(T) {
    check_shape(op, "saved", saved, {c10::SymInt(ops::window_saved_size<T>(in.shape))}, in.v);
    const Tensor kept = saved.contiguous();
    ops::WindowBackward<T> p;
    in.fill<ops::WindowBackward<T>, T>(p);
    p.grad_y = rows_of<const T>(gy);
    p.grad_q = rows_of<T>(grad.q);
    p.grad_k = rows_of<T>(grad.k);
    p.grad_v = rows_of<T>(grad.v);
    p.grad_band = band_of<T>(grad.bias);
    p.saved = kept.const_data_ptr<T>();
    p.initial_state = state_of<const T>(in.state);
    p.grad_final_state = state_grad_of<const T>(grad_final_state);
    p.grad_initial_state = state_grad_of<T>(grad_initial_state);
    ops::window_backward(p, torch_threads());
  });
}

Gradients empty_gradients(const Tensor& v, const Tensor& k, const OptionalTensor& bias, ops::Gate gate) {
  Gradients grad;
  if (gate != ops::Gate::kNone) grad.q = at::empty(v.sizes(), v.options());
  grad.k = at::empty(k.sizes(), k.options());
  grad.v = at::empty(v.sizes(), v.options());
  if (bias.has_value()) grad.bias = at::empty(bias->sizes(), bias->options());
  return grad;
}

// An operator cannot return "no tensor": absent gradients are empty tensors of size [0].
Tensor or_empty(const Tensor& t, const Tensor& like) { return t.defined() ? t : at::empty({0}, like.options()); }

Gradients backward(std::string_view op, const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                   const OptionalTensor& bias, const Tensor& saved, bool causal, std::string_view gate, int64_t heads) {
  const Inputs in = checked_inputs(op, q, k, v, bias, causal, gate, heads);
  const Gradients grad = empty_gradients(v, k, bias, in.shape.gate);
  run_backward(op, in, grad_y, saved, grad);
  return grad;
}

void backward_out(std::string_view op, const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                  const OptionalTensor& bias, const Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                  const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                  const OptionalTensor& grad_bias) {
  const Inputs in = checked_inputs(op, q, k, v, bias, causal, gate, heads);
  const auto writable = [&](std::string_view name, const Tensor& out, std::string_view like_name, const Tensor& like) {
    check_same(op, name, out, like_name, like);
    check_writable(op, name, out, {in.q, in.k, in.v, in.bias, grad_y, saved});
  };
  Gradients grad;
  if (in.shape.gate != ops::Gate::kNone) {
    if (!grad_q.has_value())
      fail("aft::", op, ": grad_q must be a tensor with gate \"", gate, "\", got none: pass one");
    writable("grad_q", *grad_q, "q", *q);
    check_writable(op, "grad_q", *grad_q, {grad_k, grad_v});
    grad.q = *grad_q;
  }
  writable("grad_k", grad_k, "k", k);
  check_writable(op, "grad_k", grad_k, {grad_v});
  writable("grad_v", grad_v, "v", v);
  grad.k = grad_k;
  grad.v = grad_v;
  if (bias.has_value()) {
    writable("grad_bias", *grad_bias, "bias", *bias);
    grad.bias = *grad_bias;
  }
  run_backward(op, in, grad_y, saved, grad);
}

// ---- with state

using YAndState = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

YAndState forward_with_state(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                             const OptionalTensor& bias, TensorList state, std::string_view gate, int64_t heads) {
  const Inputs in = checked_inputs(op, q, k, v, bias, /*causal=*/true, gate, heads, state);
  Tensor y = empty_y(v);
  const std::vector<Tensor> s = empty_state(in.shape, v.options());
  run_forward(in, y, s, {});
  return {y, s[0], s[1], s[2], s[3], s[4], s[5]};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state_forward(
    const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias, TensorList state,
    std::string_view gate, int64_t heads) {
  const Inputs in = checked_inputs("window_with_state_forward", q, k, v, bias, /*causal=*/true, gate, heads, state);
  Tensor y = empty_y(v);
  Tensor saved = empty_saved(in);
  const std::vector<Tensor> s = empty_state(in.shape, v.options());
  run_forward(in, y, s, saved);
  return {y, s[0], s[1], s[2], s[3], s[4], s[5], saved};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state_backward(
    const Tensor& grad_y, const Tensor& grad_den, const Tensor& grad_num, const Tensor& grad_ring_key,
    const Tensor& grad_ring_value, const OptionalTensor& q, const Tensor& k, const Tensor& v,
    const OptionalTensor& bias, TensorList state, const Tensor& saved, std::string_view gate, int64_t heads) {
  constexpr std::string_view op = "window_with_state_backward";
  const Inputs in = checked_inputs(op, q, k, v, bias, /*causal=*/true, gate, heads, state);
  check_same(op, "grad_den", grad_den, "state den", state[2]);
  check_same(op, "grad_num", grad_num, "state num", state[3]);
  check_same(op, "grad_ring_key", grad_ring_key, "state ring_key", state[4]);
  check_same(op, "grad_ring_value", grad_ring_value, "state ring_value", state[5]);
  const Gradients grad = empty_gradients(v, k, bias, in.shape.gate);
  const std::vector<Tensor> from = contiguous({grad_den, grad_num, grad_ring_key, grad_ring_value});
  std::vector<Tensor> to;
  for (const Tensor& t : from) to.push_back(at::empty(t.sizes(), t.options()));
  run_backward(op, in, grad_y, saved, grad, from, to);
  return {or_empty(grad.q, v), grad.k, grad.v, or_empty(grad.bias, v), to[0], to[1], to[2], to[3]};
}

Tensor step(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
            TensorList state, std::string_view gate, int64_t heads) {
  const Inputs in = checked_inputs(op, q, k, v, bias, /*causal=*/true, gate, heads, state);
  if (in.shape.time != 1) {
    fail("aft::", op, ": v must hold one position, shape [batch, 1, channels], got ", v.sizes(),
         ": use the form with_state for several");
  }
  for (const Tensor& t : state) {
    if (!t.is_contiguous()) {
      fail("aft::", op, ": the state is edited in place and must be contiguous, got strides ", t.strides(),
           ": call .contiguous() on it first");
    }
  }
  Tensor y = empty_y(v);
  with_scalar_type(v, [&]<typename T>(T) {
    ops::WindowStep<T> p;
    in.fill<ops::WindowStep<T>, T>(p);
    p.y = rows_of<T>(y);
    p.state = state_of<T>(state);
    ops::window_step(p, torch_threads());
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> initial_state(const Tensor& k, const Tensor& v,
                                                                         int64_t left) {
  const ops::WindowShape s = check_initial_state(k, v, left).shape();
  const std::vector<Tensor> state = empty_state(s, v.options());
  with_scalar_type(v, [&]<typename T>(T) { ops::window_state_init(s, state_of<T>(state)); });
  return {state[0], state[1], state[2], state[3], state[4], state[5]};
}

// ---- factors of local

void run_local_bias(const ops::LocalBiasShape& shape, const Tensor& u, const Tensor& v, const Tensor& out) {
  const Tensor u_dense = u.contiguous();
  const Tensor v_dense = v.contiguous();
  with_scalar_type(u, [&]<typename T>(T) {
    ops::local_bias_forward(shape, u_dense.const_data_ptr<T>(), v_dense.const_data_ptr<T>(), out.data_ptr<T>(),
                            torch_threads());
  });
}

void run_local_bias_backward(const ops::LocalBiasShape& shape, const Tensor& grad_bias, const Tensor& u,
                             const Tensor& v, const Tensor& grad_u, const Tensor& grad_v) {
  check_shape("local_bias_backward", "grad_bias", grad_bias, local_bias_shape(u, shape.left, shape.right), u);
  const Tensor u_dense = u.contiguous();
  const Tensor v_dense = v.contiguous();
  const Tensor grad_dense = grad_bias.contiguous();
  with_scalar_type(u, [&]<typename T>(T) {
    ops::local_bias_backward(shape, u_dense.const_data_ptr<T>(), v_dense.const_data_ptr<T>(),
                             grad_dense.const_data_ptr<T>(), grad_u.data_ptr<T>(), grad_v.data_ptr<T>(),
                             torch_threads());
  });
}

void check_dense(std::string_view op, std::string_view name, const Tensor& out, TensorList inputs) {
  if (!out.is_contiguous()) {
    fail("aft::", op, ": ", name, " must be contiguous, got strides ", out.strides(), ": allocate it with torch.empty");
  }
  check_writable(op, name, out, inputs);
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
  check_dense("local_bias", "out", out, {u, v});
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
  check_same(op, "grad_u", grad_u, "u", u);
  check_same(op, "grad_v", grad_v, "v", v);
  check_dense(op, "grad_u", grad_u, {grad_bias, u, v, grad_v});
  check_dense(op, "grad_v", grad_v, {grad_bias, u, v});
  run_local_bias_backward(shape, grad_bias, u, v, grad_u, grad_v);
}

// ---- the schemas' names

Tensor simple(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal, std::string_view gate,
              int64_t heads) {
  return forward("simple", q, k, v, {}, causal, gate, heads);
}

void simple_out(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal, std::string_view gate,
                int64_t heads, const Tensor& out) {
  forward_out("simple", q, k, v, {}, causal, gate, heads, out);
}

std::tuple<Tensor, Tensor> simple_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal,
                                          std::string_view gate, int64_t heads) {
  return forward_saving("simple_forward", q, k, v, {}, causal, gate, heads);
}

std::tuple<Tensor, Tensor, Tensor> simple_backward(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k,
                                                   const Tensor& v, const Tensor& saved, bool causal,
                                                   std::string_view gate, int64_t heads) {
  const Gradients grad = backward("simple_backward", grad_y, q, k, v, {}, saved, causal, gate, heads);
  return {or_empty(grad.q, v), grad.k, grad.v};
}

void simple_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                         const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v) {
  backward_out("simple_backward", grad_y, q, k, v, {}, saved, causal, gate, heads, grad_q, grad_k, grad_v, {});
}

YAndState simple_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state,
                            std::string_view gate, int64_t heads) {
  return forward_with_state("simple_with_state", q, k, v, {}, state, gate, heads);
}

Tensor simple_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state, std::string_view gate,
                   int64_t heads) {
  return step("simple_step_", q, k, v, {}, state, gate, heads);
}

Tensor local(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, bool causal,
             std::string_view gate) {
  return forward("local", q, k, v, bias, causal, gate, 1);
}

void local_out(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, bool causal,
               std::string_view gate, const Tensor& out) {
  forward_out("local", q, k, v, bias, causal, gate, 1, out);
}

std::tuple<Tensor, Tensor> local_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                         bool causal, std::string_view gate) {
  return forward_saving("local_forward", q, k, v, bias, causal, gate, 1);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> local_backward(const Tensor& grad_y, const OptionalTensor& q,
                                                          const Tensor& k, const Tensor& v, const Tensor& bias,
                                                          const Tensor& saved, bool causal, std::string_view gate) {
  const Gradients grad = backward("local_backward", grad_y, q, k, v, bias, saved, causal, gate, 1);
  return {or_empty(grad.q, v), grad.k, grad.v, grad.bias};
}

void local_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& bias, const Tensor& saved, bool causal, std::string_view gate,
                        const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                        const Tensor& grad_bias) {
  backward_out("local_backward", grad_y, q, k, v, bias, saved, causal, gate, 1, grad_q, grad_k, grad_v, grad_bias);
}

YAndState local_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                           TensorList state, std::string_view gate) {
  return forward_with_state("local_with_state", q, k, v, bias, state, gate, 1);
}

Tensor local_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, TensorList state,
                  std::string_view gate) {
  return step("local_step_", q, k, v, bias, state, gate, 1);
}

std::tuple<int64_t, int64_t> redo_count() {
  const ops::RedoCount count = ops::window_redo_count();
  return {count.redone, count.total};
}

TORCH_LIBRARY_IMPL(aft, CPU, m) {
  m.impl("simple", simple);
  m.impl("simple.out", simple_out);
  m.impl("simple_forward", simple_forward);
  m.impl("simple_backward", simple_backward);
  m.impl("simple_backward.out", simple_backward_out);
  m.impl("simple_with_state", simple_with_state);
  m.impl("simple_step_", simple_step);
  m.impl("local", local);
  m.impl("local.out", local_out);
  m.impl("local_forward", local_forward);
  m.impl("local_backward", local_backward);
  m.impl("local_backward.out", local_backward_out);
  m.impl("local_with_state", local_with_state);
  m.impl("local_step_", local_step);
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

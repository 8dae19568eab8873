// AFT-full: the dense operator's CPU, Meta and gradients.

#include "aft/ops/full.h"

#include <torch/library.h>
#include <torch/types.h>

#include <string>
#include <tuple>
#include <vector>

#include "full_arguments.h"
#include "gradients.h"
#include "operators.h"
#include "tensors.h"
#include "torch_threads.h"

namespace aft::dispatch {
namespace {

// The same readable, kept alive for as long as the operator runs.
struct FullInputs {
  ops::FullShape shape;
  Tensor q, k, v, bias, u, w, mask, cu_seqlens;
  std::vector<Tensor> state;  // empty: none

  FullInputs(std::string_view op, const FullArguments& a, TensorList given_state) : k(readable(a.k)), v(readable(a.v)) {
    if (!given_state.empty()) {
      check_state(op, a, given_state);
      state = contiguous(given_state);
    }
    shape = a.shape(state.empty() ? 0 : state[4].size(1));
    if (a.gate != ops::Gate::kNone) q = readable(*a.q);
    if (a.bias.has_value()) bias = readable(a.bias->to(accumulated(v)));
    if (a.u.has_value()) u = a.u->to(accumulated(v)).contiguous();
    if (a.w.has_value()) w = a.w->to(accumulated(v)).contiguous();
    if (a.key_mask.has_value()) mask = readable(*a.key_mask);
    if (a.cu_seqlens.has_value()) cu_seqlens = a.cu_seqlens->contiguous();
  }

  template <typename E>
  ops::FullInputs<E> inputs() const {
    using T = ops::Accumulate<E>;
    ops::FullInputs<E> x;
    x.shape = shape;
    x.q = rows_of<const E>(q);
    x.k = rows_of<const E>(k);
    x.v = rows_of<const E>(v);
    x.weights = weights_of<const T>(bias, u, w);
    if (mask.defined()) x.key_mask = {mask.const_data_ptr<bool>(), mask.stride(0)};
    if (cu_seqlens.defined()) x.cu_seqlens = cu_seqlens.const_data_ptr<int64_t>();
    x.longest = shape.targets;
    x.initial_state = state_of<const T>(state);
    return x;
  }

  // A size of 1 shares a matrix, whatever its stride.
  template <typename T>
  static ops::PairWeights<T> weights_of(const Tensor& bias, const Tensor& u, const Tensor& w) {
    const auto stride = [](const Tensor& t, int64_t i) { return t.size(i) == 1 ? 0 : t.stride(i); };
    ops::PairWeights<T> x;
    if (bias.defined()) {
      x.table = static_cast<T*>(bias.data_ptr());
      x.batch_stride = stride(bias, 0);
      x.head_stride = stride(bias, 1);
      x.row_stride = bias.stride(2);
      x.rows = bias.size(2);
      x.columns = bias.size(3);
    } else if (u.defined()) {
      static std::remove_const_t<T> empty{};  // factors without elements have no address, but they are there
      x.u = u.numel() > 0 ? static_cast<T*>(u.data_ptr()) : &empty;
      x.v = w.numel() > 0 ? static_cast<T*>(w.data_ptr()) : &empty;
      x.width = u.size(2);
      x.u_head_stride = stride(u, 0);
      x.v_head_stride = stride(w, 0);
      x.rows = u.size(1);
      x.columns = w.size(1);
    }
    return x;
  }
};

Tensor empty(c10::SymIntArrayRef shape, const at::TensorOptions& options) { return at::empty_symint(shape, options); }

// y, what is saved (if wanted), and the state after.
YSavedState empty_results(const FullArguments& a, TensorList state, bool wants_saved) {
  const at::TensorOptions options = accumulated(a.v);
  const auto none = [&] { return at::empty({0}, options); };  // results must not share memory
  const Tensor y = empty(a.y_shape(), a.v.options());
  const Tensor saved = wants_saved ? empty({y.sym_numel() * 3}, options) : none();
  if (state.empty())
    return {y, saved, at::empty({0}, options.dtype(at::kLong)), none(), none(), none(), none(), none()};
  // Ring slots that hold no source stay as they are: zeros.
  const auto like = [&](const Tensor& t) { return empty(t.sym_sizes(), t.options()); };
  const auto ring = [&](const Tensor& t) { return at::zeros_symint(t.sym_sizes(), t.options()); };
  return {y, saved, like(state[0]), like(state[1]), like(state[2]), like(state[3]), ring(state[4]), ring(state[5])};
}

// saved undefined: not wanted. final_state as many tensors as the inputs' state.
void run_forward(const FullInputs& in, const Tensor& y, const Tensor& saved, TensorList final_state) {
  with_element_type(in.v, [&]<typename E>(E) {
    using T = ops::Accumulate<E>;
    ops::FullForward<E> p;
    p.in = in.inputs<E>();
    p.y = rows_of<E>(y);
    if (!final_state.empty()) p.final_state = state_of<T>(final_state);
    if (saved.defined()) p.saved = static_cast<T*>(saved.data_ptr());
    ops::full_forward(p, {torch_threads(), &redo_counters()});
  });
}

YSavedState run_forward(std::string_view op, const FullArguments& a, TensorList state, bool wants_saved) {
  const FullInputs in(op, a, state);
  YSavedState results = empty_results(a, state, wants_saved);
  const auto& [y, saved, position, max, den, num, ring_key, ring_value] = results;
  std::vector<Tensor> final_state;
  if (!state.empty()) final_state = {position, max, den, num, ring_key, ring_value};
  run_forward(in, y, wants_saved ? saved : Tensor(), final_state);
  return results;
}

Tensor full_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate, int64_t heads,
                const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  constexpr std::string_view op = "full";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  return std::get<0>(run_forward(op, a, {}, false));
}

void full_out_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                  const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate, int64_t heads,
                  const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens, const Tensor& out) {
  constexpr std::string_view op = "full";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  const FullInputs in(op, a, {});
  check_shape(op, "out", out, a.y_shape(), v);
  check_writable(op, "out", out, {q, k, v, bias, u, w, key_mask, cu_seqlens});
  run_forward(in, out, Tensor(), {});
}

YSavedState full_forward_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                             const OptionalTensor& u, const OptionalTensor& w, TensorList state, bool causal,
                             std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                             const OptionalTensor& cu_seqlens) {
  constexpr std::string_view op = "full_forward";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  return run_forward(op, a, state, true);
}

YAndState full_with_state_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                              const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                              int64_t heads, const OptionalTensor& key_mask) {
  constexpr std::string_view op = "full_with_state";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, true, gate, heads, key_mask, std::nullopt);
  check_state(op, a, state);
  auto [y, saved, position, max, den, num, ring_key, ring_value] = run_forward(op, a, state, false);
  return {y, position, max, den, num, ring_key, ring_value};
}

Tensor full_step_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                     const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                     int64_t heads) {
  constexpr std::string_view op = "full_step_";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, true, gate, heads, std::nullopt, std::nullopt);
  check_state(op, a, state);
  check_step(op, v, state);
  const FullInputs in(op, a, state);
  const Tensor y = at::empty(v.sizes(), v.options());
  with_element_type(v, [&]<typename E>(E) {
    ops::FullStep<E> p;
    p.in = in.inputs<E>();
    p.y = rows_of<E>(y);
    p.state = state_of<ops::Accumulate<E>>(state);
    ops::full_step(p, {torch_threads(), &redo_counters()});
  });
  return y;
}

// Gradients of q, k, v, bias, u, w in the shapes and dtypes of what was given, then of the ring's keys and values.
FullGrads empty_gradients(const FullArguments& a, const OptionalTensor& bias, const OptionalTensor& u,
                          const OptionalTensor& w, TensorList state, bool weights_gradient) {
  const auto like = [&](const Tensor& t) { return empty(t.sym_sizes(), t.options()); };
  const auto weights = [&](const OptionalTensor& t) {
    return weights_gradient && t.has_value() && t->defined() ? like(*t) : at::empty({0}, a.v.options());
  };
  const auto ring = [&](size_t i) { return state.empty() ? at::empty({0}, a.v.options()) : like(state[i]); };
  return {a.gate == ops::Gate::kNone ? at::empty({0}, a.v.options()) : like(*a.q),
          like(a.k),
          like(a.v),
          weights(bias),
          weights(u),
          weights(w),
          ring(4),
          ring(5)};
}

// What a backward is handed beside the inputs of its forward.
void check_given_gradients(std::string_view op, const FullArguments& a, const Tensor& grad_y,
                           const OptionalTensor& grad_ring_key, const OptionalTensor& grad_ring_value, TensorList state,
                           const Tensor& saved) {
  check_shape(op, "grad_y", grad_y, a.y_shape(), a.v);
  const auto check_ring = [&](std::string_view name, const OptionalTensor& gradient, std::string_view of, size_t i) {
    if (!gradient.has_value() || !gradient->defined()) return;
    if (state.empty()) fail("aft::", op, ": ", name, " must be None without a state, got a tensor: leave it out");
    check_same(op, name, *gradient, of, state[i]);
  };
  check_ring("grad_ring_key", grad_ring_key, "state ring_key", 4);
  check_ring("grad_ring_value", grad_ring_value, "state ring_value", 5);
  check_accumulated(op, "saved", saved, a.v);
}

// Undefined: not there, or not wanted.
struct FullGradients {
  Tensor q, k, v, bias, u, w, ring_key, ring_value;
};

void run_backward(std::string_view op, const FullArguments& a, const FullInputs& in, const Tensor& grad_y,
                  const OptionalTensor& grad_ring_key, const OptionalTensor& grad_ring_value, const Tensor& saved,
                  const FullGradients& grad) {
  check_given_gradients(op, a, grad_y, grad_ring_key, grad_ring_value, in.state, saved);
  if (saved.numel() != ops::full_saved_size(in.shape)) {
    fail("aft::", op, ": saved must have ", ops::full_saved_size(in.shape), " elements, got ", saved.numel(),
         ": pass what aft::full_forward gave");
  }
  const Tensor gy = readable(grad_y);
  const Tensor kept = saved.contiguous();
  const auto sum = [&](const Tensor& to, const Tensor& weights) {
    return WeightsGradient(to, weights.defined() ? weights.sizes() : at::IntArrayRef(), in.v);
  };
  const WeightsGradient bias = sum(grad.bias, in.bias), u = sum(grad.u, in.u), w = sum(grad.w, in.w);
  const auto ring = [&](const OptionalTensor& t) { return t.has_value() && t->defined() ? t->contiguous() : Tensor(); };
  const Tensor from_key = ring(grad_ring_key);
  const Tensor from_value = ring(grad_ring_value);
  with_element_type(in.v, [&]<typename E>(E) {
    using T = ops::Accumulate<E>;
    ops::FullBackward<E> p;
    p.in = in.inputs<E>();
    p.grad_y = rows_of<const E>(gy);
    p.grad_q = rows_of<E>(grad.q);
    p.grad_k = rows_of<E>(grad.k);
    p.grad_v = rows_of<E>(grad.v);
    p.grad_weights = FullInputs::weights_of<T>(bias.sum(), u.sum(), w.sum());
    p.saved = static_cast<const T*>(kept.data_ptr());
    if (from_key.defined()) p.grad_final_state.ring_key = static_cast<const T*>(from_key.data_ptr());
    if (from_value.defined()) p.grad_final_state.ring_value = static_cast<const T*>(from_value.data_ptr());
    if (grad.ring_key.defined()) {
      p.grad_initial_state.ring_key = static_cast<T*>(grad.ring_key.data_ptr());
      p.grad_initial_state.ring_value = static_cast<T*>(grad.ring_value.data_ptr());
    }
    ops::full_backward(p, {torch_threads(), &redo_counters()});
  });
  for (const WeightsGradient* weights : {&bias, &u, &w}) weights->finish();
}

FullGrads full_backward_cpu(const Tensor& grad_y, const OptionalTensor& grad_ring_key,
                            const OptionalTensor& grad_ring_value, const OptionalTensor& q, const Tensor& k,
                            const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u,
                            const OptionalTensor& w, TensorList state, const Tensor& saved, bool causal,
                            std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                            const OptionalTensor& cu_seqlens, bool weights_gradient) {
  constexpr std::string_view op = "full_backward";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  const FullInputs in(op, a, state);
  const FullGrads grads = empty_gradients(a, bias, u, w, state, weights_gradient);
  const auto& [grad_q, grad_k, grad_v, grad_bias, grad_u, grad_w, to_ring_key, to_ring_value] = grads;
  const auto wanted = [](bool there, const Tensor& t) { return there ? t : Tensor(); };
  const bool factors = weights_gradient && in.u.defined();
  run_backward(op, a, in, grad_y, grad_ring_key, grad_ring_value, saved,
               {wanted(a.gate != ops::Gate::kNone, grad_q), grad_k, grad_v,
                wanted(weights_gradient && in.bias.defined(), grad_bias), wanted(factors, grad_u),
                wanted(factors, grad_w), wanted(!state.empty(), to_ring_key), wanted(!state.empty(), to_ring_value)});
  return grads;
}

// Checked against their inputs. The factors' gradients go together.
std::vector<GradientOutput> full_gradients(std::string_view op, const OptionalTensor& q, const Tensor& k,
                                           const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u,
                                           const OptionalTensor& w, const OptionalTensor& grad_q, const Tensor& grad_k,
                                           const Tensor& grad_v, const OptionalTensor& grad_bias,
                                           const OptionalTensor& grad_u, const OptionalTensor& grad_w) {
  if (grad_u.has_value() != grad_w.has_value()) {
    fail("aft::", op, ": grad_u and grad_w must both be tensors or both None, got one: pass both");
  }
  constexpr bool may_be_left_out = true;
  std::vector<GradientOutput> outputs = {
      {"grad_q", grad_q.value_or(Tensor()), "q", q.value_or(Tensor())},
      {"grad_k", grad_k, "k", k},
      {"grad_v", grad_v, "v", v},
      {"grad_bias", grad_bias.value_or(Tensor()), "bias", bias.value_or(Tensor()), may_be_left_out},
      {"grad_u", grad_u.value_or(Tensor()), "u", u.value_or(Tensor()), may_be_left_out},
      {"grad_w", grad_w.value_or(Tensor()), "w", w.value_or(Tensor()), may_be_left_out}};
  check_gradients(op, outputs);
  return outputs;
}

void full_backward_out_cpu(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                           const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w,
                           const Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                           const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                           const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                           const OptionalTensor& grad_bias, const OptionalTensor& grad_u,
                           const OptionalTensor& grad_w) {
  constexpr std::string_view op = "full_backward";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  const FullInputs in(op, a, {});
  const auto outputs = full_gradients(op, q, k, v, bias, u, w, grad_q, grad_k, grad_v, grad_bias, grad_u, grad_w);
  check_writable(op, outputs, {q, k, v, bias, u, w, key_mask, cu_seqlens, grad_y, saved});
  const auto to = [](const OptionalTensor& t) { return t.value_or(Tensor()); };
  const FullGradients grad{to(grad_q), grad_k, grad_v, to(grad_bias), to(grad_u), to(grad_w), Tensor(), Tensor()};
  run_backward(op, a, in, grad_y, std::nullopt, std::nullopt, saved, grad);
}

// ---- shapes without data

Tensor full_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                 const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate, int64_t heads,
                 const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  return empty(check_full("full", q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens).y_shape(),
               v.options());
}

YSavedState full_forward_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                              const OptionalTensor& u, const OptionalTensor& w, TensorList state, bool causal,
                              std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                              const OptionalTensor& cu_seqlens) {
  constexpr std::string_view op = "full_forward";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  if (!state.empty()) check_state(op, a, state);
  return empty_results(a, state, true);
}

YAndState full_with_state_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                               const OptionalTensor& u, const OptionalTensor& w, TensorList state,
                               std::string_view gate, int64_t heads, const OptionalTensor& key_mask) {
  constexpr std::string_view op = "full_with_state";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, true, gate, heads, key_mask, std::nullopt);
  check_state(op, a, state);
  auto [y, saved, position, max, den, num, ring_key, ring_value] = empty_results(a, state, false);
  return {y, position, max, den, num, ring_key, ring_value};
}

Tensor full_step_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                      const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                      int64_t heads) {
  constexpr std::string_view op = "full_step_";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, true, gate, heads, std::nullopt, std::nullopt);
  check_state(op, a, state);
  check_step(op, v, state);
  return empty(v.sym_sizes(), v.options());
}

FullGrads full_backward_meta(const Tensor& grad_y, const OptionalTensor& grad_ring_key,
                             const OptionalTensor& grad_ring_value, const OptionalTensor& q, const Tensor& k,
                             const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u,
                             const OptionalTensor& w, TensorList state, const Tensor& saved, bool causal,
                             std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                             const OptionalTensor& cu_seqlens, bool weights_gradient) {
  constexpr std::string_view op = "full_backward";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  if (!state.empty()) check_state(op, a, state);
  check_given_gradients(op, a, grad_y, grad_ring_key, grad_ring_value, state, saved);
  return empty_gradients(a, bias, u, w, state, weights_gradient);
}

void full_out_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                   const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate, int64_t heads,
                   const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens, const Tensor& out) {
  constexpr std::string_view op = "full";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  check_shape(op, "out", out, a.y_shape(), v);
}

void full_backward_out_meta(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                            const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w,
                            const Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                            const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                            const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                            const OptionalTensor& grad_bias, const OptionalTensor& grad_u,
                            const OptionalTensor& grad_w) {
  constexpr std::string_view op = "full_backward";
  const FullArguments a = check_full(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  check_given_gradients(op, a, grad_y, std::nullopt, std::nullopt, {}, saved);
  (void)full_gradients(op, q, k, v, bias, u, w, grad_q, grad_k, grad_v, grad_bias, grad_u, grad_w);
}

// ---- gradients

// Of: q, k, v, bias, u, w, ring_key, ring_value. The state is absent where `stateful` is false.
struct Full : Function<Full> {
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w,
                               const OptionalTensor& ring_key, const OptionalTensor& ring_value,
                               const std::vector<Tensor>& before_ring, bool causal, std::string_view gate,
                               int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
    const Below below;
    std::vector<Tensor> state = before_ring;  // position, max, den, num
    if (ring_key.has_value()) state.insert(state.end(), {*ring_key, *ring_value});
    auto [y, saved, position, max, den, num, key_after, value_after] =
        full_forward(q, k, v, bias, u, w, state, causal, gate, heads, key_mask, cu_seqlens);
    variable_list kept = {q.value_or(Tensor()),
                          k,
                          v,
                          bias.value_or(Tensor()),
                          u.value_or(Tensor()),
                          w.value_or(Tensor()),
                          key_mask.value_or(Tensor()),
                          cu_seqlens.value_or(Tensor()),
                          saved};
    kept.insert(kept.end(), state.begin(), state.end());
    ctx->save_for_backward(kept);
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["gate"] = std::string(gate);
    ctx->saved_data["heads"] = heads;
    if (state.empty()) return {y};
    ctx->mark_non_differentiable({position, max, den, num});
    return {y, position, max, den, num, key_after, value_after};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    const variable_list t = ctx->get_saved_variables();
    const bool stateful = t.size() > 9;
    const bool weights_asked = asked_for(ctx, t, 3) || asked_for(ctx, t, 4) || asked_for(ctx, t, 5);
    auto [grad_q, grad_k, grad_v, grad_bias, grad_u, grad_w, grad_ring_key, grad_ring_value] =
        full_backward(grad[0], stateful ? present(grad[5]) : std::nullopt, stateful ? present(grad[6]) : std::nullopt,
                      present(t[0]), t[1], t[2], present(t[3]), present(t[4]), present(t[5]), TensorList(t).slice(9),
                      t[8], ctx->saved_data["causal"].toBool(), ctx->saved_data["gate"].toStringRef(),
                      ctx->saved_data["heads"].toInt(), present(t[6]), present(t[7]), weights_asked);
    const auto of = [](const Tensor& g, bool there) { return there ? g : Tensor(); };
    return {of(grad_q, t[0].defined()),
            grad_k,
            grad_v,
            of(grad_bias, weights_asked && t[3].defined()),
            of(grad_u, weights_asked && t[4].defined()),
            of(grad_w, weights_asked && t[5].defined()),
            of(grad_ring_key, stateful),
            of(grad_ring_value, stateful),
            {},
            {},
            {},
            {},
            {},
            {}};
  }
};

// Arguments are checked under the operator's own name first.
Tensor full_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                     const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate,
                     int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  if (gradient_needed(q, k, v, bias, u, w)) {
    (void)check_full("full", q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
    return Full::apply(q, k, v, bias, u, w, OptionalTensor(), OptionalTensor(), std::vector<Tensor>(), causal, gate,
                       heads, key_mask, cu_seqlens)[0];
  }
  const Below below;
  return full(q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
}

// A state of another length is left to the check below autograd.
YAndState full_with_state_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                   const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w,
                                   TensorList state, std::string_view gate, int64_t heads,
                                   const OptionalTensor& key_mask) {
  if (gradient_needed(q, k, v, bias, u, w, state) && state.size() == 6) {
    constexpr std::string_view op = "full_with_state";
    check_state(op, check_full(op, q, k, v, bias, u, w, true, gate, heads, key_mask, std::nullopt), state);
    const variable_list r = Full::apply(q, k, v, bias, u, w, OptionalTensor(state[4]), OptionalTensor(state[5]),
                                        state.slice(0, 4).vec(), true, gate, heads, key_mask, OptionalTensor());
    return {r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
  }
  const Below below;
  return full_with_state(q, k, v, bias, u, w, state, gate, heads, key_mask);
}

YSavedState full_forward_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                                  const OptionalTensor& u, const OptionalTensor& w, TensorList state, bool causal,
                                  std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                                  const OptionalTensor& cu_seqlens) {
  return without_derivative(
      "aft::full_forward has no derivative: call aft::full or aft::full_with_state",
      [&] { return full_forward(q, k, v, bias, u, w, state, causal, gate, heads, key_mask, cu_seqlens); }, q, k, v,
      bias, u, w, state);
}

FullGrads full_backward_autograd(const Tensor& grad_y, const OptionalTensor& grad_ring_key,
                                 const OptionalTensor& grad_ring_value, const OptionalTensor& q, const Tensor& k,
                                 const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u,
                                 const OptionalTensor& w, TensorList state, const Tensor& saved, bool causal,
                                 std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                                 const OptionalTensor& cu_seqlens, bool weights_gradient) {
  return without_derivative(
      kNoSecond,
      [&] {
        return full_backward(grad_y, grad_ring_key, grad_ring_value, q, k, v, bias, u, w, state, saved, causal, gate,
                             heads, key_mask, cu_seqlens, weights_gradient);
      },
      grad_y, grad_ring_key, grad_ring_value, q, k, v, bias, u, w, state);
}

TORCH_LIBRARY_IMPL(aft, CPU, m) {
  m.impl("full", full_cpu);
  m.impl("full.out", full_out_cpu);
  m.impl("full_forward", full_forward_cpu);
  m.impl("full_with_state", full_with_state_cpu);
  m.impl("full_step_", full_step_cpu);
  m.impl("full_backward", full_backward_cpu);
  m.impl("full_backward.out", full_backward_out_cpu);
}

TORCH_LIBRARY_IMPL(aft, Meta, m) {
  m.impl("full", full_meta);
  m.impl("full.out", full_out_meta);
  m.impl("full_forward", full_forward_meta);
  m.impl("full_with_state", full_with_state_meta);
  m.impl("full_step_", full_step_meta);
  m.impl("full_backward", full_backward_meta);
  m.impl("full_backward.out", full_backward_out_meta);
}

TORCH_LIBRARY_IMPL(aft, Autograd, m) {
  m.impl("full", full_autograd);
  m.impl("full_forward", full_forward_autograd);
  m.impl("full_with_state", full_with_state_autograd);
  m.impl("full_backward", full_backward_autograd);
  for (const char* name : {"full.out", "full_backward.out", "full_step_"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&in_place_autograd>());
  }
}

}  // namespace
}  // namespace aft::dispatch

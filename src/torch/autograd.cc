// Gradients. The backward of every operator is an operator itself, so it can be traced, tested and timed alone.

#include <torch/library.h>
#include <torch/types.h>

#include <string>
#include <tuple>

#include "gradients.h"
#include "operators.h"

namespace aft::dispatch {
namespace {

// Gradients of: q, k, v, band.
struct Window : Function<Window> {
  static Tensor forward(AutogradContext* ctx, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                        const OptionalTensor& band, bool causal, std::string_view gate, int64_t heads,
                        const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
    const Below below;
    auto [y, saved] = window_forward(q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
    ctx->save_for_backward({q.value_or(Tensor()), k, v, band.value_or(Tensor()), saved, key_mask.value_or(Tensor()),
                            cu_seqlens.value_or(Tensor())});
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["gate"] = std::string(gate);
    ctx->saved_data["heads"] = heads;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_y) {
    const variable_list t = ctx->get_saved_variables();
    const OptionalTensor q = present(t[0]);
    const OptionalTensor band = present(t[3]);
    const bool band_asked = asked_for(ctx, t, 3);
    auto [grad_q, grad_k, grad_v, grad_band] = window_backward(
        grad_y[0], q, t[1], t[2], band, t[4], ctx->saved_data["causal"].toBool(), ctx->saved_data["gate"].toStringRef(),
        ctx->saved_data["heads"].toInt(), present(t[5]), present(t[6]), band_asked);
    if (!q.has_value()) grad_q = Tensor();
    if (!band_asked) grad_band = Tensor();
    return {grad_q, grad_k, grad_v, grad_band, {}, {}, {}, {}, {}};
  }
};

// The stateful forms. Gradients of: q, k, v, band, den, num, ring_key, ring_value.
struct WindowWithState : Function<WindowWithState> {
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& band, const Tensor& position, const Tensor& max, const Tensor& den,
                               const Tensor& num, const Tensor& ring_key, const Tensor& ring_value,
                               std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                               const OptionalTensor& cu_seqlens) {
    const Below below;
    auto [y, position_after, max_after, den_after, num_after, ring_key_after, ring_value_after, saved] =
        window_with_state_forward(q, k, v, band, {position, max, den, num, ring_key, ring_value}, gate, heads, key_mask,
                                  cu_seqlens);
    ctx->save_for_backward({q.value_or(Tensor()), k, v, band.value_or(Tensor()), position, max, den, num, ring_key,
                            ring_value, saved, key_mask.value_or(Tensor()), cu_seqlens.value_or(Tensor())});
    ctx->mark_non_differentiable({position_after, max_after});
    ctx->saved_data["gate"] = std::string(gate);
    ctx->saved_data["heads"] = heads;
    return {y, position_after, max_after, den_after, num_after, ring_key_after, ring_value_after};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    const variable_list t = ctx->get_saved_variables();
    const OptionalTensor q = present(t[0]);
    const OptionalTensor band = present(t[3]);
    const bool band_asked = asked_for(ctx, t, 3);
    auto [grad_q, grad_k, grad_v, grad_band, grad_den, grad_num, grad_ring_key, grad_ring_value] =
        window_with_state_backward(grad[0], grad[3], grad[4], grad[5], grad[6], q, t[1], t[2], band,
                                   TensorList(t).slice(4, 6), t[10], ctx->saved_data["gate"].toStringRef(),
                                   ctx->saved_data["heads"].toInt(), present(t[11]), present(t[12]), band_asked);
    if (!q.has_value()) grad_q = Tensor();
    if (!band_asked) grad_band = Tensor();
    return {grad_q,   grad_k,        grad_v,          grad_band, {}, {}, grad_den,
            grad_num, grad_ring_key, grad_ring_value, {},        {}, {}, {}};
  }
};

struct LocalBias : Function<LocalBias> {
  static Tensor forward(AutogradContext* ctx, const Tensor& u, const Tensor& v, int64_t left, int64_t right) {
    const Below below;
    ctx->save_for_backward({u, v});
    ctx->saved_data["left"] = left;
    ctx->saved_data["right"] = right;
    return local_bias(u, v, left, right);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    const variable_list t = ctx->get_saved_variables();
    auto [grad_u, grad_v] =
        local_bias_backward(grad[0], t[0], t[1], ctx->saved_data["left"].toInt(), ctx->saved_data["right"].toInt());
    return {grad_u, grad_v, {}, {}};
  }
};

// ---- the schemas' names

Tensor window_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band,
                       bool causal, std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                       const OptionalTensor& cu_seqlens) {
  if (gradient_needed(q, k, v, band)) return Window::apply(q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  const Below below;
  return window(q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
}

// A state of another length is left to the check below autograd.
YAndState window_with_state_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                     const OptionalTensor& band, TensorList state, std::string_view gate, int64_t heads,
                                     const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  if (gradient_needed(q, k, v, band, state) && state.size() == 6) {
    const variable_list r = WindowWithState::apply(q, k, v, band, state[0], state[1], state[2], state[3], state[4],
                                                   state[5], gate, heads, key_mask, cu_seqlens);
    return {r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
  }
  const Below below;
  return window_with_state(q, k, v, band, state, gate, heads, key_mask, cu_seqlens);
}

Tensor local_bias_autograd(const Tensor& u, const Tensor& v, int64_t left, int64_t right) {
  if (gradient_needed(u, v)) return LocalBias::apply(u, v, left, right);
  const Below below;
  return local_bias(u, v, left, right);
}

std::tuple<Tensor, Tensor> window_forward_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                                   const OptionalTensor& band, bool causal, std::string_view gate,
                                                   int64_t heads, const OptionalTensor& key_mask,
                                                   const OptionalTensor& cu_seqlens) {
  return without_derivative(
      "aft::window_forward has no derivative: call aft::window",
      [&] { return window_forward(q, k, v, band, causal, gate, heads, key_mask, cu_seqlens); }, q, k, v, band);
}

YStateSaved window_with_state_forward_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                               const OptionalTensor& band, TensorList state, std::string_view gate,
                                               int64_t heads, const OptionalTensor& key_mask,
                                               const OptionalTensor& cu_seqlens) {
  return without_derivative(
      "aft::window_with_state_forward has no derivative: call aft::window_with_state",
      [&] { return window_with_state_forward(q, k, v, band, state, gate, heads, key_mask, cu_seqlens); }, q, k, v, band,
      state);
}

WindowGrads window_backward_autograd(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                     const OptionalTensor& band, const Tensor& saved, bool causal,
                                     std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                                     const OptionalTensor& cu_seqlens, bool weights_gradient) {
  return without_derivative(
      kNoSecond,
      [&] {
        return window_backward(grad_y, q, k, v, band, saved, causal, gate, heads, key_mask, cu_seqlens,
                               weights_gradient);
      },
      grad_y, q, k, v, band);
}

YStateSaved window_with_state_backward_autograd(const Tensor& grad_y, const Tensor& grad_den, const Tensor& grad_num,
                                                const Tensor& grad_ring_key, const Tensor& grad_ring_value,
                                                const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                                const OptionalTensor& band, TensorList state, const Tensor& saved,
                                                std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                                                const OptionalTensor& cu_seqlens, bool weights_gradient) {
  return without_derivative(
      kNoSecond,
      [&] {
        return window_with_state_backward(grad_y, grad_den, grad_num, grad_ring_key, grad_ring_value, q, k, v, band,
                                          state, saved, gate, heads, key_mask, cu_seqlens, weights_gradient);
      },
      grad_y, grad_den, grad_num, grad_ring_key, grad_ring_value, q, k, v, band, state);
}

std::tuple<Tensor, Tensor> local_bias_backward_autograd(const Tensor& grad_bias, const Tensor& u, const Tensor& v,
                                                        int64_t left, int64_t right) {
  return without_derivative(
      kNoSecond, [&] { return local_bias_backward(grad_bias, u, v, left, right); }, grad_bias, u, v);
}

// Constants, whatever k and v are.
StateTensors initial_state_autograd(const Tensor& k, const Tensor& v, int64_t left) {
  const Below below;
  return initial_state(k, v, left);
}

TORCH_LIBRARY_IMPL(aft, Autograd, m) {
  m.impl("window", window_autograd);
  m.impl("window_forward", window_forward_autograd);
  m.impl("window_backward", window_backward_autograd);
  m.impl("window_with_state", window_with_state_autograd);
  m.impl("window_with_state_forward", window_with_state_forward_autograd);
  m.impl("window_with_state_backward", window_with_state_backward_autograd);
  m.impl("initial_state", initial_state_autograd);
  m.impl("local_bias", local_bias_autograd);
  m.impl("local_bias_backward", local_bias_backward_autograd);
  for (const char* name :
       {"window.out", "window_backward.out", "window_step_", "local_bias.out", "local_bias_backward.out"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&in_place_autograd>());
  }
}

}  // namespace
}  // namespace aft::dispatch

#include "operators.h"

#include <ATen/core/dispatch/Dispatcher.h>

namespace aft::dispatch {
namespace {

// Looked up once for each function that uses it.
template <typename Function>
c10::TypedOperatorHandle<Function> find(const char* name, const char* overload = "") {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Function>();
}

}  // namespace

Tensor simple(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal, std::string_view gate,
              int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(simple)>("aft::simple");
  return op.call(q, k, v, causal, gate, heads, key_mask, cu_seqlens);
}

YAndState simple_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state,
                            std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                            const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(simple_with_state)>("aft::simple_with_state");
  return op.call(q, k, v, state, gate, heads, key_mask, cu_seqlens);
}

Tensor simple_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state, std::string_view gate,
                   int64_t heads) {
  static const auto op = find<decltype(simple_step)>("aft::simple_step_");
  return op.call(q, k, v, state, gate, heads);
}

Tensor local(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, bool causal,
             std::string_view gate, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(local)>("aft::local");
  return op.call(q, k, v, bias, causal, gate, key_mask, cu_seqlens);
}

YAndState local_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                           TensorList state, std::string_view gate, const OptionalTensor& key_mask,
                           const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(local_with_state)>("aft::local_with_state");
  return op.call(q, k, v, bias, state, gate, key_mask, cu_seqlens);
}

Tensor local_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, TensorList state,
                  std::string_view gate) {
  static const auto op = find<decltype(local_step)>("aft::local_step_");
  return op.call(q, k, v, bias, state, gate);
}

Tensor conv1d(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, bool causal,
              std::string_view gate, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(conv1d)>("aft::conv1d");
  return op.call(q, k, v, kernel, causal, gate, key_mask, cu_seqlens);
}

YAndState conv1d_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                            TensorList state, std::string_view gate, const OptionalTensor& key_mask,
                            const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(conv1d_with_state)>("aft::conv1d_with_state");
  return op.call(q, k, v, kernel, state, gate, key_mask, cu_seqlens);
}

Tensor conv1d_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, TensorList state,
                   std::string_view gate) {
  static const auto op = find<decltype(conv1d_step)>("aft::conv1d_step_");
  return op.call(q, k, v, kernel, state, gate);
}

Tensor window(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, bool causal,
              std::string_view gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(window)>("aft::window");
  return op.call(q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
}

std::tuple<Tensor, Tensor> window_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                          const OptionalTensor& band, bool causal, std::string_view gate, int64_t heads,
                                          const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(window_forward)>("aft::window_forward");
  return op.call(q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
}

WindowGrads window_backward(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                            const OptionalTensor& band, const Tensor& saved, bool causal, std::string_view gate,
                            int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                            bool weights_gradient) {
  static const auto op = find<decltype(window_backward)>("aft::window_backward");
  return op.call(grad_y, q, k, v, band, saved, causal, gate, heads, key_mask, cu_seqlens, weights_gradient);
}

void window_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                         const OptionalTensor& band, const Tensor& saved, bool causal, std::string_view gate,
                         int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                         const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                         const OptionalTensor& grad_band) {
  static const auto op = find<decltype(window_backward_out)>("aft::window_backward", "out");
  return op.call(grad_y, q, k, v, band, saved, causal, gate, heads, key_mask, cu_seqlens, grad_q, grad_k, grad_v,
                 grad_band);
}

YAndState window_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band,
                            TensorList state, std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                            const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(window_with_state)>("aft::window_with_state");
  return op.call(q, k, v, band, state, gate, heads, key_mask, cu_seqlens);
}

Tensor window_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band,
                   TensorList state, std::string_view gate, int64_t heads) {
  static const auto op = find<decltype(window_step)>("aft::window_step_");
  return op.call(q, k, v, band, state, gate, heads);
}

YStateSaved window_with_state_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                      const OptionalTensor& band, TensorList state, std::string_view gate,
                                      int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(window_with_state_forward)>("aft::window_with_state_forward");
  return op.call(q, k, v, band, state, gate, heads, key_mask, cu_seqlens);
}

YStateSaved window_with_state_backward(const Tensor& grad_y, const Tensor& grad_den, const Tensor& grad_num,
                                       const Tensor& grad_ring_key, const Tensor& grad_ring_value,
                                       const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                       const OptionalTensor& band, TensorList state, const Tensor& saved,
                                       std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                                       const OptionalTensor& cu_seqlens, bool weights_gradient) {
  static const auto op = find<decltype(window_with_state_backward)>("aft::window_with_state_backward");
  return op.call(grad_y, grad_den, grad_num, grad_ring_key, grad_ring_value, q, k, v, band, state, saved, gate, heads,
                 key_mask, cu_seqlens, weights_gradient);
}

Tensor conv2d(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, c10::SymIntArrayRef grid,
              const OptionalTensor& key_mask, std::string_view gate) {
  static const auto op = find<decltype(conv2d)>("aft::conv2d");
  return op.call(q, k, v, kernel, grid, key_mask, gate);
}

Conv2dGrads conv2d_backward(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                            const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                            std::string_view gate, bool weights_gradient) {
  static const auto op = find<decltype(conv2d_backward)>("aft::conv2d_backward");
  return op.call(grad_y, q, k, v, kernel, grid, key_mask, gate, weights_gradient);
}

void conv2d_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                         std::string_view gate, const OptionalTensor& grad_q, const Tensor& grad_k,
                         const Tensor& grad_v, const OptionalTensor& grad_kernel) {
  static const auto op = find<decltype(conv2d_backward_out)>("aft::conv2d_backward", "out");
  op.call(grad_y, q, k, v, kernel, grid, key_mask, gate, grad_q, grad_k, grad_v, grad_kernel);
}

Tensor full(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
            const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate, int64_t heads,
            const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(full)>("aft::full");
  return op.call(q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
}

YAndState full_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                          const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                          int64_t heads, const OptionalTensor& key_mask) {
  static const auto op = find<decltype(full_with_state)>("aft::full_with_state");
  return op.call(q, k, v, bias, u, w, state, gate, heads, key_mask);
}

Tensor full_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                 const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                 int64_t heads) {
  static const auto op = find<decltype(full_step)>("aft::full_step_");
  return op.call(q, k, v, bias, u, w, state, gate, heads);
}

YSavedState full_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                         const OptionalTensor& u, const OptionalTensor& w, TensorList state, bool causal,
                         std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                         const OptionalTensor& cu_seqlens) {
  static const auto op = find<decltype(full_forward)>("aft::full_forward");
  return op.call(q, k, v, bias, u, w, state, causal, gate, heads, key_mask, cu_seqlens);
}

FullGrads full_backward(const Tensor& grad_y, const OptionalTensor& grad_ring_key,
                        const OptionalTensor& grad_ring_value, const OptionalTensor& q, const Tensor& k,
                        const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w,
                        TensorList state, const Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                        const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens, bool weights_gradient) {
  static const auto op = find<decltype(full_backward)>("aft::full_backward");
  return op.call(grad_y, grad_ring_key, grad_ring_value, q, k, v, bias, u, w, state, saved, causal, gate, heads,
                 key_mask, cu_seqlens, weights_gradient);
}

StateTensors initial_state(const Tensor& k, const Tensor& v, int64_t left) {
  static const auto op = find<decltype(initial_state)>("aft::initial_state");
  return op.call(k, v, left);
}

Tensor reference(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& w, bool causal,
                 std::string_view gate, int64_t heads, const OptionalTensor& key_mask) {
  static const auto op = find<decltype(reference)>("aft::reference");
  return op.call(q, k, v, w, causal, gate, heads, key_mask);
}

Tensor local_weights(const Tensor& bias, c10::SymInt time, int64_t left, int64_t right) {
  static const auto op = find<decltype(local_weights)>("aft::local_weights");
  return op.call(bias, std::move(time), left, right);
}

Tensor conv2d_weights(const Tensor& kernel, c10::SymIntArrayRef grid) {
  static const auto op = find<decltype(conv2d_weights)>("aft::conv2d_weights");
  return op.call(kernel, grid);
}

Tensor local_bias(const Tensor& u, const Tensor& v, int64_t left, int64_t right) {
  static const auto op = find<decltype(local_bias)>("aft::local_bias");
  return op.call(u, v, left, right);
}

std::tuple<Tensor, Tensor> local_bias_backward(const Tensor& grad_bias, const Tensor& u, const Tensor& v, int64_t left,
                                               int64_t right) {
  static const auto op = find<decltype(local_bias_backward)>("aft::local_bias_backward");
  return op.call(grad_bias, u, v, left, right);
}

}  // namespace aft::dispatch

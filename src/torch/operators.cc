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

at::Tensor simple(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, bool causal, std::string_view gate,
                  int64_t heads) {
  static const auto op = find<decltype(simple)>("aft::simple");
  return op.call(q, k, v, causal, gate, heads);
}

std::tuple<at::Tensor, at::Tensor> simple_forward(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                                                  bool causal, std::string_view gate, int64_t heads) {
  static const auto op = find<decltype(simple_forward)>("aft::simple_forward");
  return op.call(q, k, v, causal, gate, heads);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> simple_backward(const at::Tensor& grad_y, const OptionalTensor& q,
                                                               const at::Tensor& k, const at::Tensor& v,
                                                               const at::Tensor& saved, bool causal,
                                                               std::string_view gate, int64_t heads) {
  static const auto op = find<decltype(simple_backward)>("aft::simple_backward");
  return op.call(grad_y, q, k, v, saved, causal, gate, heads);
}

void simple_backward_out(const at::Tensor& grad_y, const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                         const OptionalTensor& grad_q, const at::Tensor& grad_k, const at::Tensor& grad_v) {
  static const auto op = find<decltype(simple_backward_out)>("aft::simple_backward", "out");
  return op.call(grad_y, q, k, v, saved, causal, gate, heads, grad_q, grad_k, grad_v);
}

YAndState simple_with_state(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, at::TensorList state,
                            std::string_view gate, int64_t heads) {
  static const auto op = find<decltype(simple_with_state)>("aft::simple_with_state");
  return op.call(q, k, v, state, gate, heads);
}

at::Tensor simple_step(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, at::TensorList state,
                       std::string_view gate, int64_t heads) {
  static const auto op = find<decltype(simple_step)>("aft::simple_step_");
  return op.call(q, k, v, state, gate, heads);
}

at::Tensor local(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias, bool causal,
                 std::string_view gate) {
  static const auto op = find<decltype(local)>("aft::local");
  return op.call(q, k, v, bias, causal, gate);
}

std::tuple<at::Tensor, at::Tensor> local_forward(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const at::Tensor& bias, bool causal, std::string_view gate) {
  static const auto op = find<decltype(local_forward)>("aft::local_forward");
  return op.call(q, k, v, bias, causal, gate);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> local_backward(const at::Tensor& grad_y,
                                                                          const OptionalTensor& q, const at::Tensor& k,
                                                                          const at::Tensor& v, const at::Tensor& bias,
                                                                          const at::Tensor& saved, bool causal,
                                                                          std::string_view gate) {
  static const auto op = find<decltype(local_backward)>("aft::local_backward");
  return op.call(grad_y, q, k, v, bias, saved, causal, gate);
}

void local_backward_out(const at::Tensor& grad_y, const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& bias, const at::Tensor& saved, bool causal, std::string_view gate,
                        const OptionalTensor& grad_q, const at::Tensor& grad_k, const at::Tensor& grad_v,
                        const at::Tensor& grad_bias) {
  static const auto op = find<decltype(local_backward_out)>("aft::local_backward", "out");
  return op.call(grad_y, q, k, v, bias, saved, causal, gate, grad_q, grad_k, grad_v, grad_bias);
}

YAndState local_with_state(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                           at::TensorList state, std::string_view gate) {
  static const auto op = find<decltype(local_with_state)>("aft::local_with_state");
  return op.call(q, k, v, bias, state, gate);
}

at::Tensor local_step(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                      at::TensorList state, std::string_view gate) {
  static const auto op = find<decltype(local_step)>("aft::local_step_");
  return op.call(q, k, v, bias, state, gate);
}

YStateSaved window_with_state_forward(const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const OptionalTensor& bias, at::TensorList state, std::string_view gate,
                                      int64_t heads) {
  static const auto op = find<decltype(window_with_state_forward)>("aft::window_with_state_forward");
  return op.call(q, k, v, bias, state, gate, heads);
}

YStateSaved window_with_state_backward(const at::Tensor& grad_y, const at::Tensor& grad_den, const at::Tensor& grad_num,
                                       const at::Tensor& grad_ring_key, const at::Tensor& grad_ring_value,
                                       const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                                       const OptionalTensor& bias, at::TensorList state, const at::Tensor& saved,
                                       std::string_view gate, int64_t heads) {
  static const auto op = find<decltype(window_with_state_backward)>("aft::window_with_state_backward");
  return op.call(grad_y, grad_den, grad_num, grad_ring_key, grad_ring_value, q, k, v, bias, state, saved, gate, heads);
}

StateTensors initial_state(const at::Tensor& k, const at::Tensor& v, int64_t left) {
  static const auto op = find<decltype(initial_state)>("aft::initial_state");
  return op.call(k, v, left);
}

at::Tensor local_bias(const at::Tensor& u, const at::Tensor& v, int64_t left, int64_t right) {
  static const auto op = find<decltype(local_bias)>("aft::local_bias");
  return op.call(u, v, left, right);
}

std::tuple<at::Tensor, at::Tensor> local_bias_backward(const at::Tensor& grad_bias, const at::Tensor& u,
                                                       const at::Tensor& v, int64_t left, int64_t right) {
  static const auto op = find<decltype(local_bias_backward)>("aft::local_bias_backward");
  return op.call(grad_bias, u, v, left, right);
}

}  // namespace aft::dispatch

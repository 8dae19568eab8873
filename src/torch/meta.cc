// Shapes and dtypes of the results without any data, for meta tensors, torch.compile and torch.export. Reads no value
// of any tensor; checks what the CPU checks.

#include <ATen/OpMathType.h>
#include <torch/library.h>
#include <torch/types.h>

#include <tuple>
#include <vector>

#include "window_arguments.h"

namespace aft::dispatch {
namespace {

using at::Tensor;
using at::TensorList;

Tensor empty(c10::SymIntArrayRef shape, const Tensor& like) { return at::empty_symint(shape, like.options()); }
Tensor dense_like(const Tensor& t) { return empty(t.sym_sizes(), t); }

// In the dtype that the operator computes in.
Tensor empty_accumulated(c10::SymIntArrayRef shape, const Tensor& v) {
  return at::empty_symint(shape, v.options().dtype(at::toOpMathType(v.scalar_type())));
}

Tensor empty_saved(const WindowSizes& sizes, const Tensor& v) { return empty_accumulated({saved_size(sizes)}, v); }

std::vector<Tensor> empty_state(const WindowSizes& s, const Tensor& v) {
  return {at::empty_symint({s.sequences}, v.options().dtype(at::kLong)),
          empty_accumulated({s.sequences, s.key_channels}, v),
          empty_accumulated({s.sequences, s.key_channels}, v),
          empty_accumulated({s.sequences, s.channels}, v),
          empty_accumulated({s.sequences, s.left, s.key_channels}, v),
          empty_accumulated({s.sequences, s.left, s.channels}, v)};
}

Tensor empty_grad_q(ops::Gate gate, const Tensor& v) {
  return gate == ops::Gate::kNone ? empty({c10::SymInt(0)}, v) : dense_like(v);
}

Tensor empty_grad_band(const OptionalTensor& band, bool wanted, const Tensor& v) {
  return wanted && band.has_value() ? dense_like(*band) : empty({c10::SymInt(0)}, v);
}

Tensor window(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, bool causal,
              std::string_view gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  check_window("window", q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  return dense_like(v);
}

void window_out(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, bool causal,
                std::string_view gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                const Tensor& out) {
  check_window("window", q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  check_same("window", "out", out, "v", v);
}

std::tuple<Tensor, Tensor> window_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                          const OptionalTensor& band, bool causal, std::string_view gate, int64_t heads,
                                          const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  const WindowSizes sizes = check_window("window_forward", q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  return {dense_like(v), empty_saved(sizes, v)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> window_backward(const Tensor& grad_y, const OptionalTensor& q,
                                                           const Tensor& k, const Tensor& v, const OptionalTensor& band,
                                                           const Tensor& saved, bool causal, std::string_view gate,
                                                           int64_t heads, const OptionalTensor& key_mask,
                                                           const OptionalTensor& cu_seqlens, bool weights_gradient) {
  check_accumulated("window_backward", "saved", saved, v);
  const WindowSizes sizes = check_window("window_backward", q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  check_same("window_backward", "grad_y", grad_y, "v", v);
  return {empty_grad_q(sizes.gate, v), dense_like(k), dense_like(v), empty_grad_band(band, weights_gradient, v)};
}

void window_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                         const OptionalTensor& band, const Tensor& saved, bool causal, std::string_view gate,
                         int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens,
                         const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                         const OptionalTensor& grad_band) {
  constexpr std::string_view op = "window_backward";
  window_backward(grad_y, q, k, v, band, saved, causal, gate, heads, key_mask, cu_seqlens, grad_band.has_value());
  (void)window_gradients(op, q, k, v, band, grad_q, grad_k, grad_v, grad_band);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state(
    const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, TensorList state,
    std::string_view gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  const WindowSizes sizes =
      check_window("window_with_state", q, k, v, band, /*causal=*/true, gate, heads, key_mask, cu_seqlens);
  check_state("window_with_state", sizes, v, state);
  const std::vector<Tensor> s = empty_state(sizes, v);
  return {dense_like(v), s[0], s[1], s[2], s[3], s[4], s[5]};
}

Tensor window_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band,
                   TensorList state, std::string_view gate, int64_t heads) {
  constexpr std::string_view op = "window_step_";
  check_state(op, check_window(op, q, k, v, band, /*causal=*/true, gate, heads), v, state);
  check_step(op, v, state);
  return dense_like(v);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state_forward(
    const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& band, TensorList state,
    std::string_view gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  constexpr std::string_view op = "window_with_state_forward";
  const WindowSizes sizes = check_window(op, q, k, v, band, /*causal=*/true, gate, heads, key_mask, cu_seqlens);
  check_state(op, sizes, v, state);
  const std::vector<Tensor> s = empty_state(sizes, v);
  return {dense_like(v), s[0], s[1], s[2], s[3], s[4], s[5], empty_saved(sizes, v)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state_backward(
    const Tensor& grad_y, const Tensor& grad_den, const Tensor& grad_num, const Tensor& grad_ring_key,
    const Tensor& grad_ring_value, const OptionalTensor& q, const Tensor& k, const Tensor& v,
    const OptionalTensor& band, TensorList state, const Tensor& saved, std::string_view gate, int64_t heads,
    const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens, bool weights_gradient) {
  constexpr std::string_view op = "window_with_state_backward";
  check_accumulated(op, "saved", saved, v);
  const WindowSizes sizes = check_window(op, q, k, v, band, /*causal=*/true, gate, heads, key_mask, cu_seqlens);
  check_state(op, sizes, v, state);
  check_same(op, "grad_y", grad_y, "v", v);
  check_state_gradients(op, grad_den, grad_num, grad_ring_key, grad_ring_value, state);
  return {empty_grad_q(sizes.gate, v),
          dense_like(k),
          dense_like(v),
          empty_grad_band(band, weights_gradient, v),
          dense_like(grad_den),
          dense_like(grad_num),
          dense_like(grad_ring_key),
          dense_like(grad_ring_value)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> initial_state(const Tensor& k, const Tensor& v,
                                                                         int64_t left) {
  const std::vector<Tensor> s = empty_state(check_initial_state(k, v, left), v);
  return {s[0], s[1], s[2], s[3], s[4], s[5]};
}

Tensor local_bias(const Tensor& u, const Tensor& v, int64_t left, int64_t right) {
  check_local_bias("local_bias", u, v, left, right);
  return empty(local_bias_shape(u, left, right), u);
}

void local_bias_out(const Tensor& u, const Tensor& v, int64_t left, int64_t right, const Tensor& out) {
  check_local_bias("local_bias", u, v, left, right);
  check_shape("local_bias", "out", out, local_bias_shape(u, left, right), u);
}

std::tuple<Tensor, Tensor> local_bias_backward(const Tensor& grad_bias, const Tensor& u, const Tensor& v, int64_t left,
                                               int64_t right) {
  check_local_bias("local_bias_backward", u, v, left, right);
  check_shape("local_bias_backward", "grad_bias", grad_bias, local_bias_shape(u, left, right), u);
  return {dense_like(u), dense_like(v)};
}

void local_bias_backward_out(const Tensor& grad_bias, const Tensor& u, const Tensor& v, int64_t left, int64_t right,
                             const Tensor& grad_u, const Tensor& grad_v) {
  local_bias_backward(grad_bias, u, v, left, right);
  (void)local_bias_gradients("local_bias_backward", u, v, grad_u, grad_v);
}

TORCH_LIBRARY_IMPL(aft, Meta, m) {
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

}  // namespace
}  // namespace aft::dispatch

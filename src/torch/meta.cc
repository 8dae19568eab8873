// Shapes and dtypes of the results without any data, for meta tensors, torch.compile and torch.export. Reads no value
// of any tensor; checks what the CPU checks.

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

// Depends on the time in steps of the kernel's chunk, so the time becomes a number here; the batch stays a symbol.
Tensor empty_saved(const WindowSizes& sizes, const Tensor& v) {
  WindowSizes one_row = sizes;
  one_row.batch = 1;
  const int64_t size = v.scalar_type() == at::kFloat ? ops::window_saved_size<float>(one_row.shape())
                                                     : ops::window_saved_size<double>(one_row.shape());
  return empty({sizes.batch * size}, v);
}

std::vector<Tensor> empty_state(const WindowSizes& s, const Tensor& v) {
  return {at::empty_symint({s.batch}, v.options().dtype(at::kLong)),
          empty({s.batch, s.key_channels}, v),
          empty({s.batch, s.key_channels}, v),
          empty({s.batch, s.channels}, v),
          empty({s.batch, s.left, s.key_channels}, v),
          empty({s.batch, s.left, s.channels}, v)};
}

Tensor empty_grad_q(ops::Gate gate, const Tensor& v) {
  return gate == ops::Gate::kNone ? empty({c10::SymInt(0)}, v) : dense_like(v);
}

Tensor simple(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal, std::string_view gate,
              int64_t heads) {
  check_window("simple", q, k, v, {}, causal, gate, heads);
  return dense_like(v);
}

void simple_out(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal, std::string_view gate,
                int64_t heads, const Tensor& out) {
  check_window("simple", q, k, v, {}, causal, gate, heads);
  check_same("simple", "out", out, "v", v);
}

std::tuple<Tensor, Tensor> simple_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal,
                                          std::string_view gate, int64_t heads) {
  const WindowSizes sizes = check_window("simple_forward", q, k, v, {}, causal, gate, heads);
  return {dense_like(v), empty_saved(sizes, v)};
}

std::tuple<Tensor, Tensor, Tensor> simple_backward(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k,
                                                   const Tensor& v, const Tensor& saved, bool causal,
                                                   std::string_view gate, int64_t heads) {
  (void)saved;
  const WindowSizes sizes = check_window("simple_backward", q, k, v, {}, causal, gate, heads);
  check_same("simple_backward", "grad_y", grad_y, "v", v);
  return {empty_grad_q(sizes.gate, v), dense_like(k), dense_like(v)};
}

void simple_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                         const Tensor& saved, bool causal, std::string_view gate, int64_t heads,
                         const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v) {
  simple_backward(grad_y, q, k, v, saved, causal, gate, heads);
  if (q.has_value() && grad_q.has_value()) check_same("simple_backward", "grad_q", *grad_q, "q", *q);
  check_same("simple_backward", "grad_k", grad_k, "k", k);
  check_same("simple_backward", "grad_v", grad_v, "v", v);
}

using YAndState = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

YAndState with_state(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                     const OptionalTensor& bias, TensorList state, std::string_view gate, int64_t heads) {
  const WindowSizes sizes = check_window(op, q, k, v, bias, /*causal=*/true, gate, heads);
  check_state(op, sizes, v, state);
  const std::vector<Tensor> s = empty_state(sizes, v);
  return {dense_like(v), s[0], s[1], s[2], s[3], s[4], s[5]};
}

YAndState simple_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state,
                            std::string_view gate, int64_t heads) {
  return with_state("simple_with_state", q, k, v, {}, state, gate, heads);
}

Tensor step(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
            TensorList state, std::string_view gate, int64_t heads) {
  check_state(op, check_window(op, q, k, v, bias, /*causal=*/true, gate, heads), v, state);
  return dense_like(v);
}

Tensor simple_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state, std::string_view gate,
                   int64_t heads) {
  return step("simple_step_", q, k, v, {}, state, gate, heads);
}

Tensor local(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, bool causal,
             std::string_view gate) {
  check_window("local", q, k, v, bias, causal, gate, 1);
  return dense_like(v);
}

void local_out(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, bool causal,
               std::string_view gate, const Tensor& out) {
  check_window("local", q, k, v, bias, causal, gate, 1);
  check_same("local", "out", out, "v", v);
}

std::tuple<Tensor, Tensor> local_forward(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                         bool causal, std::string_view gate) {
  const WindowSizes sizes = check_window("local_forward", q, k, v, bias, causal, gate, 1);
  return {dense_like(v), empty_saved(sizes, v)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> local_backward(const Tensor& grad_y, const OptionalTensor& q,
                                                          const Tensor& k, const Tensor& v, const Tensor& bias,
                                                          const Tensor& saved, bool causal, std::string_view gate) {
  (void)saved;
  const WindowSizes sizes = check_window("local_backward", q, k, v, bias, causal, gate, 1);
  check_same("local_backward", "grad_y", grad_y, "v", v);
  return {empty_grad_q(sizes.gate, v), dense_like(k), dense_like(v), dense_like(bias)};
}

void local_backward_out(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& bias, const Tensor& saved, bool causal, std::string_view gate,
                        const OptionalTensor& grad_q, const Tensor& grad_k, const Tensor& grad_v,
                        const Tensor& grad_bias) {
  local_backward(grad_y, q, k, v, bias, saved, causal, gate);
  if (q.has_value() && grad_q.has_value()) check_same("local_backward", "grad_q", *grad_q, "q", *q);
  check_same("local_backward", "grad_k", grad_k, "k", k);
  check_same("local_backward", "grad_v", grad_v, "v", v);
  check_same("local_backward", "grad_bias", grad_bias, "bias", bias);
}

YAndState local_with_state(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                           TensorList state, std::string_view gate) {
  return with_state("local_with_state", q, k, v, bias, state, gate, 1);
}

Tensor local_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, TensorList state,
                  std::string_view gate) {
  return step("local_step_", q, k, v, bias, state, gate, 1);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state_forward(
    const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias, TensorList state,
    std::string_view gate, int64_t heads) {
  constexpr std::string_view op = "window_with_state_forward";
  const WindowSizes sizes = check_window(op, q, k, v, bias, /*causal=*/true, gate, heads);
  check_state(op, sizes, v, state);
  const std::vector<Tensor> s = empty_state(sizes, v);
  return {dense_like(v), s[0], s[1], s[2], s[3], s[4], s[5], empty_saved(sizes, v)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> window_with_state_backward(
    const Tensor& grad_y, const Tensor& grad_den, const Tensor& grad_num, const Tensor& grad_ring_key,
    const Tensor& grad_ring_value, const OptionalTensor& q, const Tensor& k, const Tensor& v,
    const OptionalTensor& bias, TensorList state, const Tensor& saved, std::string_view gate, int64_t heads) {
  (void)saved;
  constexpr std::string_view op = "window_with_state_backward";
  const WindowSizes sizes = check_window(op, q, k, v, bias, /*causal=*/true, gate, heads);
  check_state(op, sizes, v, state);
  check_same(op, "grad_y", grad_y, "v", v);
  check_same(op, "grad_den", grad_den, "state den", state[2]);
  check_same(op, "grad_num", grad_num, "state num", state[3]);
  check_same(op, "grad_ring_key", grad_ring_key, "state ring_key", state[4]);
  check_same(op, "grad_ring_value", grad_ring_value, "state ring_value", state[5]);
  return {empty_grad_q(sizes.gate, v),
          dense_like(k),
          dense_like(v),
          bias.has_value() ? dense_like(*bias) : empty({c10::SymInt(0)}, v),
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
  check_same("local_bias_backward", "grad_u", grad_u, "u", u);
  check_same("local_bias_backward", "grad_v", grad_v, "v", v);
}

TORCH_LIBRARY_IMPL(aft, Meta, m) {
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

}  // namespace
}  // namespace aft::dispatch

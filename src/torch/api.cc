// The functional C++ interface of include/aft/torch.h.

#include <array>
#include <tuple>

#include "aft/torch.h"
#include "operators.h"
#include "torch_threads.h"

namespace aft {
namespace {

std::array<torch::Tensor, 6> tensors_of(const State& s) {
  return {s.position, s.max, s.den, s.num, s.ring_key, s.ring_value};
}

std::tuple<torch::Tensor, State> split(const dispatch::YAndState& r) {
  return {std::get<0>(r),
          State{std::get<1>(r), std::get<2>(r), std::get<3>(r), std::get<4>(r), std::get<5>(r), std::get<6>(r)}};
}

}  // namespace

State State::detach() const {
  return {position.detach(), max.detach(), den.detach(), num.detach(), ring_key.detach(), ring_value.detach()};
}

State initial_state(int64_t batch, int64_t channels, int64_t key_channels, int64_t left,
                    const torch::TensorOptions& options) {
  // Tensors of no positions tell the operator everything but the values.
  const auto [position, max, den, num, ring_key, ring_value] = dispatch::initial_state(
      torch::empty({batch, 0, key_channels}, options), torch::empty({batch, 0, channels}, options), left);
  return {position, max, den, num, ring_key, ring_value};
}

torch::Tensor simple(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v, bool causal,
                     Gate gate, int64_t heads, const std::optional<torch::Tensor>& key_mask,
                     const std::optional<torch::Tensor>& cu_seqlens) {
  return dispatch::simple(q, k, v, causal, dispatch::name_of_gate(gate), heads, key_mask, cu_seqlens);
}

torch::Tensor local(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                    const torch::Tensor& bias, bool causal, Gate gate, const std::optional<torch::Tensor>& key_mask,
                    const std::optional<torch::Tensor>& cu_seqlens) {
  return dispatch::local(q, k, v, bias, causal, dispatch::name_of_gate(gate), key_mask, cu_seqlens);
}

torch::Tensor conv1d(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                     const torch::Tensor& kernel, bool causal, Gate gate, const std::optional<torch::Tensor>& key_mask,
                     const std::optional<torch::Tensor>& cu_seqlens) {
  return dispatch::conv1d(q, k, v, kernel, causal, dispatch::name_of_gate(gate), key_mask, cu_seqlens);
}

torch::Tensor conv2d(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                     const torch::Tensor& kernel, std::array<int64_t, 2> grid,
                     const std::optional<torch::Tensor>& key_mask, Gate gate) {
  return dispatch::conv2d(q, k, v, kernel, {grid[0], grid[1]}, key_mask, dispatch::name_of_gate(gate));
}

torch::Tensor full(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                   const FullWeights& weights, bool causal, Gate gate, int64_t heads,
                   const std::optional<torch::Tensor>& key_mask, const std::optional<torch::Tensor>& cu_seqlens) {
  return dispatch::full(q, k, v, weights.bias, weights.u, weights.w, causal, dispatch::name_of_gate(gate), heads,
                        key_mask, cu_seqlens);
}

torch::Tensor local_bias(const torch::Tensor& u, const torch::Tensor& v, int64_t left, int64_t right) {
  return dispatch::local_bias(u, v, left, right);
}

std::tuple<torch::Tensor, State> simple(const std::optional<torch::Tensor>& q, const torch::Tensor& k,
                                        const torch::Tensor& v, const State& state, Gate gate, int64_t heads,
                                        const std::optional<torch::Tensor>& key_mask,
                                        const std::optional<torch::Tensor>& cu_seqlens) {
  return split(dispatch::simple_with_state(q, k, v, tensors_of(state), dispatch::name_of_gate(gate), heads, key_mask,
                                           cu_seqlens));
}

std::tuple<torch::Tensor, State> local(const std::optional<torch::Tensor>& q, const torch::Tensor& k,
                                       const torch::Tensor& v, const torch::Tensor& bias, const State& state, Gate gate,
                                       const std::optional<torch::Tensor>& key_mask,
                                       const std::optional<torch::Tensor>& cu_seqlens) {
  return split(
      dispatch::local_with_state(q, k, v, bias, tensors_of(state), dispatch::name_of_gate(gate), key_mask, cu_seqlens));
}

std::tuple<torch::Tensor, State> conv1d(const std::optional<torch::Tensor>& q, const torch::Tensor& k,
                                        const torch::Tensor& v, const torch::Tensor& kernel, const State& state,
                                        Gate gate, const std::optional<torch::Tensor>& key_mask,
                                        const std::optional<torch::Tensor>& cu_seqlens) {
  return split(dispatch::conv1d_with_state(q, k, v, kernel, tensors_of(state), dispatch::name_of_gate(gate), key_mask,
                                           cu_seqlens));
}

std::tuple<torch::Tensor, State> full(const std::optional<torch::Tensor>& q, const torch::Tensor& k,
                                      const torch::Tensor& v, const FullWeights& weights, const State& state, Gate gate,
                                      int64_t heads) {
  return split(dispatch::full_with_state(q, k, v, weights.bias, weights.u, weights.w, tensors_of(state),
                                         dispatch::name_of_gate(gate), heads, std::nullopt));
}

torch::Tensor simple_step(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                          State& state, Gate gate, int64_t heads) {
  return dispatch::simple_step(q, k, v, tensors_of(state), dispatch::name_of_gate(gate), heads);
}

torch::Tensor local_step(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                         const torch::Tensor& bias, State& state, Gate gate) {
  return dispatch::local_step(q, k, v, bias, tensors_of(state), dispatch::name_of_gate(gate));
}

torch::Tensor conv1d_step(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                          const torch::Tensor& kernel, State& state, Gate gate) {
  return dispatch::conv1d_step(q, k, v, kernel, tensors_of(state), dispatch::name_of_gate(gate));
}

torch::Tensor full_step(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                        const FullWeights& weights, State& state, Gate gate, int64_t heads) {
  return dispatch::full_step(q, k, v, weights.bias, weights.u, weights.w, tensors_of(state),
                             dispatch::name_of_gate(gate), heads);
}

torch::Tensor reference(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                        const std::optional<torch::Tensor>& w, bool causal, Gate gate, int64_t heads,
                        const std::optional<torch::Tensor>& key_mask) {
  return dispatch::reference(q, k, v, w, causal, dispatch::name_of_gate(gate), heads, key_mask);
}

torch::Tensor local_weights(const torch::Tensor& bias, int64_t time, int64_t left, int64_t right) {
  return dispatch::local_weights(bias, time, left, right);
}

torch::Tensor conv2d_weights(const torch::Tensor& kernel, std::array<int64_t, 2> grid) {
  return dispatch::conv2d_weights(kernel, {grid[0], grid[1]});
}

ops::RedoCount redo_count() { return dispatch::redo_counters(); }

}  // namespace aft

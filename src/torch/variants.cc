// simple, local and conv1d: each checks its arguments under its own names and calls the windowed operator.

#include <torch/library.h>

#include <limits>

#include "operators.h"

namespace aft::dispatch {
namespace {

// local's band is [heads, rows, J]; [rows, J] is one head.
Tensor band_of_bias(std::string_view op, const Tensor& bias) {
  if (bias.dim() != 2 && bias.dim() != 3) {
    fail("aft::", op, ": bias must have shape [heads, rows, J] or [rows, J], got ", bias.sym_sizes(),
         ": make it with aft::local_bias");
  }
  return bias.dim() == 2 ? bias.unsqueeze(0) : bias;
}

const Tensor& band_of_kernel(std::string_view op, const Tensor& kernel) {
  if (kernel.dim() != 2) {
    fail("aft::", op, ": kernel must have shape [heads, J], got ", kernel.sym_sizes(),
         ": one row of weights for each head");
  }
  return kernel;
}

// The front of one call: what does not fit is said under the variant's names, before `window` says it under its own.
struct Front {
  std::string_view op, band_name;
  OptionalTensor q;
  Tensor k, v;
  OptionalTensor band;
  std::string_view gate;
  int64_t heads;
  OptionalTensor key_mask = std::nullopt, cu_seqlens = std::nullopt;

  [[nodiscard]] WindowSizes check(bool causal) const {
    return check_window(op, q, k, v, band, causal, gate, heads, key_mask, cu_seqlens, band_name);
  }
  [[nodiscard]] Tensor whole(bool causal) const {
    (void)check(causal);
    return window(q, k, v, band, causal, gate, heads, key_mask, cu_seqlens);
  }
  [[nodiscard]] YAndState with_state(TensorList state) const {
    check_state(op, check(/*causal=*/true), v, state);
    return window_with_state(q, k, v, band, state, gate, heads, key_mask, cu_seqlens);
  }
  [[nodiscard]] Tensor step(TensorList state) const {
    check_state(op, check(/*causal=*/true), v, state);
    check_step(op, v, state);
    return window_step(q, k, v, band, state, gate, heads);
  }
};

Front simple_front(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                   std::string_view gate, int64_t heads, const OptionalTensor& key_mask = std::nullopt,
                   const OptionalTensor& cu_seqlens = std::nullopt) {
  return {op, "band", q, k, v, std::nullopt, gate, heads, key_mask, cu_seqlens};
}

Front local_front(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                  std::string_view gate, const OptionalTensor& key_mask = std::nullopt,
                  const OptionalTensor& cu_seqlens = std::nullopt) {
  return {op, "bias", q, k, v, band_of_bias(op, bias), gate, 1, key_mask, cu_seqlens};
}

Front conv1d_front(std::string_view op, const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                   std::string_view gate, const OptionalTensor& key_mask = std::nullopt,
                   const OptionalTensor& cu_seqlens = std::nullopt) {
  return {op, "kernel", q, k, v, band_of_kernel(op, kernel), gate, 1, key_mask, cu_seqlens};
}

// Without causal every target sees the same sum, so q may have another length than k and v.
bool asks_other_targets(const OptionalTensor& q, const Tensor& v, bool causal, const OptionalTensor& cu_seqlens) {
  return !causal && !cu_seqlens.has_value() && q.has_value() && q->dim() == 3 && v.dim() == 3 &&
         q->sym_size(0) == v.sym_size(0) && q->sym_size(2) == v.sym_size(2) && q->sym_size(1) != v.sym_size(1) &&
         q->scalar_type() == v.scalar_type();
}

Tensor simple_across(const Tensor& q, const Tensor& k, const Tensor& v, std::string_view gate, int64_t heads,
                     const OptionalTensor& key_mask) {
  const ops::Gate kind = gate_from_name("simple", gate);
  if (kind == ops::Gate::kNone) fail("aft::simple: q must be absent with gate \"none\", got a tensor: pass None");
  // 16-bit tensors are rounded once, at the end.
  const bool narrow = v.scalar_type() == at::kBFloat16 || v.scalar_type() == at::kHalf;
  const auto wide = [&](const Tensor& t) { return narrow ? t.to(at::kFloat) : t; };
  const Front front = {"simple", "band", std::nullopt, wide(k), wide(v), std::nullopt, "none", heads, key_mask};
  // All rows are N/D; the sum of none is 0, and k and v stay in the graph.
  const Tensor all = front.whole(/*causal=*/false);
  const Tensor ratio = v.sym_size(1) == 0 ? all.sum(1, /*keepdim=*/true) : all.narrow_symint(1, 0, 1);
  // Where a channel has no source at all no target sees anything: whatever its query holds must not meet the 0.
  Tensor seen = k.detach() != -std::numeric_limits<double>::infinity();
  if (key_mask.has_value()) seen = seen.logical_and(key_mask->unsqueeze(2));
  seen = seen.any(1, /*keepdim=*/true);
  if (k.sym_size(2) != v.sym_size(2)) seen = seen.repeat_interleave_symint(v.sym_size(2) / k.sym_size(2), 2);
  const Tensor query = at::where(seen, wide(q), 0);
  return ((kind == ops::Gate::kSigmoid ? query.sigmoid() : query.relu()) * ratio).to(v.scalar_type());
}

Tensor simple_whole(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal, std::string_view gate,
                    int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  if (asks_other_targets(q, v, causal, cu_seqlens)) return simple_across(*q, k, v, gate, heads, key_mask);
  return simple_front("simple", q, k, v, gate, heads, key_mask, cu_seqlens).whole(causal);
}

YAndState simple_going_on(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state,
                          std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                          const OptionalTensor& cu_seqlens) {
  return simple_front("simple_with_state", q, k, v, gate, heads, key_mask, cu_seqlens).with_state(state);
}

Tensor simple_one(const OptionalTensor& q, const Tensor& k, const Tensor& v, TensorList state, std::string_view gate,
                  int64_t heads) {
  return simple_front("simple_step_", q, k, v, gate, heads).step(state);
}

Tensor local_whole(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, bool causal,
                   std::string_view gate, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  return local_front("local", q, k, v, bias, gate, key_mask, cu_seqlens).whole(causal);
}

YAndState local_going_on(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                         TensorList state, std::string_view gate, const OptionalTensor& key_mask,
                         const OptionalTensor& cu_seqlens) {
  return local_front("local_with_state", q, k, v, bias, gate, key_mask, cu_seqlens).with_state(state);
}

Tensor local_one(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, TensorList state,
                 std::string_view gate) {
  return local_front("local_step_", q, k, v, bias, gate).step(state);
}

Tensor conv1d_whole(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, bool causal,
                    std::string_view gate, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  return conv1d_front("conv1d", q, k, v, kernel, gate, key_mask, cu_seqlens).whole(causal);
}

YAndState conv1d_going_on(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                          TensorList state, std::string_view gate, const OptionalTensor& key_mask,
                          const OptionalTensor& cu_seqlens) {
  return conv1d_front("conv1d_with_state", q, k, v, kernel, gate, key_mask, cu_seqlens).with_state(state);
}

Tensor conv1d_one(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, TensorList state,
                  std::string_view gate) {
  return conv1d_front("conv1d_step_", q, k, v, kernel, gate).step(state);
}

void compose(torch::Library& m) {
  m.impl("simple", simple_whole);
  m.impl("simple_with_state", simple_going_on);
  m.impl("simple_step_", simple_one);
  m.impl("local", local_whole);
  m.impl("local_with_state", local_going_on);
  m.impl("local_step_", local_one);
  m.impl("conv1d", conv1d_whole);
  m.impl("conv1d_with_state", conv1d_going_on);
  m.impl("conv1d_step_", conv1d_one);
}

TORCH_LIBRARY_IMPL(aft, CompositeImplicitAutograd, m) { compose(m); }
// What these are made of knows vmap.
TORCH_LIBRARY_IMPL(aft, FuncTorchBatched, m) { compose(m); }

}  // namespace
}  // namespace aft::dispatch

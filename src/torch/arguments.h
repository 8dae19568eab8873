#pragma once

#include <torch/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "aft/error.h"
#include "aft/ops/operands.h"

// Checks of arguments that the operators share. Sizes are SymInt so that the same lines serve torch.compile's symbolic
// shapes.

namespace aft::dispatch {

using OptionalTensor = std::optional<at::Tensor>;

/// Throws aft::Error with the arguments printed one after another.
template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  throw Error(c10::str(args...));
}

std::string sizes_of(const at::Tensor& t);

ops::Gate gate_from_name(std::string_view op, std::string_view name);
std::string_view name_of_gate(ops::Gate gate);

/// Checks that a tensor is there and has a dtype that the operators take.
void check_floating(std::string_view op, std::string_view name, const at::Tensor& t);

/// The same for tensors that may be 16-bit too: float32, float64, bfloat16 or float16.
void check_elements(std::string_view op, std::string_view name, const at::Tensor& t);

/// Checks that a tensor is on v's device and has the dtype that v's operator computes in: float32 for 16-bit v, else
/// v's.
void check_accumulated(std::string_view op, std::string_view name, const at::Tensor& t, const at::Tensor& v);

void check_dtype_device(std::string_view op, std::string_view name, const at::Tensor& t, std::string_view like_name,
                        const at::Tensor& like);

/// Checks that weights are on v's device and have its dtype or, beside 16-bit v, float32.
void check_weights(std::string_view op, std::string_view name, const at::Tensor& t, const at::Tensor& v);

/// Checks a tensor that must have the shape, dtype and device of `like`.
void check_same(std::string_view op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                const at::Tensor& like);

/// Checks that a tensor has this shape and the dtype and device of `v`.
void check_shape(std::string_view op, std::string_view name, const at::Tensor& tensor, c10::SymIntArrayRef expected,
                 const at::Tensor& v);

/// Where a backward's `.out` form writes one gradient, beside the input that it is the gradient of; each undefined
/// where there is none.
struct GradientOutput {
  std::string_view name;
  at::Tensor to;
  std::string_view of_name;
  at::Tensor of;
  bool may_be_left_out = false;
};

/// Checks that each has the shape, dtype and device of its input, and is absent where that is.
void check_gradients(std::string_view op, const std::vector<GradientOutput>& outputs);

// What all families are handed, held against v [batch, positions, channels].

/// Checks v [batch, time, channels].
void check_values(std::string_view op, const at::Tensor& v);

/// Whether there is a query: every gate but none asks for one. Throws where q says otherwise.
bool has_query(std::string_view op, const OptionalTensor& q, ops::Gate gate);

void check_heads(std::string_view op, const c10::SymInt& heads, const at::Tensor& v);

/// Checks k [batch, positions, channels or heads].
void check_keys(std::string_view op, const at::Tensor& k, const at::Tensor& v, const c10::SymInt& heads);

/// Checks a mask [batch, positions], if there is one.
void check_key_mask(std::string_view op, const OptionalTensor& key_mask, const at::Tensor& v);

/// Checks a packing [sequences + 1], if there is one, and that v is a batch of 1 then.
void check_packing(std::string_view op, const OptionalTensor& cu_seqlens, const at::Tensor& v);

/// Checks the six tensors of a state of `rows` sequences, whose ring holds `ring` positions.
void check_state(std::string_view op, const c10::SymInt& rows, const c10::SymInt& key_channels, const c10::SymInt& ring,
                 const at::Tensor& v, at::TensorList state);

/// What editing a checked state in place by one position asks beside check_state.
void check_step(std::string_view op, const at::Tensor& v, at::TensorList state);

}  // namespace aft::dispatch

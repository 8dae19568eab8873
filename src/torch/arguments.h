#pragma once

#include <ATen/OpMathType.h>

#include <string>
#include <string_view>
#include <vector>

#include "aft/error.h"
#include "aft/ops/operands.h"
#include "call.h"

// Checks of arguments that the operators share. Sizes are SymInt so that the same lines serve torch.compile's symbolic
// shapes.

namespace aft::dispatch {

/// Throws aft::Error with the arguments printed one after another.
template <typename... Args>
[[noreturn]] void fail(const Args&... args) {
  throw Error(c10::str(args...));
}

/// The same after the name of the operator that refuses its arguments.
template <typename... Args>
[[noreturn]] void refuse(std::string_view op, const Args&... args) {
  fail("aft::", op, ": ", args...);
}

inline std::string sizes_of(const Tensor& t) { return c10::str(t.sym_sizes()); }

ops::Gate gate_from_name(std::string_view op, std::string_view name);
std::string_view name_of_gate(ops::Gate gate);

/// Checks that a tensor is there and float32, float64 or, where `narrow`, bfloat16 or float16.
void check_floating(std::string_view op, std::string_view name, const Tensor& t, bool narrow);

/// Checks that a tensor is on v's device and has the dtype that v's operator computes in: float32 for 16-bit v, else
/// v's; or v's in any case, as weights may.
void check_accumulated(std::string_view op, std::string_view name, const Tensor& t, const Tensor& v,
                       bool or_like_v = false);

void check_dtype_device(std::string_view op, std::string_view name, const Tensor& t, std::string_view like_name,
                        const Tensor& like);

inline void check_weights(std::string_view op, std::string_view name, const Tensor& t, const Tensor& v) {
  check_accumulated(op, name, t, v, /*or_like_v=*/true);
}

/// Checks a tensor that must have the shape, dtype and device of `like`.
void check_same(std::string_view op, std::string_view name, const Tensor& t, std::string_view like_name,
                const Tensor& like);

/// Checks that a tensor has this shape and the dtype and device of `v`.
void check_shape(std::string_view op, std::string_view name, const Tensor& t, c10::SymIntArrayRef expected,
                 const Tensor& v);

/// Checks v [batch, positions, channels] (`shape` and `remedy` say so), the mask, and whether there is a q. The gate.
ops::Gate check_call(std::string_view op, const Call& c, std::string_view shape = "[batch, time, channels]",
                     std::string_view remedy = "add the missing ones with unsqueeze()");

/// Whether there is a query: every gate but none asks for one. Throws where q says otherwise.
bool has_query(std::string_view op, const OptionalTensor& q, ops::Gate gate);

void check_heads(std::string_view op, const c10::SymInt& heads, const Tensor& v);

/// Checks k [batch, positions, channels or heads].
void check_keys(std::string_view op, const Tensor& k, const Tensor& v, const c10::SymInt& heads);

/// Checks a mask [batch, positions], if there is one.
void check_key_mask(std::string_view op, const OptionalTensor& key_mask, const Tensor& v);

/// Checks a packing [sequences + 1], if there is one, and that v is a batch of 1 then.
void check_packing(std::string_view op, const OptionalTensor& cu_seqlens, const Tensor& v);

/// Checks how far a window reaches to one side.
void check_reach(std::string_view op, std::string_view name, int64_t reach);

/// Checks the six tensors of a state of `rows` sequences, whose ring holds `ring` positions.
void check_state(std::string_view op, const c10::SymInt& rows, const c10::SymInt& key_channels, const c10::SymInt& ring,
                 const SequenceCall& c);

/// What editing a checked state in place by one position asks beside check_state.
void check_step(std::string_view op, const SequenceCall& c);

/// Checks the gradients of the last `count` tensors of a state, if there are any.
void check_state_gradients(std::string_view op, TensorList gradients, TensorList state, size_t count);

/// Checks what a backward is handed as saved by its forward.
void check_saved(std::string_view op, const Tensor& saved, const c10::SymInt& size, const Tensor& v);

}  // namespace aft::dispatch

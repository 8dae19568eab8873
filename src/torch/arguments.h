#pragma once

#include <torch/types.h>

#include <optional>
#include <string>
#include <string_view>

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

/// Checks a tensor that must have the shape, dtype and device of `like`.
void check_same(std::string_view op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                const at::Tensor& like);

/// Checks that a tensor has this shape and the dtype and device of `v`.
void check_shape(std::string_view op, std::string_view name, const at::Tensor& tensor, c10::SymIntArrayRef expected,
                 const at::Tensor& v);

}  // namespace aft::dispatch

#pragma once

#include <ATen/OpMathType.h>
#include <torch/types.h>

#include <string_view>
#include <type_traits>
#include <vector>

#include "aft/ops/operands.h"
#include "aft/ops/state.h"
#include "arguments.h"

// Between tensors and the params structs of aft/ops, for every operator's CPU side.

namespace aft::dispatch {

/// Calls body(T{}) with the C++ type of the tensors.
template <typename Body>
auto with_scalar_type(const at::Tensor& t, const Body& body) {
  return t.scalar_type() == at::kFloat ? body(float{}) : body(double{});
}

/// The same where tensors may be 16-bit: T is their element type in aft/ops.
template <typename Body>
auto with_element_type(const at::Tensor& t, const Body& body) {
  if (t.scalar_type() == at::kBFloat16) return body(ops::BFloat16{});
  if (t.scalar_type() == at::kHalf) return body(ops::Float16{});
  return with_scalar_type(t, body);
}

/// Operators read any batch and time stride, but channels one after another.
inline at::Tensor readable(const at::Tensor& t) { return t.size(-1) <= 1 || t.stride(-1) == 1 ? t : t.contiguous(); }

template <typename T>
ops::Rows<T> rows_of(const at::Tensor& t) {
  if (!t.defined()) return {};
  return {static_cast<T*>(t.data_ptr()), t.stride(0), t.stride(1)};
}

/// The six tensors of a state; none: no state.
template <typename T>
ops::State<T> state_of(at::TensorList s) {
  if (s.empty()) return {};
  using Value = std::remove_const_t<T>;
  return {s[0].data_ptr<int64_t>(), s[1].data_ptr<Value>(), s[2].data_ptr<Value>(),
          s[3].data_ptr<Value>(),   s[4].data_ptr<Value>(), s[5].data_ptr<Value>()};
}

/// Where v's operator computes: on its device, 16-bit elements in float32.
inline at::TensorOptions accumulated(const at::Tensor& v) {
  return v.options().dtype(at::toOpMathType(v.scalar_type()));
}

inline std::vector<at::Tensor> contiguous(at::TensorList tensors) {
  std::vector<at::Tensor> result;
  result.reserve(tensors.size());
  for (const at::Tensor& t : tensors) result.push_back(t.contiguous());
  return result;
}

/// An operator cannot return "no tensor": absent gradients are empty tensors of size [0].
inline at::Tensor or_empty(const at::Tensor& t, const at::Tensor& like) {
  return t.defined() ? t : at::empty({0}, like.options());
}

/// A gradient of weights while an operator adds it up: dense and in the type that v's operator computes in. That is the
/// result itself where it is so, else memory of its own, which finish() rounds into the result. Undefined: not wanted.
class WeightsGradient {
 public:
  /// `shape` is the result's with all of the dimensions that the operator knows.
  WeightsGradient(const at::Tensor& result, at::IntArrayRef shape, const at::Tensor& v);
  [[nodiscard]] const at::Tensor& sum() const { return sum_; }
  void finish() const;

 private:
  at::Tensor result_, sum_;
};

/// Checks that a tensor of the caller can take a result: contiguous in its last dimension, its own memory.
void check_writable(std::string_view op, std::string_view name, const at::Tensor& out,
                    const std::vector<OptionalTensor>& inputs);

/// The same for the gradients that are there, which must not share memory with one another either.
void check_writable(std::string_view op, const std::vector<GradientOutput>& outputs,
                    std::vector<OptionalTensor> inputs);

}  // namespace aft::dispatch

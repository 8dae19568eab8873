#pragma once

#include <ATen/OpMathType.h>

#include <type_traits>

#include "aft/ops/operands.h"
#include "aft/ops/state.h"
#include "arguments.h"

// Between tensors and the params structs of aft/ops, for every operator.

namespace aft::dispatch {

/// Calls body(T{}) with the C++ type of the tensors.
template <typename Body>
auto with_scalar_type(const Tensor& t, const Body& body) {
  return t.scalar_type() == at::kFloat ? body(float{}) : body(double{});
}

/// The same where tensors may be 16-bit: T is their element type in aft/ops.
template <typename Body>
auto with_element_type(const Tensor& t, const Body& body) {
  if (t.scalar_type() == at::kBFloat16) return body(ops::BFloat16{});
  if (t.scalar_type() == at::kHalf) return body(ops::Float16{});
  return with_scalar_type(t, body);
}

template <typename T>
T* data_of(const Tensor& t) {
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(t.const_data_ptr());
  } else {
    return static_cast<T*>(t.data_ptr());
  }
}
template <typename T>
T* data_of(const OptionalTensor& t) {
  return t.has_value() ? data_of<T>(*t) : nullptr;
}

template <typename T>
ops::Rows<T> rows_of(const Tensor& t) {
  return {data_of<T>(t), t.stride(0), t.stride(1)};
}
template <typename T>
ops::Rows<T> rows_of(const OptionalTensor& t) {
  return t.has_value() ? rows_of<T>(*t) : ops::Rows<T>();
}

/// The six tensors of a state; none: no state.
template <typename T>
ops::State<T> state_of(TensorList s) {
  if (s.empty()) return {};
  return {data_of<std::remove_pointer_t<decltype(ops::State<T>::position)>>(s[0]),
          data_of<T>(s[1]),
          data_of<T>(s[2]),
          data_of<T>(s[3]),
          data_of<T>(s[4]),
          data_of<T>(s[5])};
}

/// The gradients of the last tensors of a state; none: no gradient.
template <typename T>
ops::StateGrad<T> state_grad_of(TensorList s) {
  if (s.empty()) return {};
  const size_t ring = s.size() - 2;
  const auto sum = [&](size_t i) { return ring > 0 ? data_of<T>(s[i]) : nullptr; };
  return {sum(0), sum(1), data_of<T>(s[ring]), data_of<T>(s[ring + 1])};
}

/// Memory for the state after, if there is one before. Operators leave the slots of a ring that hold no source yet as
/// they are: zeros.
std::vector<Tensor> empty_state_like(TensorList state);

/// Operators read any batch and time stride, but channels one after another.
inline void make_readable(Tensor& t) {
  if (t.size(-1) > 1 && t.stride(-1) != 1) t = t.contiguous();
}
inline void make_readable(OptionalTensor& t) {
  if (t.has_value()) make_readable(*t);
}
inline void make_contiguous(OptionalTensor& t) {
  if (t.has_value()) t = t->contiguous();
}

/// Where v's operator computes: on its device, 16-bit elements in float32.
inline at::TensorOptions accumulated(const Tensor& v) { return v.options().dtype(at::toOpMathType(v.scalar_type())); }

/// Results that nobody asked for are empty tensors of size [0]: an operator cannot return "no tensor".
inline Tensor or_empty(const OptionalTensor& t, const Tensor& like) {
  return t.has_value() ? *t : at::empty({0}, like.options());
}

inline Tensor dense_like(const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); }

std::vector<Tensor> contiguous(TensorList tensors);

void make_readable(Call& c);
void make_readable(SequenceCall& c);

/// What all families have in common of their inputs, from a readable call.
template <typename E, typename Inputs, typename C>
Inputs inputs_of(const C& c) {
  Inputs in;
  in.q = rows_of<const E>(c.q);
  in.k = rows_of<const E>(c.k);
  in.v = rows_of<const E>(c.v);
  if (c.key_mask.has_value()) in.key_mask = {data_of<const bool>(*c.key_mask), c.key_mask->stride(0)};
  if constexpr (requires { in.cu_seqlens; }) {
    in.cu_seqlens = data_of<const int64_t>(c.cu_seqlens);
    in.longest = c.v.size(1);
    in.initial_state = state_of<const ops::Accumulate<E>>(c.state);
  }
  return in;
}

/// Where a backward writes the gradient of `of`; nullopt: not there or, of weights, not wanted.
struct GradientOutput {
  std::string_view name;
  OptionalTensor& to;
  std::string_view of_name;
  OptionalTensor of;
};

/// Checks where the caller wants the gradients of a backward: each has the shape, dtype and device of its input, is
/// absent where that is (those after the first three, which are weights', may be) and has memory of its own.
void check_gradients(std::string_view op, const std::vector<GradientOutput>& outputs, std::vector<Tensor> inputs);

/// Checks that a tensor of the caller can take a result: contiguous in its last dimension, its own memory.
void check_writable(std::string_view op, std::string_view name, const Tensor& out, const std::vector<Tensor>& inputs);

/// A gradient of weights while an operator adds it up: dense and in the type that v's operator computes in. That is the
/// result itself where it is so, else memory of its own, which finish() rounds into the result.
class GradientSum {
 public:
  /// `result` nullopt: not wanted. `weights`: those that the operator reads, of all dimensions that it knows.
  GradientSum(const OptionalTensor& result, const OptionalTensor& weights, const Tensor& v);
  [[nodiscard]] const OptionalTensor& sum() const { return sum_; }
  void finish() const;

 private:
  OptionalTensor result_, sum_;
};

}  // namespace aft::dispatch

#pragma once

#include <torch/library.h>

#include <vector>

#include "operator.h"

// Functions for any operator, by its schema: on the stack that holds its arguments, and after the call its results.

namespace aft::dispatch {

using c10::IValue;

/// Calls visit(tensor) for a tensor, and for each of a list.
template <typename Visit>
void visit_tensors(const IValue& value, const Visit& visit) {
  if (value.isTensor()) visit(value.toTensor());
  if (value.isTensorList()) {
    for (const Tensor& t : value.toTensorVector()) visit(t);
  }
}

/// The value with f(tensor) in place of every tensor.
template <typename Function>
IValue map_tensors(const IValue& value, const Function& f) {
  if (value.isTensor()) return f(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<Tensor> list;
  for (const Tensor& t : value.toTensorVector()) list.push_back(f(t));
  return list;
}

/// Calls visit(argument of the schema, its tensor) for all tensors among the arguments on the stack.
template <typename Visit>
void visit_arguments(const c10::OperatorHandle& op, const torch::jit::Stack& stack, const Visit& visit) {
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    visit_tensors(torch::jit::peek(stack, i, arguments.size()), [&](const Tensor& t) { visit(arguments[i], t); });
  }
}

inline bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

}  // namespace aft::dispatch

#pragma once

#include <torch/library.h>
#include <torch/types.h>

#include <algorithm>
#include <vector>

#include "arguments.h"

// vmap in both of PyTorch's ways: one rule for every operator that has a kernel of its own, a call for each slice.
// PyTorch's fallbacks know no lists of tensors and no written arguments.
//
// A Kind says how its way holds the slices of tensors at the innermost level among those of a call:
//   int64_t size(t)        how many t has, -1 where it is not batched there
//   Tensor slice(t, i)
//   Tensor together(slices)

namespace aft::dispatch {

using at::Tensor;
using c10::IValue;

template <typename Kind>
IValue slice_of(const Kind& kind, const IValue& argument, int64_t i) {
  const auto of = [&](const Tensor& t) { return t.defined() && kind.size(t) >= 0 ? kind.slice(t, i) : t; };
  if (argument.isTensor()) return of(argument.toTensor());
  if (!argument.isTensorList()) return argument;
  c10::List<Tensor> slices;
  for (const Tensor& t : argument.toTensorVector()) slices.push_back(of(t));
  return slices;
}

// Boxed: for torch::CppFunction::makeFromBoxedFunction.
template <typename Kind>
void each_slice(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema().arguments();
  std::vector<Tensor> tensors;
  std::vector<const c10::Argument*> names;  // of each
  const auto include = [&](const Tensor& t, const c10::Argument& argument) {
    if (!t.defined()) return;
    tensors.push_back(t);
    names.push_back(&argument);
  };
  for (size_t i = 0; i < schema.size(); ++i) {
    const IValue& argument = torch::jit::peek(*stack, i, schema.size());
    if (argument.isTensor()) include(argument.toTensor(), schema[i]);
    if (!argument.isTensorList()) continue;
    for (const Tensor& t : argument.toTensorVector()) include(t, schema[i]);
  }
  const Kind kind(tensors);
  int64_t size = -1;
  for (const Tensor& t : tensors) size = std::max(size, kind.size(t));
  if (size < 0) {
    op.callBoxed(stack);
    return;
  }
  if (size == 0) {
    fail(op.operator_name(), ": vmap must have at least one slice, got 0: pass more, or call aft::reference");
  }
  for (size_t i = 0; i < tensors.size(); ++i) {
    const bool is_written = names[i]->alias_info() != nullptr && names[i]->alias_info()->isWrite();
    if (is_written && kind.size(tensors[i]) < 0) {
      fail(op.operator_name(), ": ", names[i]->name(),
           " is written, so vmap must batch it where it batches another argument, got a tensor that all slices share: "
           "make it inside of vmap, or call the form that returns its result, or aft::reference");
    }
  }

  const std::vector<IValue> arguments = torch::jit::pop(*stack, schema.size());
  std::vector<std::vector<Tensor>> results(op.schema().returns().size());
  for (int64_t i = 0; i < size; ++i) {
    torch::jit::Stack one;
    for (const IValue& argument : arguments) one.push_back(slice_of(kind, argument, i));
    op.callBoxed(&one);
    for (size_t j = 0; j < results.size(); ++j) results[j].push_back(one[j].toTensor());
  }
  for (const std::vector<Tensor>& slices : results) stack->emplace_back(kind.together(slices));
}

template <typename Kind>
void slice_all(torch::Library& m) {
  for (const char* name : {"window",
                           "window.out",
                           "window_forward",
                           "window_backward",
                           "window_backward.out",  //
                           "window_with_state",
                           "window_step_",
                           "window_with_state_forward",
                           "window_with_state_backward",
                           "initial_state",  //
                           "local_bias",
                           "local_bias.out",
                           "local_bias_backward",
                           "local_bias_backward.out",  //
                           "conv2d",
                           "conv2d.out",
                           "conv2d_backward",
                           "conv2d_backward.out",  //
                           "full",
                           "full.out",
                           "full_forward",
                           "full_with_state",
                           "full_step_",
                           "full_backward",
                           "full_backward.out"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&each_slice<Kind>>());
  }
}

}  // namespace aft::dispatch

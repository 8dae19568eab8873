#pragma once

#include <algorithm>
#include <vector>

#include "arguments.h"
#include "boxed.h"
#include "register.h"

// vmap in both of PyTorch's ways: one rule for every operator that has a kernel of its own, a call for each slice.
// PyTorch's fallbacks know no lists of tensors and no written arguments.
//
// A Kind says how its way holds the slices of tensors at the innermost level among those of a call:
//   int64_t size(t)        how many t has, -1 where it is not batched there
//   Tensor slice(t, i)
//   Tensor together(slices)

namespace aft::dispatch {

// Boxed: for torch::CppFunction::makeFromBoxedFunction.
template <typename Kind>
void each_slice(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::vector<Tensor> tensors;
  std::vector<const c10::Argument*> arguments;  // of each
  visit_arguments(op, *stack, [&](const c10::Argument& argument, const Tensor& t) {
    if (!t.defined()) return;
    tensors.push_back(t);
    arguments.push_back(&argument);
  });
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
    if (is_written(*arguments[i]) && kind.size(tensors[i]) < 0) {
      fail(op.operator_name(), ": ", arguments[i]->name(),
           " is written, so vmap must batch it where it batches another argument, got a tensor that all slices share: "
           "make it inside of vmap, or call the form that returns its result, or aft::reference");
    }
  }

  const std::vector<IValue> given = torch::jit::pop(*stack, op.schema().arguments().size());
  torch::jit::Stack results;                // of the last slice
  std::vector<std::vector<Tensor>> slices;  // of every tensor among the results
  for (int64_t i = 0; i < size; ++i) {
    results.clear();
    for (const IValue& argument : given) {
      results.push_back(map_tensors(
          argument, [&](const Tensor& t) { return t.defined() && kind.size(t) >= 0 ? kind.slice(t, i) : t; }));
    }
    op.callBoxed(&results);
    size_t next = 0;
    for (const IValue& result : results) {
      visit_tensors(result, [&](const Tensor& t) {
        if (next == slices.size()) slices.emplace_back();
        slices[next++].push_back(t);
      });
    }
  }
  size_t next = 0;
  for (const IValue& result : results) {
    stack->push_back(map_tensors(result, [&](const Tensor&) { return kind.together(slices[next++]); }));
  }
}

}  // namespace aft::dispatch

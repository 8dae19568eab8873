#pragma once

#include <torch/library.h>

#include "gradients.h"
#include "one_copy.h"
#include "operator.h"

// What is registered of an operator beside its gradient.

namespace aft::dispatch {

// ---- boxed, for any operator

/// For operators that write into their arguments: no gradient passes, so asking for one is an error at once. Boxed.
void in_place_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

/// For the pieces behind a gradient, which have no derivative: their results hang in the graph by a node that throws
/// when a gradient arrives, and not before (create_graph=True alone is no error). Boxed.
void piece_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

/// vmap: a call for each slice (vmap.h).
torch::CppFunction each_slice_of_vmap();
torch::CppFunction each_slice_of_older_vmap();

/// Under autocast the public operators take q, k and v in its dtype. Weights, states and masks stay as they are: sums
/// and weights are f32 whatever the tensors are.
void cast_by_autocast(torch::Library& m, const char* op);

// ---- one operator

/// An operator with kernels: `body` serves all devices and shapes without data. Those that write and the pieces of a
/// gradient have no derivative; others need define_gradient().
template <typename Op, auto body>
void define(torch::Library& m) {
  using Key = c10::DispatchKey;
  m.def(Op::schema().c_str());
  for (const Key key : {Key::CPU, Key::CUDA, Key::Meta}) Op::template implement<body>(m, key);
  const char* name = Op::full_name.data();
  m.impl(name, torch::dispatch(Key::FuncTorchBatched, each_slice_of_vmap()));
  m.impl(name, torch::dispatch(Key::Batched, each_slice_of_older_vmap()));
  if constexpr (Op::writes) {
    m.impl(name, torch::dispatch(Key::Autograd, torch::CppFunction::makeFromBoxedFunction<&in_place_autograd>()));
  } else if constexpr (Op::name.ends_with("_forward") || Op::name.ends_with("_backward")) {
    m.impl(name, torch::dispatch(Key::Autograd, torch::CppFunction::makeFromBoxedFunction<&piece_autograd>()));
  }
}

/// The gradient of an operator that define() gave none. `check(name, call)` refuses what Family::Forward would refuse
/// under its own name.
template <typename Op, typename Family, auto check>
void define_gradient(torch::Library& m) {
  Op::template implement<differentiable<Op, Family, check>>(m, c10::DispatchKey::Autograd);
}

/// An operator that calls others, which know gradients, devices and vmap.
template <typename Op, auto body>
void define_composite(torch::Library& m) {
  m.def(Op::schema().c_str());
  Op::template implement<body>(m, c10::DispatchKey::CompositeImplicitAutograd);
  Op::template implement<body>(m, c10::DispatchKey::FuncTorchBatched);
}

}  // namespace aft::dispatch

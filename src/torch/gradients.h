#pragma once

#include <ATen/functorch/DynamicLayer.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>
#include <torch/types.h>

#include <algorithm>
#include <functional>
#include <string>
#include <tuple>

#include "arguments.h"

// What the gradients of every operator share.

namespace aft::dispatch {

using at::Tensor;
using at::TensorList;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;
using Below = at::AutoDispatchBelowADInplaceOrView;

constexpr char kNoForwardMode[] =
    "forward-mode derivatives (jvp) through an aft operator are not supported: take the gradient backwards, or call "
    "aft::reference, the same in differentiable torch operations";
constexpr char kNoTransform[] =
    "derivatives by torch.func (grad, vjp, jacrev, hessian) through an aft operator are not supported: take them with "
    "torch.autograd.grad, whose is_grads_batched=True gives many at once, or call aft::reference, the same in "
    "differentiable torch operations";

template <typename Predicate>
bool holds_of_any(const Tensor& t, const Predicate& predicate) {
  return t.defined() && predicate(t);
}
template <typename Predicate>
bool holds_of_any(const OptionalTensor& t, const Predicate& predicate) {
  return t.has_value() && holds_of_any(*t, predicate);
}
template <typename Predicate>
bool holds_of_any(TensorList list, const Predicate& predicate) {
  return std::any_of(list.begin(), list.end(), [&](const Tensor& t) { return holds_of_any(t, predicate); });
}

/// Whether the result must hang in the graph. Throws where a derivative is asked for that no operator here has, which
/// would be lost in silence or refused in PyTorch's own words.
template <typename... Tensors>
bool gradient_needed(const Tensors&... tensors) {
  const auto is_dual = [](const Tensor& t) { return t._fw_grad(/*level=*/0).defined(); };
  const auto requires_grad = [](const Tensor& t) { return t.requires_grad(); };
  if ((holds_of_any(tensors, is_dual) || ...)) fail(kNoForwardMode);
  if (!at::GradMode::is_enabled() || !(holds_of_any(tensors, requires_grad) || ...)) return false;
  if (at::functorch::maybeCurrentDynamicLayer().has_value()) fail(kNoTransform);
  return true;
}

inline OptionalTensor present(const Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// Whether a backward is asked for the gradient of input i, where what the forward saved begins with its inputs in their
// order. Inputs that are absent have no edge in the graph.
inline bool asked_for(const AutogradContext* ctx, const variable_list& saved, ptrdiff_t i) {
  const auto edge = std::count_if(saved.begin(), saved.begin() + i, [](const Tensor& t) { return t.defined(); });
  return saved[i].defined() && ctx->needs_input_grad(static_cast<size_t>(edge));
}

// An operator without a derivative: its results hang in the graph by a node that throws `message` when a gradient
// arrives, and not before (create_graph=True alone is no error).
struct NoDerivative : Function<NoDerivative> {
  static variable_list forward(AutogradContext* ctx, TensorList inputs, const std::function<variable_list()>& run,
                               const char* message) {
    (void)inputs;
    const Below below;
    ctx->saved_data["message"] = std::string(message);
    return run();
  }
  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    fail(ctx->saved_data["message"].toStringRef());
  }
};

inline void append(variable_list& list, const Tensor& t) {
  if (t.defined()) list.push_back(t);
}
inline void append(variable_list& list, const OptionalTensor& t) {
  if (t.has_value()) append(list, *t);
}
inline void append(variable_list& list, TensorList ts) {
  for (const Tensor& t : ts) append(list, t);
}

// Calls run() below autograd; where a gradient could be asked for, ties the result to NoDerivative.
template <typename Run, typename... Tensors>
auto without_derivative(const char* message, const Run& run, const Tensors&... inputs) {
  if (!gradient_needed(inputs...)) {
    const Below below;
    return run();
  }
  variable_list list;
  (append(list, inputs), ...);
  const std::function<variable_list()> run_to_list = [&] {
    return std::apply([](const auto&... t) { return variable_list{t...}; }, run());
  };
  const variable_list results = NoDerivative::apply(TensorList(list), run_to_list, message);
  decltype(run()) tuple;
  size_t i = 0;
  std::apply([&](auto&... t) { ((t = results[i++]), ...); }, tuple);
  return tuple;
}

constexpr char kNoSecond[] =
    "double backward through an aft operator is not supported: take first derivatives only (no gradient of a "
    "gradient), or call aft::reference, the same in differentiable torch operations, where second ones are needed";

/// Operators that write into their arguments: no gradient passes, so asking for one is an error at once. Boxed: for
/// torch::CppFunction::makeFromBoxedFunction.
void in_place_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace aft::dispatch

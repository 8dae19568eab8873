#pragma once

#include <ATen/functorch/DynamicLayer.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <string>

#include "arguments.h"

// Gradients of all operators. The backward of an operator is an operator itself, so that it can be traced, tested and
// timed alone.

namespace aft::dispatch {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Below = at::AutoDispatchBelowADInplaceOrView;

constexpr char kNoForwardMode[] =
    "forward-mode derivatives (jvp) through an aft operator are not supported: take the gradient backwards, or call "
    "aft::reference, the same in differentiable torch operations";
constexpr char kNoTransform[] =
    "derivatives by torch.func (grad, vjp, jacrev, hessian) through an aft operator are not supported: take them with "
    "torch.autograd.grad, whose is_grads_batched=True gives many at once, or call aft::reference, the same in "
    "differentiable torch operations";

/// Whether the result of what is called with these must hang in the graph. Throws where a derivative is asked for that
/// no operator here has, which would be lost in silence or refused in PyTorch's own words.
template <typename... T>
bool gradient_needed(const T&... arguments) {
  bool is_dual = false, requires_grad = false;
  const auto look = [&](const Tensor& t) {
    is_dual = is_dual || (t.defined() && t._fw_grad(/*level=*/0).defined());
    requires_grad = requires_grad || (t.defined() && t.requires_grad());
  };
  (visit_tensors(arguments, look), ...);
  if (is_dual) fail(kNoForwardMode);
  if (!requires_grad || !at::GradMode::is_enabled()) return false;
  if (at::functorch::maybeCurrentDynamicLayer().has_value()) fail(kNoTransform);
  return true;
}
template <typename... A, typename C>
bool gradient_needed(Arguments<A...>, const C& c) {
  return gradient_needed(c.*A::member...);
}

// A graph keeps the inputs of a call: tensors in one list, the rest by name.
template <typename T>
constexpr bool kIsTensor = std::is_same_v<T, Tensor> || std::is_same_v<T, OptionalTensor>;

template <typename T>
void keep(AutogradContext* ctx, std::string_view name, const T& member) {
  if constexpr (std::is_same_v<T, std::string_view>) {
    ctx->saved_data[std::string(name)] = std::string(member);
  } else if constexpr (std::is_same_v<T, c10::SymDimVector>) {
    ctx->saved_data[std::string(name)] = c10::SymIntArrayRef(member);
  } else if constexpr (!kIsTensor<T> && !std::is_same_v<T, TensorList>) {
    ctx->saved_data[std::string(name)] = member;
  }
}

// `next` are the tensors that follow, of which a list takes `length`.
template <typename T>
void restore(AutogradContext* ctx, std::string_view name, T& member, const Tensor*& next, size_t length) {
  if constexpr (std::is_same_v<T, TensorList>) {
    member = TensorList(next, length);
    next += length;
  } else if constexpr (kIsTensor<T>) {
    if (next->defined()) member = *next;
    ++next;
  } else if constexpr (std::is_same_v<T, std::string_view>) {
    member = ctx->saved_data.at(std::string(name)).toStringRef();
  } else if constexpr (std::is_same_v<T, c10::SymDimVector>) {
    take(member, ctx->saved_data.at(std::string(name)).toSymIntVector());
  } else {
    member = ctx->saved_data.at(std::string(name)).template to<T>();
  }
}

/// Calls a forward, and keeps for the backward what it was called with and what it saves. Gives its other results.
template <typename Forward, typename... A>
variable_list call_and_keep(AutogradContext* ctx, const typename Forward::Call& c, Arguments<A...> inputs) {
  const Below below;
  variable_list results = flat(Forward::call(c));
  variable_list kept = tensors_read(inputs, c);
  constexpr bool saves = !std::is_same_v<typename Forward::Result, Tensor>;
  kept.push_back(saves ? results[1] : Tensor());
  if (saves) results.erase(results.begin() + 1);
  ctx->save_for_backward(std::move(kept));
  (keep(ctx, A::name, c.*A::member), ...);
  return results;
}

/// Gives a backward's call what was kept.
template <typename C, typename... A>
void restore(AutogradContext* ctx, const variable_list& kept, C& c, Arguments<A...>) {
  constexpr size_t alone = (size_t{kIsTensor<std::decay_t<decltype(c.*A::member)>>} + ...);
  const Tensor* next = kept.data();
  (restore(ctx, A::name, c.*A::member, next, kept.size() - 1 - alone), ...);
  c.saved = kept.back();
}

/// The gradient of a family's operators. Its Forward gives y, or (y, what it saves, the state after); its Backward the
/// gradients of the forward's inputs in their order, of a state those of the last kStateGradients. Behind q, k and v
/// come kWeights weights, whose gradient may not be wanted.
template <typename Family>
struct Gradient : torch::autograd::Function<Gradient<Family>> {
  using Forward = typename Family::Forward;

  // The inputs are the tensors of the call that there are: they alone have edges in the graph.
  static variable_list forward(AutogradContext* ctx, TensorList /*inputs*/, const typename Forward::Call& call) {
    variable_list results = call_and_keep<Forward>(ctx, call, typename Forward::Taken());
    if (results.size() > 1) {
      ctx->mark_non_differentiable({results.begin() + 1, results.end() - Family::kStateGradients});
    }
    return results;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list kept = ctx->get_saved_variables();
    typename Family::Backward::Call c;
    restore(ctx, kept, c, typename Forward::Taken());
    c.grad_y = grads[0];
    const bool stateful = grads.size() > 1;
    if (stateful) c.grad_state = TensorList(grads).slice(grads.size() - Family::kStateGradients);
    const auto is_weight = [](size_t i) { return i >= 3 && i < 3 + Family::kWeights; };
    c.weights_gradient = false;
    for (size_t i = 0, edge = 0; i + 1 < kept.size(); ++i) {
      if (!kept[i].defined()) continue;
      if (is_weight(i) && ctx->needs_input_grad(edge)) c.weights_gradient = true;
      ++edge;
    }

    variable_list of = flat(Family::Backward::call(c));
    if (stateful) of.insert(of.end() - Family::kStateGradients, 6 - Family::kStateGradients, Tensor());
    variable_list result;
    for (size_t i = 0; i + 1 < kept.size(); ++i) {
      if (!kept[i].defined()) continue;
      result.push_back(i < of.size() && (c.weights_gradient || !is_weight(i)) ? of[i] : Tensor());
    }
    result.emplace_back();  // of the call
    return result;
  }
};

/// What an operator does under autograd.
template <typename Op, typename Family, auto check>
typename Op::Result differentiable(std::string_view op, const typename Op::Call& c) {
  if (!gradient_needed(typename Op::Taken(), c)) {
    const Below below;
    return Op::call(c);
  }
  (void)check(op, c);
  variable_list inputs = tensors_read(typename Family::Forward::Taken(), c);
  std::erase_if(inputs, [](const Tensor& t) { return !t.defined(); });
  return unflat<typename Op::Result>(Gradient<Family>::apply(TensorList(inputs), c));
}

}  // namespace aft::dispatch

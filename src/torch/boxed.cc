// What the dispatcher can do for any operator by its schema: autocast, and refusing derivatives.

#include "boxed.h"

#include <ATen/autocast_mode.h>

#include <string>

#include "gradients.h"
#include "register.h"

namespace aft::dispatch {
namespace {

// Casts the arguments named q, k and v of any operator, f64 and absent ones excepted, and calls it without autocast.
template <c10::DeviceType device>
void cast_qkv(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& name = arguments[i].name();
    if (name != "q" && name != "k" && name != "v") continue;
    c10::IValue& value = torch::jit::peek(*stack, i, arguments.size());
    if (!value.isTensor()) continue;
    value = at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), value.toTensor(), device);
  }
  const c10::impl::ExcludeDispatchKeyGuard without(at::autocast::get_autocast_dispatch_key_from_device_type(device));
  op.callBoxed(stack);
}

template <c10::DeviceType device>
void cast_on(torch::Library& m, const char* op, c10::DispatchKey key) {
  m.impl(op, torch::dispatch(key, torch::CppFunction::makeFromBoxedFunction<&cast_qkv<device>>()));
}

struct NoDerivative : torch::autograd::Function<NoDerivative> {
  // Calls the operator on the stack; `inputs` are what has edges in the graph.
  static variable_list forward(AutogradContext* ctx, TensorList inputs, const c10::OperatorHandle& op,
                               torch::jit::Stack* stack, const std::string& message) {
    (void)inputs;
    const Below below;
    op.callBoxed(stack);
    ctx->saved_data["message"] = message;
    variable_list results;
    for (const IValue& value : *stack) visit_tensors(value, [&](const Tensor& t) { results.push_back(t); });
    return results;
  }
  static variable_list backward(AutogradContext* ctx, const variable_list&) {
    fail(ctx->saved_data["message"].toStringRef());
  }
};

std::string message_of(const std::string& name) {
  const size_t forward = name.rfind("_forward");
  if (forward != name.npos) {
    const std::string base = name.substr(0, forward);
    return c10::str(name, " has no derivative: call ", base, " or ", base, "_with_state");
  }
  return "double backward through an aft operator is not supported: take first derivatives only (no gradient of a "
         "gradient), or call aft::reference, the same in differentiable torch operations, where second ones are needed";
}

}  // namespace

void cast_by_autocast(torch::Library& m, const char* op) {
  cast_on<at::kCPU>(m, op, c10::DispatchKey::AutocastCPU);
  cast_on<at::kCUDA>(m, op, c10::DispatchKey::AutocastCUDA);
}

void piece_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  variable_list inputs;
  visit_arguments(op, *stack, [&](const c10::Argument&, const Tensor& t) {
    if (t.defined()) inputs.push_back(t);
  });
  if (!gradient_needed(TensorList(inputs))) {
    const Below below;
    op.callBoxed(stack);
    return;
  }
  torch::jit::Stack call = torch::jit::pop(*stack, count);
  const variable_list results =
      NoDerivative::apply(TensorList(inputs), op, &call, message_of(op.schema().operator_name().name));
  size_t next = 0;
  for (const IValue& value : call) {
    stack->push_back(map_tensors(value, [&](const Tensor&) { return results[next++]; }));
  }
}

void in_place_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  variable_list written;
  bool asked = false;
  visit_arguments(op, *stack, [&](const c10::Argument& argument, const Tensor& t) {
    asked = asked || gradient_needed(t);
    if (is_written(argument) && t.defined()) written.push_back(t);
  });
  if (asked) {
    fail(op.operator_name(),
         " writes into its arguments and has no gradient, but one of them requires it: call it under ",
         "torch.no_grad(), or the form that returns its result");
  }
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  for (const Tensor& t : written) torch::autograd::impl::bump_version(t);
}

}  // namespace aft::dispatch

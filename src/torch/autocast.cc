// Under torch.autocast the public operators take q, k and v in its dtype. Weights, states and masks stay as they are:
// sums and weights are f32 whatever the tensors are.

#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>
#include <torch/types.h>

#include <string>

namespace aft::dispatch {
namespace {

// The operators that are cast for: a line for each family.
constexpr const char* kNames[] = {
    "simple", "simple_with_state", "simple_step_",  //
    "local",  "local_with_state",  "local_step_",   //
    "conv1d", "conv1d_with_state", "conv1d_step_",  //
    "full",   "full_with_state",   "full_step_",    //
    "conv2d",
};

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
void cast_for_all(torch::Library& m) {
  for (const char* name : kNames) m.impl(name, torch::CppFunction::makeFromBoxedFunction<&cast_qkv<device>>());
}

TORCH_LIBRARY_IMPL(aft, AutocastCPU, m) { cast_for_all<at::kCPU>(m); }
TORCH_LIBRARY_IMPL(aft, AutocastCUDA, m) { cast_for_all<at::kCUDA>(m); }

}  // namespace
}  // namespace aft::dispatch

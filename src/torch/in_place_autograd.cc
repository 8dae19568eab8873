#include "gradients.h"

namespace aft::dispatch {

void in_place_autograd(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  variable_list written;
  bool asked = false;
  const auto look = [&](const Tensor& t, bool is_written) {
    asked = asked || gradient_needed(t);
    if (is_written && t.defined()) written.push_back(t);
  };
  for (size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& value = torch::jit::peek(*stack, i, arguments.size());
    const bool is_written = arguments[i].alias_info() != nullptr && arguments[i].alias_info()->isWrite();
    if (value.isTensor()) look(value.toTensor(), is_written);
    if (value.isTensorList()) {
      for (const Tensor& t : value.toTensorVector()) look(t, is_written);
    }
  }
  if (asked) {
    fail(op.operator_name(),
         " writes into its arguments and has no gradient, but one of them requires it: call it under ",
         "torch.no_grad(), or the form that returns its result");
  }
  op.redispatchBoxed(keys & c10::after_ADInplaceOrView_keyset, stack);
  for (const Tensor& t : written) torch::autograd::impl::bump_version(t);
}

}  // namespace aft::dispatch

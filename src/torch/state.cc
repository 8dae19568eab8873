// The neutral state, and states of include/aft/torch.h.

#include <array>

#include "aft/ops/window.h"
#include "aft/torch.h"
#include "device.h"
#include "register.h"
#include "tensors.h"
#include "version_check.h"

namespace aft {
namespace dispatch {
namespace {

struct InitialStateCall {
  Tensor k, v;
  int64_t left = 0;
};

struct InitialState
    : Operator<InitialStateCall, "initial_state",
               Returns<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>,
                       "(Tensor position, Tensor max, Tensor den, Tensor num, Tensor ring_key, Tensor ring_value)">,
               Join<Argument<"Tensor k", &InitialStateCall::k>, Argument<"Tensor v", &InitialStateCall::v>,
                    Argument<"int left=0", &InitialStateCall::left>>> {};

InitialState::Result neutral(std::string_view op, const InitialStateCall& c) {
  check_torch_version();
  check_floating(op, "v", c.v, /*narrow=*/true);
  check_dtype_device(op, "k", c.k, "v", c.v);
  if (c.k.dim() != 3 || c.v.dim() != 3 || c.k.sym_size(0) != c.v.sym_size(0)) {
    refuse(op, "k and v must have shapes [batch, time, key channels] and [batch, time, channels], got ", sizes_of(c.k),
           " and ", sizes_of(c.v), ": pass what the operator will get");
  }
  check_reach(op, "left", c.left);
  const c10::SymInt batch = c.v.sym_size(0), keys = c.k.sym_size(2), channels = c.v.sym_size(2);
  const at::TensorOptions options = accumulated(c.v);
  const std::array<Tensor, 6> s = {at::empty_symint({batch}, options.dtype(at::kLong)),
                                   at::empty_symint({batch, keys}, options),
                                   at::empty_symint({batch, keys}, options),
                                   at::empty_symint({batch, channels}, options),
                                   at::zeros_symint({batch, c.left, keys}, options),
                                   at::zeros_symint({batch, c.left, channels}, options)};
  if (!c.v.is_meta()) {
    ops::WindowShape shape;
    shape.batch = c.v.size(0);
    shape.channels = c.v.size(2);
    shape.key_channels = c.k.size(2);
    shape.left = c.left;
    shape.has_band = c.left > 0;
    with_scalar_type(s[1], [&]<typename T>(T) {
      on_device(
          c.v, [] { return 0; }, [&](const auto& device) { ops::window_state_init(shape, state_of<T>(s), device); });
    });
  }
  return {s[0], s[1], s[2], s[3], s[4], s[5]};
}

AFT_REGISTER(m) {
  define<InitialState, neutral>(m);
  // Constants, whatever k and v are.
  m.impl("initial_state", torch::dispatch(c10::DispatchKey::Autograd, torch::CppFunction::makeFallthrough()));
}

}  // namespace
}  // namespace dispatch

State State::detach() const {
  return {position.detach(), max.detach(), den.detach(), num.detach(), ring_key.detach(), ring_value.detach()};
}

State initial_state(int64_t batch, int64_t channels, int64_t key_channels, int64_t left,
                    const torch::TensorOptions& options) {
  // Tensors of no positions tell the operator everything but the values.
  const auto [position, max, den, num, ring_key, ring_value] = dispatch::InitialState::call(
      torch::empty({batch, 0, key_channels}, options), torch::empty({batch, 0, channels}, options), left);
  return {position, max, den, num, ring_key, ring_value};
}

}  // namespace aft

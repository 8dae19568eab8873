// Factors of AFT-local to the weights of its window.

#include "aft/ops/local_bias.h"

#include "aft/torch.h"
#include "device.h"
#include "register.h"
#include "tensors.h"
#include "version_check.h"

namespace aft {
namespace dispatch {
namespace {

struct LocalBiasCall {
  Tensor u, v;  // [rows, width] or [heads, rows, width]
  int64_t left = 0, right = 0;
  Tensor out;
};

struct LocalBiasBackwardCall : LocalBiasCall, Gradients {
  OptionalTensor grad_u, grad_v;
};

using Factors = Join<Argument<"Tensor u", &LocalBiasCall::u>, Argument<"Tensor v", &LocalBiasCall::v>,
                     Argument<"int left", &LocalBiasCall::left>, Argument<"int right=0", &LocalBiasCall::right>>;
using GradBias = Argument<"Tensor grad_bias", &LocalBiasBackwardCall::grad_y>;

struct LocalBias : Operator<LocalBiasCall, "local_bias", ReturnsTensor, Factors> {};
struct LocalBiasOut : Operator<LocalBiasCall, "local_bias.out", ReturnsNothing,
                               Join<Factors, ByName, Argument<"Tensor(a!) out", &LocalBiasCall::out>>> {};
struct LocalBiasBackward
    : Operator<LocalBiasBackwardCall, "local_bias_backward",
               Returns<std::tuple<Tensor, Tensor>, "(Tensor grad_u, Tensor grad_v)">, Join<GradBias, Factors>> {};
struct LocalBiasBackwardOut
    : Operator<LocalBiasBackwardCall, "local_bias_backward.out", ReturnsNothing,
               Join<GradBias, Factors, ByName, Argument<"Tensor(a!) grad_u", &LocalBiasBackwardCall::grad_u>,
                    Argument<"Tensor(b!) grad_v", &LocalBiasBackwardCall::grad_v>>> {};

struct LocalBiasFamily {
  using Forward = LocalBias;
  using Backward = LocalBiasBackward;
  static constexpr size_t kWeights = 0, kStateGradients = 0;
};

void check_local_bias(std::string_view op, const LocalBiasCall& c) {
  check_torch_version();
  check_floating(op, "u", c.u, /*narrow=*/false);
  if (c.u.dim() != 2 && c.u.dim() != 3) {
    refuse(op, "u must have shape [rows, width] or [heads, rows, width], got ", sizes_of(c.u), ": reshape it");
  }
  check_same(op, "v", c.v, "u", c.u);
  check_reach(op, "left", c.left);
  check_reach(op, "right", c.right);
}

// u's shape with its last size replaced by left + 1 + right.
c10::SymDimVector bias_shape(const LocalBiasCall& c) {
  c10::SymDimVector shape(c.u.sym_sizes().begin(), c.u.sym_sizes().end());
  shape.back() = c.left + 1 + c.right;
  return shape;
}

template <typename T>
ops::LocalBiasInputs<T> local_bias_inputs(LocalBiasCall& c) {
  c.u = c.u.contiguous();
  c.v = c.v.contiguous();
  const int64_t heads = c.u.dim() == 3 ? c.u.size(0) : 1;
  return {{heads, c.u.size(-2), c.u.size(-1), c.left, c.right}, data_of<const T>(c.u), data_of<const T>(c.v)};
}

void check_dense(std::string_view op, std::string_view name, const Tensor& out) {
  if (!out.is_contiguous()) {
    refuse(op, name, " must be contiguous, got strides ", out.sym_strides(), ": allocate it with torch.empty");
  }
}

constexpr auto kNoWorkspace = [] { return 0; };

// Also for .out, where `out` is given.
Tensor local_bias(std::string_view op, LocalBiasCall& c) {
  check_local_bias(op, c);
  if (c.out.defined()) {
    check_shape(op, "out", c.out, bias_shape(c), c.u);
    check_dense(op, "out", c.out);
    check_writable(op, "out", c.out, {c.u, c.v});
  } else {
    c.out = at::empty_symint(bias_shape(c), c.u.options());
  }
  if (c.u.is_meta()) return c.out;
  with_scalar_type(c.u, [&]<typename T>(T) {
    const ops::LocalBiasForward<T> p = {local_bias_inputs<T>(c), data_of<T>(c.out)};
    on_device(c.u, kNoWorkspace, [&](const auto& device) { ops::local_bias_forward(p, device); });
  });
  return c.out;
}

LocalBiasBackward::Result local_bias_backward(std::string_view op, LocalBiasBackwardCall& c) {
  check_local_bias(op, c);
  check_shape(op, "grad_bias", c.grad_y, bias_shape(c), c.u);
  if (c.grad_u.has_value()) {
    check_gradients(op, {{"grad_u", c.grad_u, "u", c.u}, {"grad_v", c.grad_v, "v", c.v}}, {c.grad_y, c.u, c.v});
    check_dense(op, "grad_u", *c.grad_u);
    check_dense(op, "grad_v", *c.grad_v);
  } else {
    c.grad_u = dense_like(c.u);
    c.grad_v = dense_like(c.u);
  }
  if (c.u.is_meta()) return {*c.grad_u, *c.grad_v};
  c.grad_y = c.grad_y.contiguous();
  with_scalar_type(c.u, [&]<typename T>(T) {
    const ops::LocalBiasBackward<T> p = {local_bias_inputs<T>(c), data_of<const T>(c.grad_y), data_of<T>(c.grad_u),
                                         data_of<T>(c.grad_v)};
    on_device(c.u, kNoWorkspace, [&](const auto& device) { ops::local_bias_backward(p, device); });
  });
  return {*c.grad_u, *c.grad_v};
}

AFT_REGISTER(m) {
  define<LocalBias, local_bias>(m);
  define<LocalBiasOut, local_bias>(m);
  define<LocalBiasBackward, local_bias_backward>(m);
  define<LocalBiasBackwardOut, local_bias_backward>(m);
  define_gradient<LocalBias, LocalBiasFamily, check_local_bias>(m);
}

}  // namespace
}  // namespace dispatch

torch::Tensor local_bias(const torch::Tensor& u, const torch::Tensor& v, int64_t left, int64_t right) {
  return dispatch::LocalBias::call(u, v, left, right);
}

}  // namespace aft

// AFT-conv 2-D: the grid operator.

#include "aft/ops/grid.h"
#include "aft/torch.h"
#include "family.h"

namespace aft {
namespace dispatch {
namespace {

struct Conv2dOut : Operator<Conv2dCall, "conv2d.out", ReturnsNothing, Join<OnGrid, Out>> {};
struct Conv2dBackward : Operator<Conv2dBackwardCall, "conv2d_backward",
                                 Returns<std::tuple<Tensor, Tensor, Tensor, Tensor>,
                                         "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_kernel)">,
                                 Join<GradY, OnGrid, WeightsGradient>> {};

bool overflows(const c10::SymDimVector& grid) {
  const auto height = grid[0].maybe_as_int(), width = grid[1].maybe_as_int();
  int64_t product = 0;
  return height.has_value() && width.has_value() && __builtin_mul_overflow(*height, *width, &product);
}

struct Conv2dFamily {
  using Forward = Conv2d;
  using Backward = Conv2dBackward;
  static constexpr size_t kWeights = 1, kStateGradients = 0;

  struct Sizes {
    ops::Gate gate = ops::Gate::kSigmoid;
    std::array<OptionalTensor, 1> weights;
  };

  static Sizes check(std::string_view op, const Conv2dCall& c) {
    Sizes s;
    s.gate = check_call(op, c, "[batch, height * width, channels]", "flatten the grid row by row");
    if (c.grid.size() != 2 || c.grid[0] < 0 || c.grid[1] < 0 || overflows(c.grid) ||
        c.grid[0] * c.grid[1] != c.v.sym_size(1)) {
      refuse(op, "grid must be [height, width] with height * width = ", c.v.sym_size(1), ", the positions of v, got ",
             c10::SymIntArrayRef(c.grid), ": pass the grid of this call");
    }
    if (c.q.has_value()) check_same(op, "q", *c.q, "v", c.v);
    const Tensor& kernel = c.kernel;
    check_weights(op, "kernel", kernel, c.v);
    if (kernel.dim() != 3 || kernel.sym_size(1) != kernel.sym_size(2) || kernel.sym_size(1) % 2 == 0) {
      refuse(op, "kernel must have shape [heads, s, s] with s odd, got ", sizes_of(kernel),
             ": a centred kernel has a middle");
    }
    check_heads(op, kernel.sym_size(0), c.v);
    check_keys(op, c.k, c.v, kernel.sym_size(0));
    s.weights[0] = kernel;
    return s;
  }

  static void check_y(std::string_view op, std::string_view name, const Tensor& t, const Conv2dCall& c, const Sizes&) {
    check_same(op, name, t, "v", c.v);
  }
  static c10::SymIntArrayRef y_shape(const Conv2dCall& c, const Sizes&) { return c.v.sym_sizes(); }

  static void read(Conv2dCall& c, Sizes& s) { s.weights[0] = c.kernel.to(accumulated(c.v)).contiguous(); }

  template <typename E>
  static ops::GridInputs<E> inputs(const Conv2dCall& c, const Sizes& s) {
    auto in = inputs_of<E, ops::GridInputs<E>>(c);
    in.shape.batch = c.v.size(0);
    in.shape.height = c.grid[0].guard_int(__FILE__, __LINE__);
    in.shape.width = c.grid[1].guard_int(__FILE__, __LINE__);
    in.shape.channels = c.v.size(2);
    in.shape.heads = c.kernel.size(0);
    in.shape.key_channels = c.k.size(2);
    in.shape.kernel = c.kernel.size(1);
    in.shape.gate = s.gate;
    in.kernel = data_of<const ops::Accumulate<E>>(s.weights[0]);
    return in;
  }

  static std::vector<GradientOutput> weights_of(std::string_view, Conv2dBackwardCall& c) {
    return {{"grad_kernel", c.grad_kernel, "kernel", c.kernel}};
  }
  template <typename E>
  static void put(ops::GridBackward<E>& p, const std::vector<GradientSum>& sums) {
    p.grad_kernel = data_of<ops::Accumulate<E>>(sums[0].sum());
  }

  template <typename E>
  using ForwardParams = ops::GridForward<E>;
  template <typename E>
  using BackwardParams = ops::GridBackward<E>;
  static constexpr auto forward = [](const auto& p, const auto& device) { ops::grid_forward(p, device); };
  static constexpr auto backward = [](const auto& p, const auto& device) { ops::grid_backward(p, device); };
  static constexpr auto workspace = []<typename E>(E, const ops::GridShape& shape, ops::Pass pass) {
    return ops::grid_workspace<E>(shape, pass);
  };
};

AFT_REGISTER(m) {
  define_family<Conv2dFamily, Conv2d, Conv2dOut, Conv2dBackwardOut>(m);
  cast_by_autocast(m, "conv2d");
}

}  // namespace
}  // namespace dispatch

torch::Tensor conv2d(const std::optional<torch::Tensor>& q, const torch::Tensor& k, const torch::Tensor& v,
                     const torch::Tensor& kernel, std::array<int64_t, 2> grid,
                     const std::optional<torch::Tensor>& key_mask, Gate gate) {
  const std::array<c10::SymInt, 2> sizes = {grid[0], grid[1]};
  return dispatch::Conv2d::call(q, k, v, kernel, sizes, key_mask, dispatch::name_of_gate(gate));
}

}  // namespace aft

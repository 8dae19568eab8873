// AFT-conv 2-D: the grid operator's checks, CPU, Meta and gradients.

#include <torch/library.h>
#include <torch/types.h>

#include <string>
#include <tuple>
#include <vector>

#include "aft/ops/grid.h"
#include "gradients.h"
#include "operators.h"
#include "tensors.h"
#include "torch_threads.h"
#include "version_check.h"

namespace aft::dispatch {
namespace {

constexpr std::string_view kForward = "conv2d";
constexpr std::string_view kBackward = "conv2d_backward";

// What a call is handed, checked, before any size must be a number.
struct Conv2dArguments {
  const OptionalTensor& q;
  const Tensor& k;
  const Tensor& v;
  const Tensor& kernel;
  c10::SymIntArrayRef grid;
  const OptionalTensor& key_mask;
  ops::Gate gate;

  Conv2dArguments(std::string_view op, const OptionalTensor& query, const Tensor& key, const Tensor& value,
                  const Tensor& weights, c10::SymIntArrayRef grid_size, const OptionalTensor& mask,
                  std::string_view gate_name)
      : q(query),
        k(key),
        v(value),
        kernel(weights),
        grid(grid_size),
        key_mask(mask),
        gate(gate_from_name(op, gate_name)) {
    check_torch_version();
    check_elements(op, "v", v);
    if (v.dim() != 3) {
      fail("aft::", op, ": v must have three dimensions [batch, height * width, channels], got shape ", sizes_of(v),
           ": flatten the grid row by row");
    }
    if (grid.size() != 2 || grid[0] < 0 || grid[1] < 0 || overflows(grid) || grid[0] * grid[1] != v.sym_size(1)) {
      fail("aft::", op, ": grid must be [height, width] with height * width = ", v.sym_size(1),
           ", the positions of v, got ", grid, ": pass the grid of this call");
    }
    if (has_query(op, q, gate)) check_same(op, "q", *q, "v", v);
    check_weights(op, "kernel", kernel, v);
    if (kernel.dim() != 3 || kernel.sym_size(1) != kernel.sym_size(2) || kernel.sym_size(1) % 2 == 0) {
      fail("aft::", op, ": kernel must have shape [heads, s, s] with s odd, got ", sizes_of(kernel),
           ": a centred kernel has a middle");
    }
    const c10::SymInt heads = kernel.sym_size(0);
    check_heads(op, heads, v);
    check_keys(op, k, v, heads);
    check_key_mask(op, key_mask, v);
  }

  static bool overflows(c10::SymIntArrayRef grid) {
    const auto height = grid[0].maybe_as_int(), width = grid[1].maybe_as_int();
    int64_t product = 0;
    return height.has_value() && width.has_value() && __builtin_mul_overflow(*height, *width, &product);
  }

  [[nodiscard]] ops::GridShape shape() const {
    ops::GridShape s;
    s.batch = v.size(0);
    s.height = grid[0].guard_int(__FILE__, __LINE__);
    s.width = grid[1].guard_int(__FILE__, __LINE__);
    s.channels = v.size(2);
    s.heads = kernel.size(0);
    s.key_channels = k.size(2);
    s.kernel = kernel.size(1);
    s.gate = gate;
    return s;
  }
};

// The same readable, kept alive for as long as the operator runs. The kernel is in the accumulation type.
struct Inputs {
  ops::GridShape shape;
  Tensor q, k, v, kernel, mask;

  explicit Inputs(const Conv2dArguments& a)
      : shape(a.shape()), k(readable(a.k)), v(readable(a.v)), kernel(a.kernel.to(accumulated(a.v)).contiguous()) {
    if (a.gate != ops::Gate::kNone) q = readable(*a.q);
    if (a.key_mask.has_value()) mask = readable(*a.key_mask);
  }
  template <typename E>
  ops::GridInputs<E> inputs() const {
    ops::GridInputs<E> x;
    x.shape = shape;
    x.q = rows_of<const E>(q);
    x.k = rows_of<const E>(k);
    x.v = rows_of<const E>(v);
    x.kernel = kernel.const_data_ptr<ops::Accumulate<E>>();
    if (mask.defined()) x.key_mask = {mask.const_data_ptr<bool>(), mask.stride(0)};
    return x;
  }
};

void run_forward(const Inputs& in, const Tensor& y) {
  with_element_type(in.v, [&]<typename E>(E) {
    ops::GridForward<E> p;
    p.in = in.inputs<E>();
    p.y = rows_of<E>(y);
    ops::grid_forward(p, {torch_threads(), &redo_counters()});
  });
}

Tensor conv2d_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                  c10::SymIntArrayRef grid, const OptionalTensor& key_mask, std::string_view gate) {
  const Inputs in(Conv2dArguments(kForward, q, k, v, kernel, grid, key_mask, gate));
  Tensor y = at::empty(v.sizes(), v.options());
  run_forward(in, y);
  return y;
}

void conv2d_out_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                    c10::SymIntArrayRef grid, const OptionalTensor& key_mask, std::string_view gate,
                    const Tensor& out) {
  const Inputs in(Conv2dArguments(kForward, q, k, v, kernel, grid, key_mask, gate));
  check_same(kForward, "out", out, "v", v);
  check_writable(kForward, "out", out, {q, k, v, kernel, key_mask});
  run_forward(in, out);
}

// grad_q is undefined where there is no q, grad_kernel where it is not wanted.
void run_backward(const Inputs& in, const Tensor& grad_y, const Tensor& grad_q, const Tensor& grad_k,
                  const Tensor& grad_v, const Tensor& grad_kernel) {
  check_same(kBackward, "grad_y", grad_y, "v", in.v);
  const Tensor gy = readable(grad_y);
  const WeightsGradient weights(grad_kernel, in.kernel.sizes(), in.v);
  with_element_type(in.v, [&]<typename E>(E) {
    ops::GridBackward<E> p;
    p.in = in.inputs<E>();
    p.grad_y = rows_of<const E>(gy);
    p.grad_q = rows_of<E>(grad_q);
    p.grad_k = rows_of<E>(grad_k);
    p.grad_v = rows_of<E>(grad_v);
    if (weights.sum().defined()) p.grad_kernel = weights.sum().data_ptr<ops::Accumulate<E>>();
    ops::grid_backward(p, {torch_threads(), &redo_counters()});
  });
  weights.finish();
}

Conv2dGrads empty_gradients(const Conv2dArguments& a, bool weights_gradient) {
  const auto like = [](const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); };
  const auto none = [&] { return at::empty({0}, a.v.options()); };
  return {a.gate == ops::Gate::kNone ? none() : like(a.v), like(a.k), like(a.v),
          weights_gradient ? like(a.kernel) : none()};
}

Conv2dGrads conv2d_backward_cpu(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                                std::string_view gate, bool weights_gradient) {
  const Conv2dArguments a(kBackward, q, k, v, kernel, grid, key_mask, gate);
  const Conv2dGrads grads = empty_gradients(a, weights_gradient);
  const auto& [grad_q, grad_k, grad_v, grad_kernel] = grads;
  run_backward(Inputs(a), grad_y, a.gate == ops::Gate::kNone ? Tensor() : grad_q, grad_k, grad_v,
               weights_gradient ? grad_kernel : Tensor());
  return grads;
}

// Checked against their inputs.
std::vector<GradientOutput> conv2d_gradients(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                             const Tensor& kernel, const OptionalTensor& grad_q, const Tensor& grad_k,
                                             const Tensor& grad_v, const OptionalTensor& grad_kernel) {
  std::vector<GradientOutput> outputs = {
      {"grad_q", grad_q.value_or(Tensor()), "q", q.value_or(Tensor())},
      {"grad_k", grad_k, "k", k},
      {"grad_v", grad_v, "v", v},
      {"grad_kernel", grad_kernel.value_or(Tensor()), "kernel", kernel, /*may_be_left_out=*/true}};
  check_gradients(kBackward, outputs);
  return outputs;
}

void conv2d_backward_out_cpu(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                             const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                             std::string_view gate, const OptionalTensor& grad_q, const Tensor& grad_k,
                             const Tensor& grad_v, const OptionalTensor& grad_kernel) {
  const Inputs in(Conv2dArguments(kBackward, q, k, v, kernel, grid, key_mask, gate));
  const std::vector<GradientOutput> outputs = conv2d_gradients(q, k, v, kernel, grad_q, grad_k, grad_v, grad_kernel);
  check_writable(kBackward, outputs, {q, k, v, kernel, key_mask, grad_y});
  run_backward(in, grad_y, grad_q.value_or(Tensor()), grad_k, grad_v, grad_kernel.value_or(Tensor()));
}

// ---- shapes without data

Tensor conv2d_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                   c10::SymIntArrayRef grid, const OptionalTensor& key_mask, std::string_view gate) {
  (void)Conv2dArguments(kForward, q, k, v, kernel, grid, key_mask, gate);
  return at::empty_symint(v.sym_sizes(), v.options());
}

void conv2d_out_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                     c10::SymIntArrayRef grid, const OptionalTensor& key_mask, std::string_view gate,
                     const Tensor& out) {
  (void)Conv2dArguments(kForward, q, k, v, kernel, grid, key_mask, gate);
  check_same(kForward, "out", out, "v", v);
}

Conv2dGrads conv2d_backward_meta(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                 const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                                 std::string_view gate, bool weights_gradient) {
  const Conv2dArguments a(kBackward, q, k, v, kernel, grid, key_mask, gate);
  check_same(kBackward, "grad_y", grad_y, "v", v);
  return empty_gradients(a, weights_gradient);
}

void conv2d_backward_out_meta(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                              std::string_view gate, const OptionalTensor& grad_q, const Tensor& grad_k,
                              const Tensor& grad_v, const OptionalTensor& grad_kernel) {
  (void)Conv2dArguments(kBackward, q, k, v, kernel, grid, key_mask, gate);
  check_same(kBackward, "grad_y", grad_y, "v", v);
  (void)conv2d_gradients(q, k, v, kernel, grad_q, grad_k, grad_v, grad_kernel);
}

// ---- gradients

// Of: q, k, v, kernel.
struct Conv2d : Function<Conv2d> {
  static Tensor forward(AutogradContext* ctx, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                        const Tensor& kernel, const c10::SymInt& height, const c10::SymInt& width,
                        const OptionalTensor& key_mask, std::string_view gate) {
    const Below below;
    ctx->save_for_backward({q.value_or(Tensor()), k, v, kernel, key_mask.value_or(Tensor())});
    ctx->saved_data["height"] = height;
    ctx->saved_data["width"] = width;
    ctx->saved_data["gate"] = std::string(gate);
    return conv2d(q, k, v, kernel, {height, width}, key_mask, gate);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_y) {
    const variable_list t = ctx->get_saved_variables();
    const OptionalTensor q = present(t[0]);
    const bool kernel_asked = asked_for(ctx, t, 3);
    auto [grad_q, grad_k, grad_v, grad_kernel] = conv2d_backward(
        grad_y[0], q, t[1], t[2], t[3], {ctx->saved_data["height"].toSymInt(), ctx->saved_data["width"].toSymInt()},
        present(t[4]), ctx->saved_data["gate"].toStringRef(), kernel_asked);
    if (!q.has_value()) grad_q = Tensor();
    if (!kernel_asked) grad_kernel = Tensor();
    return {grad_q, grad_k, grad_v, grad_kernel, {}, {}, {}, {}};
  }
};

// A grid of another length is left to the check below autograd.
Tensor conv2d_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                       c10::SymIntArrayRef grid, const OptionalTensor& key_mask, std::string_view gate) {
  if (gradient_needed(q, k, v, kernel) && grid.size() == 2) {
    return Conv2d::apply(q, k, v, kernel, grid[0], grid[1], key_mask, gate);
  }
  const Below below;
  return conv2d(q, k, v, kernel, grid, key_mask, gate);
}

Conv2dGrads conv2d_backward_autograd(const Tensor& grad_y, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                     const Tensor& kernel, c10::SymIntArrayRef grid, const OptionalTensor& key_mask,
                                     std::string_view gate, bool weights_gradient) {
  return without_derivative(
      kNoSecond, [&] { return conv2d_backward(grad_y, q, k, v, kernel, grid, key_mask, gate, weights_gradient); },
      grad_y, q, k, v, kernel);
}

TORCH_LIBRARY_IMPL(aft, CPU, m) {
  m.impl("conv2d", conv2d_cpu);
  m.impl("conv2d.out", conv2d_out_cpu);
  m.impl("conv2d_backward", conv2d_backward_cpu);
  m.impl("conv2d_backward.out", conv2d_backward_out_cpu);
}

TORCH_LIBRARY_IMPL(aft, Meta, m) {
  m.impl("conv2d", conv2d_meta);
  m.impl("conv2d.out", conv2d_out_meta);
  m.impl("conv2d_backward", conv2d_backward_meta);
  m.impl("conv2d_backward.out", conv2d_backward_out_meta);
}

TORCH_LIBRARY_IMPL(aft, Autograd, m) {
  m.impl("conv2d", conv2d_autograd);
  m.impl("conv2d_backward", conv2d_backward_autograd);
  for (const char* name : {"conv2d.out", "conv2d_backward.out"}) {
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&in_place_autograd>());
  }
}

}  // namespace
}  // namespace aft::dispatch

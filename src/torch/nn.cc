// AFTSimple and AFTLocal: the operators between their projections.

#include <algorithm>

#include "aft/torch.h"
#include "operators.h"

namespace aft::nn {
namespace {

using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_positive(const char* module, const char* name, int64_t value) {
  if (value < 1) dispatch::fail("aft::nn::", module, ": ", name, " must be at least 1, got ", value, ": set it");
}

void check_input(const char* module, const Tensor& x, int64_t channels) {
  if (x.dim() != 3 || x.size(2) != channels) {
    dispatch::fail("aft::nn::", module, ": x must have shape [batch, time, ", channels, "], got ", x.sizes(),
                   ": reshape it, or set the option channels");
  }
}

void check_causal(const char* module, bool causal) {
  if (!causal) {
    dispatch::fail("aft::nn::", module, ": a state needs causal = true, got false: run the whole sequence at once");
  }
}

// Views of one projection [B, T, 3 d] (2 d where there is no query).
struct Projected {
  std::optional<Tensor> q;
  Tensor k, v;

  Projected(const Tensor& qkv, Gate gate) {
    const std::vector<Tensor> parts = qkv.chunk(gate == Gate::kNone ? 2 : 3, -1);
    if (gate != Gate::kNone) q = parts[0];
    k = parts[parts.size() - 2];
    v = parts[parts.size() - 1];
  }
};

// The operator on one qkv tensor: its gradient is written in place into one tensor of the same shape, where separate
// gradients of q, k and v would be copied together afterwards.
struct PackedWindow : torch::autograd::Function<PackedWindow> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv, const std::optional<Tensor>& bias, bool causal,
                        Gate gate) {
    const Projected in(qkv, gate);
    const std::string_view name = dispatch::name_of_gate(gate);
    auto [y, saved] = bias.has_value() ? dispatch::local_forward(in.q, in.k, in.v, *bias, causal, name)
                                       : dispatch::simple_forward(in.q, in.k, in.v, causal, name, 1);
    ctx->save_for_backward({qkv, bias.value_or(Tensor()), saved});
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["gate"] = static_cast<int64_t>(gate);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_y) {
    if (at::GradMode::is_enabled()) {
      dispatch::fail(
          "double backward through aft::nn modules is not supported: take first derivatives only, without "
          "create_graph = true");
    }
    const variable_list t = ctx->get_saved_variables();
    const bool causal = ctx->saved_data["causal"].toBool();
    const Gate gate = static_cast<Gate>(ctx->saved_data["gate"].toInt());
    const std::string_view name = dispatch::name_of_gate(gate);
    const Projected in(t[0], gate);
    const Tensor grad_qkv = torch::empty(t[0].sizes(), t[0].options());
    const Projected grad(grad_qkv, gate);
    Tensor grad_bias;
    if (t[1].defined()) {
      grad_bias = torch::empty(t[1].sizes(), t[1].options());
      dispatch::local_backward_out(grad_y[0], in.q, in.k, in.v, t[1], t[2], causal, name, grad.q, grad.k, grad.v,
                                   grad_bias);
    } else {
      dispatch::simple_backward_out(grad_y[0], in.q, in.k, in.v, t[2], causal, name, 1, grad.q, grad.k, grad.v);
    }
    return {grad_qkv, grad_bias, {}, {}};
  }
};

// bias absent: simple.
Tensor window(const Tensor& qkv, const std::optional<Tensor>& bias, bool causal, Gate gate) {
  if (at::GradMode::is_enabled() && (qkv.requires_grad() || (bias.has_value() && bias->requires_grad()))) {
    return PackedWindow::apply(qkv, bias, causal, gate);
  }
  const Projected in(qkv, gate);
  return bias.has_value() ? local(in.q, in.k, in.v, *bias, causal, gate) : simple(in.q, in.k, in.v, causal, gate);
}

torch::nn::Linear projection(int64_t channels, Gate gate) {
  return torch::nn::Linear(channels, (gate == Gate::kNone ? 2 : 3) * channels);
}

}  // namespace

AFTSimpleImpl::AFTSimpleImpl(const AFTSimpleOptions& options_) : options(options_) {
  check_positive("AFTSimple", "channels", options.channels);
  qkv = register_module("qkv", projection(options.channels, options.gate));
  output = register_module("output", torch::nn::Linear(options.channels, options.channels));
}

Tensor AFTSimpleImpl::forward(const Tensor& x) {
  check_input("AFTSimple", x, options.channels);
  return output(window(qkv(x), std::nullopt, options.causal, options.gate));
}

std::tuple<Tensor, State> AFTSimpleImpl::forward(const Tensor& x, const State& state) {
  check_input("AFTSimple", x, options.channels);
  check_causal("AFTSimple", options.causal);
  const Projected in(qkv(x), options.gate);
  auto [y, after] = simple(in.q, in.k, in.v, state, options.gate);
  return {output(y), after};
}

State AFTSimpleImpl::initial_state(int64_t batch) const {
  check_causal("AFTSimple", options.causal);
  return aft::initial_state(batch, options.channels, options.channels, 0, qkv->weight.options().requires_grad(false));
}

AFTLocalImpl::AFTLocalImpl(const AFTLocalOptions& options_) : options(options_) {
  check_positive("AFTLocal", "channels", options.channels);
  check_positive("AFTLocal", "context", options.context);
  check_positive("AFTLocal", "factor_channels", options.factor_channels);
  if (options.window < 0) {
    dispatch::fail("aft::nn::AFTLocal: window must be at least 0, got ", options.window, ": 0 is AFT-simple");
  }
  qkv = register_module("qkv", projection(options.channels, options.gate));
  output = register_module("output", torch::nn::Linear(options.channels, options.channels));
  u = register_parameter("u", torch::randn({options.context, options.factor_channels}) * 0.01);
  v = register_parameter("v", torch::randn({options.context, options.factor_channels}) * 0.01);
}

// The weights of the first `rows` positions: of the table only what a sequence from position 0 on can see.
std::optional<Tensor> AFTLocalImpl::bias(int64_t rows) const {
  if (options.window == 0) return std::nullopt;
  const int64_t left = options.window - 1;
  const int64_t right = options.causal ? 0 : left;
  if (rows >= options.context) return local_bias(u, v, left, right);
  return local_bias(u.narrow(0, 0, rows), v.narrow(0, 0, rows), left, right);
}

Tensor AFTLocalImpl::forward(const Tensor& x) {
  check_input("AFTLocal", x, options.channels);
  if (x.size(1) > options.context) {
    dispatch::fail("aft::nn::AFTLocal: x must hold at most context = ", options.context, " positions, got ", x.size(1),
                   ": shorten it, or train with a longer context");
  }
  return output(window(qkv(x), bias(x.size(1)), options.causal, options.gate));
}

std::tuple<Tensor, State> AFTLocalImpl::forward(const Tensor& x, const State& state) {
  check_input("AFTLocal", x, options.channels);
  check_causal("AFTLocal", options.causal);
  const Projected in(qkv(x), options.gate);
  const std::optional<Tensor> w = bias(options.context);
  auto [y, after] =
      w.has_value() ? local(in.q, in.k, in.v, *w, state, options.gate) : simple(in.q, in.k, in.v, state, options.gate);
  return {output(y), after};
}

State AFTLocalImpl::initial_state(int64_t batch) const {
  check_causal("AFTLocal", options.causal);
  return aft::initial_state(batch, options.channels, options.channels, std::max<int64_t>(options.window - 1, 0),
                            qkv->weight.options().requires_grad(false));
}

}  // namespace aft::nn

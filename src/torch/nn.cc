// AFTSimple, AFTLocal, AFTConv1d, AFTConv2d and AFTFull: the operators between their projections.

#include <algorithm>

#include "aft/torch.h"
#include "gradients.h"
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

// Views of one projection [B, T, width]: query (none where there is no gate), key, value, in this order.
struct Projected {
  std::optional<Tensor> q;
  Tensor k, v;

  Projected(const Tensor& qkv, int64_t channels, Gate gate) {
    const int64_t query = gate == Gate::kNone ? 0 : channels;
    const int64_t key = qkv.size(-1) - query - channels;
    if (query > 0) q = qkv.narrow(-1, 0, query);
    k = qkv.narrow(-1, query, key);
    v = qkv.narrow(-1, query + key, channels);
  }
};

// A parameter in the dtype of the sums, so that 16 bits are rounded once; its gradient comes back in its own.
Tensor wide(const Tensor& parameter) {
  const auto type = parameter.scalar_type();
  return type == at::kBFloat16 || type == at::kHalf ? parameter.to(at::kFloat) : parameter;
}

void refuse_second_derivatives() {
  if (at::GradMode::is_enabled()) {
    dispatch::fail(
        "double backward through aft::nn modules is not supported: take first derivatives only, without "
        "create_graph = true");
  }
}

// The operator on one qkv tensor: its gradient is written in place into one tensor of the same shape, where separate
// gradients of q, k and v would be copied together afterwards.
struct PackedWindow : torch::autograd::Function<PackedWindow> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv, const std::optional<Tensor>& band, int64_t channels,
                        bool causal, Gate gate) {
    const Projected in(qkv, channels, gate);
    auto [y, saved] = dispatch::window_forward(in.q, in.k, in.v, band, causal, dispatch::name_of_gate(gate), 1);
    ctx->save_for_backward({qkv, band.value_or(Tensor()), saved});
    ctx->saved_data["channels"] = channels;
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["gate"] = static_cast<int64_t>(gate);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_y) {
    refuse_second_derivatives();
    const variable_list t = ctx->get_saved_variables();
    const int64_t channels = ctx->saved_data["channels"].toInt();
    const Gate gate = static_cast<Gate>(ctx->saved_data["gate"].toInt());
    const Projected in(t[0], channels, gate);
    const Tensor grad_qkv = torch::empty(t[0].sizes(), t[0].options());
    const Projected grad(grad_qkv, channels, gate);
    std::optional<Tensor> band, grad_band;
    if (t[1].defined()) band = t[1];
    if (dispatch::asked_for(ctx, t, 1)) grad_band = torch::empty(t[1].sizes(), t[1].options());
    dispatch::window_backward_out(grad_y[0], in.q, in.k, in.v, band, t[2], ctx->saved_data["causal"].toBool(),
                                  dispatch::name_of_gate(gate), 1, std::nullopt, std::nullopt, grad.q, grad.k, grad.v,
                                  grad_band);
    return {grad_qkv, grad_band.value_or(Tensor()), {}, {}, {}};
  }
};

// band absent: simple.
Tensor window(const Tensor& qkv, const std::optional<Tensor>& band, int64_t channels, bool causal, Gate gate) {
  if (dispatch::gradient_needed(qkv, band)) {
    return PackedWindow::apply(qkv, band, channels, causal, gate);
  }
  const Projected in(qkv, channels, gate);
  return dispatch::window(in.q, in.k, in.v, band, causal, dispatch::name_of_gate(gate), 1);
}

// conv2d on one qkv tensor, in the same way.
struct PackedConv2d : torch::autograd::Function<PackedConv2d> {
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv, const Tensor& kernel,
                        const std::optional<Tensor>& key_mask, int64_t channels, int64_t height, int64_t width,
                        Gate gate) {
    const Projected in(qkv, channels, gate);
    ctx->save_for_backward({qkv, kernel, key_mask.value_or(Tensor())});
    ctx->saved_data["channels"] = channels;
    ctx->saved_data["height"] = height;
    ctx->saved_data["width"] = width;
    ctx->saved_data["gate"] = static_cast<int64_t>(gate);
    return conv2d(in.q, in.k, in.v, kernel, {height, width}, key_mask, gate);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_y) {
    refuse_second_derivatives();
    const variable_list t = ctx->get_saved_variables();
    const int64_t channels = ctx->saved_data["channels"].toInt();
    const Gate gate = static_cast<Gate>(ctx->saved_data["gate"].toInt());
    const Projected in(t[0], channels, gate);
    const Tensor grad_qkv = torch::empty(t[0].sizes(), t[0].options());
    const Projected grad(grad_qkv, channels, gate);
    std::optional<Tensor> grad_kernel;
    if (dispatch::asked_for(ctx, t, 1)) grad_kernel = torch::empty(t[1].sizes(), t[1].options());
    const std::optional<Tensor> key_mask = t[2].defined() ? std::optional(t[2]) : std::nullopt;
    dispatch::conv2d_backward_out(grad_y[0], in.q, in.k, in.v, t[1],
                                  {ctx->saved_data["height"].toInt(), ctx->saved_data["width"].toInt()}, key_mask,
                                  dispatch::name_of_gate(gate), grad.q, grad.k, grad.v, grad_kernel);
    return {grad_qkv, grad_kernel.value_or(Tensor()), {}, {}, {}, {}, {}};
  }
};

torch::nn::Linear projection(int64_t channels, int64_t key_channels, Gate gate) {
  return torch::nn::Linear(channels, (gate == Gate::kNone ? 1 : 2) * channels + key_channels);
}

}  // namespace

AFTSimpleImpl::AFTSimpleImpl(const AFTSimpleOptions& options_) : options(options_) {
  check_positive("AFTSimple", "channels", options.channels);
  reset();
}

void AFTSimpleImpl::reset() {
  qkv = register_module("qkv", projection(options.channels, options.channels, options.gate));
  output = register_module("output", torch::nn::Linear(options.channels, options.channels));
}

Tensor AFTSimpleImpl::forward(const Tensor& x) {
  check_input("AFTSimple", x, options.channels);
  return output(window(qkv(x), std::nullopt, options.channels, options.causal, options.gate));
}

std::tuple<Tensor, State> AFTSimpleImpl::forward_with_state(const Tensor& x, const State& state) {
  check_input("AFTSimple", x, options.channels);
  check_causal("AFTSimple", options.causal);
  const Projected in(qkv(x), options.channels, options.gate);
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
  reset();
}

void AFTLocalImpl::reset() {
  qkv = register_module("qkv", projection(options.channels, options.channels, options.gate));
  output = register_module("output", torch::nn::Linear(options.channels, options.channels));
  u = register_parameter("u", torch::randn({options.context, options.factor_channels}) * 0.01);
  v = register_parameter("v", torch::randn({options.context, options.factor_channels}) * 0.01);
}

// The weights of the first `rows` positions: of the table only what a sequence from position 0 on can see.
std::optional<Tensor> AFTLocalImpl::bias(int64_t rows) const {
  if (options.window == 0) return std::nullopt;
  const int64_t left = options.window - 1;
  const int64_t right = options.causal ? 0 : left;
  const auto used = [&](const Tensor& t) { return wide(rows < options.context ? t.narrow(0, 0, rows) : t); };
  return local_bias(used(u), used(v), left, right);
}

Tensor AFTLocalImpl::forward(const Tensor& x) {
  check_input("AFTLocal", x, options.channels);
  if (x.size(1) > options.context) {
    dispatch::fail("aft::nn::AFTLocal: x must hold at most context = ", options.context, " positions, got ", x.size(1),
                   ": shorten it, or train with a longer context");
  }
  std::optional<Tensor> band = bias(x.size(1));
  if (band.has_value()) band = band->unsqueeze(0);
  return output(window(qkv(x), band, options.channels, options.causal, options.gate));
}

std::tuple<Tensor, State> AFTLocalImpl::forward_with_state(const Tensor& x, const State& state) {
  check_input("AFTLocal", x, options.channels);
  check_causal("AFTLocal", options.causal);
  const Projected in(qkv(x), options.channels, options.gate);
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

AFTFullImpl::AFTFullImpl(const AFTFullOptions& options_) : options(options_) {
  check_positive("AFTFull", "channels", options.channels);
  check_positive("AFTFull", "context", options.context);
  check_positive("AFTFull", "factor_channels", options.factor_channels);
  reset();
}

void AFTFullImpl::reset() {
  qkv = register_module("qkv", projection(options.channels, options.channels, options.gate));
  output = register_module("output", torch::nn::Linear(options.channels, options.channels));
  u = register_parameter("u", torch::randn({options.context, options.factor_channels}) * 0.01);
  v = register_parameter("v", torch::randn({options.context, options.factor_channels}) * 0.01);
}

Tensor AFTFullImpl::forward(const Tensor& x) {
  check_input("AFTFull", x, options.channels);
  if (x.size(1) > options.context) {
    dispatch::fail("aft::nn::AFTFull: x must hold at most context = ", options.context, " positions, got ", x.size(1),
                   ": shorten it, or train with a longer context");
  }
  const Projected in(qkv(x), options.channels, options.gate);
  // Without a gate and a causal order the operator takes its targets from the rows of the weights.
  const FullWeights weights = {.bias = std::nullopt, .u = wide(u.narrow(0, 0, x.size(1))), .w = wide(v)};
  return output(full(in.q, in.k, in.v, weights, options.causal, options.gate));
}

std::tuple<Tensor, State> AFTFullImpl::forward_with_state(const Tensor& x, const State& state) {
  check_input("AFTFull", x, options.channels);
  check_causal("AFTFull", options.causal);
  const Projected in(qkv(x), options.channels, options.gate);
  const FullWeights weights = {.bias = std::nullopt, .u = wide(u), .w = wide(v)};
  auto [y, after] = full(in.q, in.k, in.v, weights, state, options.gate);
  return {output(y), after};
}

State AFTFullImpl::initial_state(int64_t batch) const {
  check_causal("AFTFull", options.causal);
  return aft::initial_state(batch, options.channels, options.channels, options.context,
                            qkv->weight.options().requires_grad(false));
}

namespace {

// gamma (weight - mean) / sqrt(var + 1e-5) + beta per head: weight [H, ...], gamma and beta [H].
Tensor normalised(const Tensor& weight, const Tensor& gamma, const Tensor& beta) {
  const Tensor flat = weight.flatten(1);
  const Tensor mean = flat.mean(1, /*keepdim=*/true);
  const Tensor variance = flat.var(/*dim=*/1, /*unbiased=*/false, /*keepdim=*/true);
  const Tensor w = gamma.unsqueeze(1) * (flat - mean) * (variance + 1e-5).rsqrt() + beta.unsqueeze(1);
  return w.view_as(weight);
}

}  // namespace

AFTConv1dImpl::AFTConv1dImpl(const AFTConv1dOptions& options_) : options(options_) {
  check_positive("AFTConv1d", "channels", options.channels);
  check_positive("AFTConv1d", "heads", options.heads);
  check_positive("AFTConv1d", "kernel", options.kernel);
  if (options.channels % options.heads != 0) {
    dispatch::fail("aft::nn::AFTConv1d: heads must divide channels = ", options.channels, ", got ", options.heads,
                   ": change one of them");
  }
  if (!options.causal && options.kernel % 2 == 0) {
    dispatch::fail("aft::nn::AFTConv1d: kernel must be odd if causal is false, got ", options.kernel,
                   ": a centred kernel has a middle");
  }
  reset();
}

void AFTConv1dImpl::reset() {
  qkv = register_module("qkv", projection(options.channels, key_channels(), options.gate));
  output = register_module("output", torch::nn::Linear(options.channels, options.channels));
  weight = register_parameter("weight", torch::randn({options.heads, options.kernel}));
  gamma = register_parameter("gamma", torch::zeros({options.heads}));
  beta = register_parameter("beta", torch::zeros({options.heads}));
}

int64_t AFTConv1dImpl::key_channels() const { return options.key_per_head ? options.heads : options.channels; }

Tensor AFTConv1dImpl::kernel() const { return normalised(wide(weight), wide(gamma), wide(beta)); }

Tensor AFTConv1dImpl::forward(const Tensor& x) {
  check_input("AFTConv1d", x, options.channels);
  return output(window(qkv(x), kernel(), options.channels, options.causal, options.gate));
}

std::tuple<Tensor, State> AFTConv1dImpl::forward_with_state(const Tensor& x, const State& state) {
  check_input("AFTConv1d", x, options.channels);
  check_causal("AFTConv1d", options.causal);
  const Projected in(qkv(x), options.channels, options.gate);
  auto [y, after] = conv1d(in.q, in.k, in.v, kernel(), state, options.gate);
  return {output(y), after};
}

State AFTConv1dImpl::initial_state(int64_t batch) const {
  check_causal("AFTConv1d", options.causal);
  return aft::initial_state(batch, options.channels, key_channels(), options.kernel - 1,
                            qkv->weight.options().requires_grad(false));
}

AFTConv2dImpl::AFTConv2dImpl(const AFTConv2dOptions& options_) : options(options_) {
  check_positive("AFTConv2d", "channels", options.channels);
  check_positive("AFTConv2d", "heads", options.heads);
  check_positive("AFTConv2d", "kernel", options.kernel);
  if (options.channels % options.heads != 0) {
    dispatch::fail("aft::nn::AFTConv2d: heads must divide channels = ", options.channels, ", got ", options.heads,
                   ": change one of them");
  }
  if (options.kernel % 2 == 0) {
    dispatch::fail("aft::nn::AFTConv2d: kernel must be odd, got ", options.kernel, ": a centred kernel has a middle");
  }
  reset();
}

void AFTConv2dImpl::reset() {
  const int64_t key_channels = options.key_per_head ? options.heads : options.channels;
  qkv = register_module("qkv", projection(options.channels, key_channels, options.gate));
  output = register_module("output", torch::nn::Linear(options.channels, options.channels));
  weight = register_parameter("weight", torch::randn({options.heads, options.kernel, options.kernel}));
  gamma = register_parameter("gamma", torch::zeros({options.heads}));
  beta = register_parameter("beta", torch::zeros({options.heads}));
}

Tensor AFTConv2dImpl::kernel() const { return normalised(wide(weight), wide(gamma), wide(beta)); }

Tensor AFTConv2dImpl::forward(const Tensor& x, std::array<int64_t, 2> grid, const std::optional<Tensor>& key_mask) {
  check_input("AFTConv2d", x, options.channels);
  if (grid == std::array<int64_t, 2>{0, 0}) grid = options.grid;
  const Tensor projected = qkv(x);
  const Tensor w = kernel();
  if (dispatch::gradient_needed(projected, w)) {
    return output(PackedConv2d::apply(projected, w, key_mask, options.channels, grid[0], grid[1], options.gate));
  }
  const Projected in(projected, options.channels, options.gate);
  return output(conv2d(in.q, in.k, in.v, w, grid, key_mask, options.gate));
}

}  // namespace aft::nn

// AFTSimple, AFTLocal, AFTConv1d, AFTConv2d and AFTFull: the operators between their projections.

#include <algorithm>
#include <cmath>

#include "aft/torch.h"
#include "gradients.h"

namespace aft::nn {
namespace {

using dispatch::OptionalTensor;
using torch::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_positive(const char* module, const char* name, int64_t value) {
  if (value < 1) dispatch::fail("aft::nn::", module, ": ", name, " must be at least 1, got ", value, ": set it");
}

void check_heads(const char* module, int64_t heads, int64_t channels) {
  check_positive(module, "heads", heads);
  if (channels % heads != 0) {
    dispatch::fail("aft::nn::", module, ": heads must divide channels = ", channels, ", got ", heads,
                   ": change one of them");
  }
}

void check_input(const char* module, const Tensor& x, int64_t channels) {
  if (x.dim() != 3 || x.size(2) != channels) {
    dispatch::fail("aft::nn::", module, ": x must have shape [batch, time, ", channels, "], got ", x.sizes(),
                   ": reshape it, or set the option channels");
  }
}

void check_context(const char* module, const Tensor& x, int64_t context) {
  if (x.size(1) > context) {
    dispatch::fail("aft::nn::", module, ": x must hold at most context = ", context, " positions, got ", x.size(1),
                   ": shorten it, or train with a longer context");
  }
}

void check_causal(const char* module, bool causal) {
  if (!causal) {
    dispatch::fail("aft::nn::", module, ": a state needs causal = true, got false: run the whole sequence at once");
  }
}

// Views of one projection [B, T, width]: query (none where there is no gate), key, value, in this order.
struct Projected {
  OptionalTensor q;
  Tensor k, v;

  Projected(const Tensor& qkv, int64_t channels, bool has_query) {
    const int64_t query = has_query ? channels : 0;
    const int64_t key = qkv.size(-1) - query - channels;
    if (has_query) q = qkv.narrow(-1, 0, query);
    k = qkv.narrow(-1, query, key);
    v = qkv.narrow(-1, query + key, channels);
  }
  template <typename Options>
  Projected(const Tensor& qkv, const Options& options)
      : Projected(qkv, options.channels, options.gate != Gate::kNone) {}
};

// A parameter in the dtype of the sums, so that 16 bits are rounded once; its gradient comes back in its own.
Tensor wide(const Tensor& parameter) { return parameter.to(at::toOpMathType(parameter.scalar_type())); }

// ---- operators on one qkv tensor

struct PackedWindow {
  using Operator = dispatch::Window;
  using Forward = dispatch::WindowForward;
  using Backward = dispatch::WindowBackwardOut;
  static constexpr auto weights = &dispatch::WindowCall::band;
  static constexpr auto gradient = &dispatch::WindowBackwardCall::grad_band;
};

struct PackedConv2d {
  using Operator = dispatch::Conv2d;
  using Forward = dispatch::Conv2d;
  using Backward = dispatch::Conv2dBackwardOut;
  static constexpr auto weights = &dispatch::Conv2dCall::kernel;
  static constexpr auto gradient = &dispatch::Conv2dBackwardCall::grad_kernel;
};

// The gradient of qkv is written in place into one tensor of the same shape, where separate gradients of q, k and v
// would be copied together afterwards.
template <typename Family>
struct Packed : torch::autograd::Function<Packed<Family>> {
  using Call = typename Family::Operator::Call;
  using Inputs = typename Family::Forward::Taken;

  // The tensors have edges in the graph; the weights are those of the call, which has everything but q, k and v.
  static Tensor forward(AutogradContext* ctx, const Tensor& qkv, const OptionalTensor& /*weights*/, Call call,
                        int64_t channels) {
    project(call, qkv, channels);
    return dispatch::call_and_keep<typename Family::Forward>(ctx, call, Inputs())[0];
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_y) {
    if (at::GradMode::is_enabled()) {
      dispatch::fail(
          "double backward through aft::nn modules is not supported: take first derivatives only, without "
          "create_graph = true");
    }
    const variable_list kept = ctx->get_saved_variables();
    typename Family::Backward::Call c;
    dispatch::restore(ctx, kept, c, Inputs());
    c.grad_y = grad_y[0];
    const int64_t width = (c.q.has_value() ? c.q->size(2) : 0) + c.k.size(2) + c.v.size(2);
    const Tensor grad_qkv = torch::empty({c.v.size(0), c.v.size(1), width}, c.v.options());
    const Projected to(grad_qkv, c.v.size(2), c.q.has_value());
    c.grad_q = to.q;
    c.grad_k = to.k;
    c.grad_v = to.v;
    const OptionalTensor weights = c.*Family::weights;
    OptionalTensor& grad_weights = c.*Family::gradient;
    if (weights.has_value() && ctx->needs_input_grad(1)) {
      grad_weights = torch::empty(weights->sizes(), weights->options());
    }
    Family::Backward::call(c);
    return {grad_qkv, grad_weights.value_or(Tensor()), {}, {}};
  }

  static void project(dispatch::Call& c, const Tensor& qkv, int64_t channels) {
    const Projected in(qkv, channels, c.gate != dispatch::name_of_gate(Gate::kNone));
    c.q = in.q;
    c.k = in.k;
    c.v = in.v;
  }
};

template <typename Family, typename Options>
Tensor packed(const Tensor& qkv, const Options& options, typename Family::Operator::Call call) {
  call.gate = dispatch::name_of_gate(options.gate);
  const OptionalTensor weights = call.*Family::weights;
  if (dispatch::gradient_needed(qkv, weights)) {
    return Packed<Family>::apply(qkv, weights, call, options.channels);
  }
  Packed<Family>::project(call, qkv, options.channels);
  return Family::Operator::call(call);
}

// band absent: simple.
template <typename Options>
Tensor window(const Tensor& qkv, const Options& options, const OptionalTensor& band) {
  dispatch::WindowCall call;
  call.band = band;
  call.causal = options.causal;
  return packed<PackedWindow>(qkv, options, call);
}

// ---- what layers have in common

template <typename Layer>
void register_projections(Layer& layer, int64_t key_channels) {
  const int64_t channels = layer.options.channels;
  const int64_t width = (layer.options.gate == Gate::kNone ? 1 : 2) * channels + key_channels;
  layer.qkv = layer.register_module("qkv", torch::nn::Linear(channels, width));
  layer.output = layer.register_module("output", torch::nn::Linear(channels, channels));
}

template <typename Layer>
void register_factors(Layer& layer) {
  for (const auto& [name, factor] : {std::pair{"u", &layer.u}, std::pair{"v", &layer.v}}) {
    const Tensor start = torch::randn({layer.options.context, layer.options.factor_channels}) * 0.01;
    *factor = layer.register_parameter(name, start);
  }
}

// A kernel for each head, and what scales it.
template <typename Layer>
void register_kernel(Layer& layer, at::IntArrayRef shape) {
  layer.weight = layer.register_parameter("weight", torch::randn(shape));
  layer.gamma = layer.register_parameter("gamma", torch::zeros({layer.options.heads}));
  layer.beta = layer.register_parameter("beta", torch::zeros({layer.options.heads}));
}

// gamma (weight - mean) / sqrt(var + 1e-5) + beta per head: weight [H, ...], gamma and beta [H].
template <typename Layer>
Tensor normalised(const Layer& layer) {
  const Tensor flat = wide(layer.weight).flatten(1);
  const Tensor mean = flat.mean(1, /*keepdim=*/true);
  const Tensor variance = flat.var(/*dim=*/1, /*unbiased=*/false, /*keepdim=*/true);
  const Tensor scaled = wide(layer.gamma).unsqueeze(1) * (flat - mean) * (variance + 1e-5).rsqrt();
  return (scaled + wide(layer.beta).unsqueeze(1)).view_as(layer.weight);
}

// op(the projections of x) goes on from a state.
template <typename Layer, typename Op>
std::tuple<Tensor, State> go_on(const char* module, Layer& layer, const Tensor& x, const Op& op) {
  check_input(module, x, layer.options.channels);
  check_causal(module, layer.options.causal);
  auto [y, after] = op(Projected(layer.qkv(x), layer.options));
  return {layer.output(y), after};
}

template <typename Layer>
State neutral(const char* module, const Layer& layer, int64_t batch, int64_t key_channels, int64_t left) {
  check_causal(module, layer.options.causal);
  return aft::initial_state(batch, layer.options.channels, key_channels, left,
                            layer.qkv->weight.options().requires_grad(false));
}

}  // namespace

AFTSimpleImpl::AFTSimpleImpl(const AFTSimpleOptions& options_) : options(options_) {
  check_positive("AFTSimple", "channels", options.channels);
  reset();
}

void AFTSimpleImpl::reset() { register_projections(*this, options.channels); }

Tensor AFTSimpleImpl::forward(const Tensor& x) {
  check_input("AFTSimple", x, options.channels);
  return output(window(qkv(x), options, std::nullopt));
}

std::tuple<Tensor, State> AFTSimpleImpl::forward_with_state(const Tensor& x, const State& state) {
  return go_on("AFTSimple", *this, x,
               [&](const Projected& in) { return simple(in.q, in.k, in.v, state, options.gate); });
}

State AFTSimpleImpl::initial_state(int64_t batch) const {
  return neutral("AFTSimple", *this, batch, options.channels, 0);
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
  register_projections(*this, options.channels);
  register_factors(*this);
}

// The weights of the first `rows` positions: of the table only what a sequence from position 0 on can see.
OptionalTensor AFTLocalImpl::bias(int64_t rows) const {
  if (options.window == 0) return std::nullopt;
  const int64_t left = options.window - 1;
  const int64_t right = options.causal ? 0 : left;
  const auto used = [&](const Tensor& t) { return wide(rows < options.context ? t.narrow(0, 0, rows) : t); };
  return local_bias(used(u), used(v), left, right);
}

Tensor AFTLocalImpl::forward(const Tensor& x) {
  check_input("AFTLocal", x, options.channels);
  check_context("AFTLocal", x, options.context);
  OptionalTensor band = bias(x.size(1));
  if (band.has_value()) band = band->unsqueeze(0);
  return output(window(qkv(x), options, band));
}

std::tuple<Tensor, State> AFTLocalImpl::forward_with_state(const Tensor& x, const State& state) {
  return go_on("AFTLocal", *this, x, [&](const Projected& in) {
    const OptionalTensor w = bias(options.context);
    return w.has_value() ? local(in.q, in.k, in.v, *w, state, options.gate)
                         : simple(in.q, in.k, in.v, state, options.gate);
  });
}

State AFTLocalImpl::initial_state(int64_t batch) const {
  return neutral("AFTLocal", *this, batch, options.channels, std::max<int64_t>(options.window - 1, 0));
}

AFTFullImpl::AFTFullImpl(const AFTFullOptions& options_) : options(options_) {
  check_positive("AFTFull", "channels", options.channels);
  check_positive("AFTFull", "context", options.context);
  check_positive("AFTFull", "factor_channels", options.factor_channels);
  reset();
}

void AFTFullImpl::reset() {
  register_projections(*this, options.channels);
  register_factors(*this);
}

Tensor AFTFullImpl::forward(const Tensor& x) {
  check_input("AFTFull", x, options.channels);
  check_context("AFTFull", x, options.context);
  const Projected in(qkv(x), options);
  // Without a gate and a causal order the operator takes its targets from the rows of the weights.
  const FullWeights weights = {.bias = std::nullopt, .u = wide(u.narrow(0, 0, x.size(1))), .w = wide(v)};
  return output(full(in.q, in.k, in.v, weights, options.causal, options.gate));
}

std::tuple<Tensor, State> AFTFullImpl::forward_with_state(const Tensor& x, const State& state) {
  return go_on("AFTFull", *this, x, [&](const Projected& in) {
    const FullWeights weights = {.bias = std::nullopt, .u = wide(u), .w = wide(v)};
    return full(in.q, in.k, in.v, weights, state, options.gate);
  });
}

State AFTFullImpl::initial_state(int64_t batch) const {
  return neutral("AFTFull", *this, batch, options.channels, options.context);
}

AFTConv1dImpl::AFTConv1dImpl(const AFTConv1dOptions& options_) : options(options_) {
  check_positive("AFTConv1d", "channels", options.channels);
  check_heads("AFTConv1d", options.heads, options.channels);
  check_positive("AFTConv1d", "kernel", options.kernel);
  if (!options.causal && options.kernel % 2 == 0) {
    dispatch::fail("aft::nn::AFTConv1d: kernel must be odd if causal is false, got ", options.kernel,
                   ": a centred kernel has a middle");
  }
  reset();
}

void AFTConv1dImpl::reset() {
  register_projections(*this, key_channels());
  register_kernel(*this, {options.heads, options.kernel});
}

int64_t AFTConv1dImpl::key_channels() const { return options.key_per_head ? options.heads : options.channels; }

Tensor AFTConv1dImpl::kernel() const { return normalised(*this); }

Tensor AFTConv1dImpl::forward(const Tensor& x) {
  check_input("AFTConv1d", x, options.channels);
  return output(window(qkv(x), options, kernel()));
}

std::tuple<Tensor, State> AFTConv1dImpl::forward_with_state(const Tensor& x, const State& state) {
  return go_on("AFTConv1d", *this, x,
               [&](const Projected& in) { return conv1d(in.q, in.k, in.v, kernel(), state, options.gate); });
}

State AFTConv1dImpl::initial_state(int64_t batch) const {
  return neutral("AFTConv1d", *this, batch, key_channels(), options.kernel - 1);
}

AFTConv2dImpl::AFTConv2dImpl(const AFTConv2dOptions& options_) : options(options_) {
  check_positive("AFTConv2d", "channels", options.channels);
  check_heads("AFTConv2d", options.heads, options.channels);
  check_positive("AFTConv2d", "kernel", options.kernel);
  if (options.kernel % 2 == 0) {
    dispatch::fail("aft::nn::AFTConv2d: kernel must be odd, got ", options.kernel, ": a centred kernel has a middle");
  }
  reset();
}

void AFTConv2dImpl::reset() {
  register_projections(*this, options.key_per_head ? options.heads : options.channels);
  const std::array<int64_t, 3> shape = {options.heads, options.kernel, options.kernel};
  if (options.reparameterised) {
    register_kernel(*this, shape);
  } else {
    weight = register_parameter("weight", torch::zeros(shape));
  }
}

Tensor AFTConv2dImpl::kernel() const { return options.reparameterised ? normalised(*this) : wide(weight); }

Tensor AFTConv2dImpl::forward(const Tensor& x, std::array<int64_t, 2> grid, const OptionalTensor& key_mask) {
  check_input("AFTConv2d", x, options.channels);
  if (grid == std::array<int64_t, 2>{0, 0}) grid = options.grid;
  if (!options.global) {
    const Projected in(qkv(x), options);
    const Tensor w = kernel();
    const Tensor inside = conv2d_weights(torch::ones_like(w), grid) > 0;
    const FullWeights weights = {.bias = conv2d_weights(w, grid).masked_fill(~inside, -INFINITY), .u = {}, .w = {}};
    return output(full(in.q, in.k, in.v, weights, /*causal=*/false, options.gate, options.heads, key_mask));
  }
  dispatch::Conv2dCall call;
  call.kernel = kernel();
  call.grid = {grid[0], grid[1]};
  call.key_mask = key_mask;
  return output(packed<PackedConv2d>(qkv(x), options, call));
}

}  // namespace aft::nn

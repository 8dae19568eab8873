// AFT-simple, AFT-local and AFT-conv 1-D: three fronts that check their arguments under their own names and call the
// windowed operator, which alone has kernels and gradients.

#include "aft/ops/window.h"

#include <limits>

#include "family.h"
#include "register.h"

namespace aft {
namespace dispatch {
namespace {

using c10::SymInt;

struct WindowOut : Operator<WindowCall, "window.out", ReturnsNothing, Join<Windowed, Out>> {};
struct WindowWithState
    : Operator<WindowCall, "window_with_state", ReturnsYAndState, Join<Qkv, Band, StateBefore, ByName, Options>> {};
struct WindowStep
    : Operator<WindowCall, "window_step_", ReturnsTensor, Join<Qkv, Band, StateWritten, ByName, GateName, Heads>> {};
struct WindowBackward
    : Operator<WindowBackwardCall, "window_backward",
               Returns<std::tuple<Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>,
                       "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_band, Tensor[] grad_state)">,
               Join<WindowedGradient, StateIfAny, GradState, ByName, Causal, Options, WeightsGradient>> {};

// [heads, rows, J], or [heads, J]: one row for every position.
template <typename T>
ops::Band<T> band_of(const OptionalTensor& band) {
  if (!band.has_value() || band->size(-1) == 0) return {};
  T* data = data_of<T>(*band);
  if (band->dim() == 2) return {data, band->stride(0), 0, 1};
  const bool one_row = band->size(1) == 1;  // its stride may be anything
  return {data, band->stride(0), one_row ? band->size(-1) : band->stride(1), band->size(1)};
}

struct WindowFamily {
  using Forward = WindowForward;
  using Backward = WindowBackward;
  static constexpr size_t kWeights = 1, kStateGradients = 4;

  struct Sizes {
    ops::Gate gate = ops::Gate::kSigmoid;
    SymInt sequences, heads;
    SymInt span = 0, left = 0, right = 0;  // span: J, columns of the band
    std::array<OptionalTensor, 1> weights;
  };

  static Sizes check(std::string_view op, const WindowCall& c) {
    Sizes s;
    s.gate = check_call(op, c);
    check_packing(op, c.cu_seqlens, c.v);
    s.sequences = c.cu_seqlens.has_value() ? c.cu_seqlens->sym_size(0) - 1 : c.v.sym_size(0);
    if (c.q.has_value()) check_same(op, "q", *c.q, "v", c.v);
    s.heads = c.heads;
    if (c.band.has_value()) {
      const Tensor& band = *(s.weights[0] = c.band);
      check_weights(op, c.band_name, band, c.v);
      if (band.dim() != 2 && band.dim() != 3) {
        refuse(op, c.band_name, " must have shape [heads, rows, J], or [heads, J] for one row, got ", sizes_of(band),
               ": reshape it");
      }
      s.heads = band.sym_size(0);
      s.span = band.sym_size(-1);
      if (band.dim() == 3 && !c.cu_seqlens.has_value() && band.sym_size(1) < c.v.sym_size(1)) {
        refuse(op, c.band_name, " must have a row for each of the ", c.v.sym_size(1), " positions, got ",
               band.sym_size(1), " rows: shorten the sequence, or use a longer table");
      }
      if (s.span > 0) {
        if (!c.causal && s.span % 2 == 0) {
          refuse(op, c.band_name, " must have an odd number of columns J = 2 s - 1 if causal is false, got ", s.span,
                 ": reach as far to later positions as to earlier ones");
        }
        s.left = c.causal ? s.span - 1 : (s.span - 1) / 2;
        if (!c.causal) s.right = s.left;
      }
    }
    check_heads(op, s.heads, c.v);
    check_keys(op, c.k, c.v, s.heads);
    return s;
  }

  static void check_state(std::string_view op, const WindowCall& c, const Sizes& s) {
    dispatch::check_state(op, s.sequences, c.k.sym_size(2), s.left, c);
  }
  static void check_y(std::string_view op, std::string_view name, const Tensor& t, const WindowCall& c, const Sizes&) {
    check_same(op, name, t, "v", c.v);
  }
  static c10::SymIntArrayRef y_shape(const WindowCall& c, const Sizes&) { return c.v.sym_sizes(); }

  // ops::window_saved_size for sizes that are symbols, but for the window's reach: packed sequences count as one. Two
  // zeros more: torch.compile compiles sizes of 0 and 1 anew, so a short sequence must not have them.
  static SymInt saved_size(const WindowCall& c, const Sizes& s) {
    if (!c.causal) return 0;
    ops::WindowShape reach;
    reach.left = s.left.guard_int(__FILE__, __LINE__);
    const int64_t chunk = ops::window_chunk(reach);
    const SymInt boundaries = ((c.v.sym_size(1) + (chunk - 1)) / chunk - 1).max(0);
    return boundaries * 3 * c.v.sym_size(2) * c.v.sym_size(0) + 2;
  }

  static Tensor make_saved(const WindowCall& c, const Sizes& s) {
    return at::zeros_symint({saved_size(c, s)}, accumulated(c.v));
  }

  // A row stride of 0 means one shared row to the operator; a table that is expanded from one row is not that.
  static void read(WindowCall& c, Sizes& s) {
    OptionalTensor& band = s.weights[0];
    if (!band.has_value()) return;
    band = band->to(accumulated(c.v));
    const bool expanded = band->dim() == 3 && band->size(1) > 1 && band->stride(1) == 0;
    if (expanded) band = band->contiguous();
    make_readable(band);
  }

  template <typename E>
  static ops::WindowInputs<E> inputs(const WindowCall& c, const Sizes& s) {
    auto in = inputs_of<E, ops::WindowInputs<E>>(c);
    in.shape.batch = s.sequences.guard_int(__FILE__, __LINE__);
    in.shape.time = c.v.size(1);
    in.shape.channels = c.v.size(2);
    in.shape.heads = s.heads.guard_int(__FILE__, __LINE__);
    in.shape.key_channels = c.k.size(2);
    in.shape.causal = c.causal;
    in.shape.packed = c.cu_seqlens.has_value();
    in.shape.has_band = s.span > 0;
    in.shape.left = s.left.guard_int(__FILE__, __LINE__);
    in.shape.right = s.right.guard_int(__FILE__, __LINE__);
    in.shape.gate = s.gate;
    in.band = band_of<const ops::Accumulate<E>>(s.weights[0]);
    return in;
  }

  static std::vector<GradientOutput> weights_of(std::string_view, WindowBackwardCall& c) {
    return {{"grad_band", c.grad_band, "band", c.band}};
  }
  template <typename E>
  static void put(ops::WindowBackward<E>& p, const std::vector<GradientSum>& sums) {
    p.grad_band = band_of<ops::Accumulate<E>>(sums[0].sum());
  }

  template <typename E>
  using ForwardParams = ops::WindowForward<E>;
  template <typename E>
  using BackwardParams = ops::WindowBackward<E>;
  template <typename E>
  using StepParams = ops::WindowStep<E>;
  static constexpr auto forward = [](const auto& p, const auto& device) { ops::window_forward(p, device); };
  static constexpr auto backward = [](const auto& p, const auto& device) { ops::window_backward(p, device); };
  static constexpr auto step = [](const auto& p, const auto& device) { ops::window_step(p, device); };
  static constexpr auto workspace = []<typename E>(E, const ops::WindowShape& shape, ops::Pass pass) {
    return ops::window_workspace<E>(shape, pass);
  };
};

// ---- fronts

struct Simple : Operator<WindowCall, "simple", ReturnsTensor, Join<Qkv, ByName, Causal, Options>> {};
struct SimpleWithState
    : Operator<WindowCall, "simple_with_state", ReturnsYAndState, Join<Qkv, StateBefore, ByName, Options>> {};
struct SimpleStep
    : Operator<WindowCall, "simple_step_", ReturnsTensor, Join<Qkv, StateWritten, ByName, GateName, Heads>> {};

struct Bias : Argument<"Tensor bias", &WindowCall::band> {};
struct Local : Operator<WindowCall, "local", ReturnsTensor, Join<Qkv, Bias, ByName, Causal, GateName, Sources>> {};
struct LocalWithState : Operator<WindowCall, "local_with_state", ReturnsYAndState,
                                 Join<Qkv, Bias, StateBefore, ByName, GateName, Sources>> {};
struct LocalStep : Operator<WindowCall, "local_step_", ReturnsTensor, Join<Qkv, Bias, StateWritten, ByName, GateName>> {
};

struct Kernel : Argument<"Tensor kernel", &WindowCall::band> {};
struct Conv1d : Operator<WindowCall, "conv1d", ReturnsTensor, Join<Qkv, Kernel, ByName, Causal, GateName, Sources>> {};
struct Conv1dWithState : Operator<WindowCall, "conv1d_with_state", ReturnsYAndState,
                                  Join<Qkv, Kernel, StateBefore, ByName, GateName, Sources>> {};
struct Conv1dStep
    : Operator<WindowCall, "conv1d_step_", ReturnsTensor, Join<Qkv, Kernel, StateWritten, ByName, GateName>> {};

enum class Front { kSimple, kLocal, kConv1d };

// Gives the band all of its dimensions.
template <Front front>
void give_band(std::string_view op, WindowCall& c) {
  if constexpr (front == Front::kLocal) {
    c.band_name = "bias";
    if (c.band->dim() != 2 && c.band->dim() != 3) {
      refuse(op, "bias must have shape [heads, rows, J] or [rows, J], got ", c.band->sym_sizes(),
             ": make it with aft::local_bias");
    }
    if (c.band->dim() == 2) c.band = c.band->unsqueeze(0);
  } else if constexpr (front == Front::kConv1d) {
    c.band_name = "kernel";
    if (c.band->dim() != 2) {
      refuse(op, "kernel must have shape [heads, J], got ", c.band->sym_sizes(), ": one row of weights for each head");
    }
  }
}

// Without causal every target sees the same sum, so q may have another length than k and v.
bool asks_other_targets(const WindowCall& c) {
  const OptionalTensor& q = c.q;
  return !c.causal && !c.cu_seqlens.has_value() && q.has_value() && q->dim() == 3 && c.v.dim() == 3 &&
         q->sym_size(0) == c.v.sym_size(0) && q->sym_size(2) == c.v.sym_size(2) && q->sym_size(1) != c.v.sym_size(1) &&
         q->scalar_type() == c.v.scalar_type() && q->device() == c.v.device();
}

Tensor simple_across(std::string_view op, WindowCall& c) {
  const ops::Gate gate = gate_from_name(op, c.gate);
  if (gate == ops::Gate::kNone) refuse(op, "q must be absent with gate \"none\", got a tensor: pass None");
  const Tensor k = c.k, v = c.v;
  // 16-bit tensors are rounded once, at the end.
  const auto wide = [&](const Tensor& t) { return t.to(at::toOpMathType(v.scalar_type())); };
  const Tensor q = wide(*c.q);
  c.q = std::nullopt;
  c.k = wide(k);
  c.v = wide(v);
  c.gate = "none";
  (void)check<WindowFamily, Window>(op, c);
  // All rows are N/D; the sum of none is 0, and k and v stay in the graph.
  const Tensor all = Window::call(c);
  const Tensor ratio = v.sym_size(1) == 0 ? all.sum(1, /*keepdim=*/true) : all.narrow_symint(1, 0, 1);
  // Where a channel has no source at all no target sees anything: whatever its query holds must not meet the 0.
  Tensor seen = k.detach() != -std::numeric_limits<double>::infinity();
  if (c.key_mask.has_value()) seen = seen.logical_and(c.key_mask->unsqueeze(2));
  seen = seen.any(1, /*keepdim=*/true);
  if (k.sym_size(2) != v.sym_size(2)) seen = seen.repeat_interleave_symint(v.sym_size(2) / k.sym_size(2), 2);
  const Tensor query = at::where(seen, q, 0);
  return ((gate == ops::Gate::kSigmoid ? query.sigmoid() : query.relu()) * ratio).to(v.scalar_type());
}

// What does not fit is said under the front's names, before the windowed operator says it under its own.
template <Front front, typename Windowed>
typename Windowed::Result through(std::string_view op, WindowCall& c) {
  if constexpr (front == Front::kSimple && std::is_same_v<Windowed, Window>) {
    if (asks_other_targets(c)) return simple_across(op, c);
  }
  give_band<front>(op, c);
  (void)check<WindowFamily, Windowed>(op, c);
  if constexpr (Windowed::writes) check_step(op, c);
  return Windowed::call(c);
}

template <Front front, typename Whole, typename WithState, typename Step>
void define_front(torch::Library& m) {
  define_composite<Whole, through<front, Window>>(m);
  define_composite<WithState, through<front, WindowWithState>>(m);
  define_composite<Step, through<front, WindowStep>>(m);
  for (const auto name : {Whole::name, WithState::name, Step::name}) cast_by_autocast(m, name.data());
}

AFT_REGISTER(m) {
  define_family<WindowFamily, Window, WindowOut, WindowBackwardOut>(m);
  define_stateful<WindowFamily, WindowWithState, WindowStep>(m);
  define_front<Front::kSimple, Simple, SimpleWithState, SimpleStep>(m);
  define_front<Front::kLocal, Local, LocalWithState, LocalStep>(m);
  define_front<Front::kConv1d, Conv1d, Conv1dWithState, Conv1dStep>(m);
}

}  // namespace
}  // namespace dispatch

using dispatch::name_of_gate, dispatch::split, dispatch::tensors_of;
using dispatch::OptionalTensor, dispatch::Tensor;

Tensor simple(const OptionalTensor& q, const Tensor& k, const Tensor& v, bool causal, Gate gate, int64_t heads,
              const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  return dispatch::Simple::call(q, k, v, causal, name_of_gate(gate), heads, key_mask, cu_seqlens);
}

Tensor local(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, bool causal, Gate gate,
             const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  return dispatch::Local::call(q, k, v, bias, causal, name_of_gate(gate), key_mask, cu_seqlens);
}

Tensor conv1d(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, bool causal, Gate gate,
              const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  return dispatch::Conv1d::call(q, k, v, kernel, causal, name_of_gate(gate), key_mask, cu_seqlens);
}

std::tuple<Tensor, State> simple(const OptionalTensor& q, const Tensor& k, const Tensor& v, const State& state,
                                 Gate gate, int64_t heads, const OptionalTensor& key_mask,
                                 const OptionalTensor& cu_seqlens) {
  return split(
      dispatch::SimpleWithState::call(q, k, v, tensors_of(state), name_of_gate(gate), heads, key_mask, cu_seqlens));
}

std::tuple<Tensor, State> local(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias,
                                const State& state, Gate gate, const OptionalTensor& key_mask,
                                const OptionalTensor& cu_seqlens) {
  return split(
      dispatch::LocalWithState::call(q, k, v, bias, tensors_of(state), name_of_gate(gate), key_mask, cu_seqlens));
}

std::tuple<Tensor, State> conv1d(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel,
                                 const State& state, Gate gate, const OptionalTensor& key_mask,
                                 const OptionalTensor& cu_seqlens) {
  return split(
      dispatch::Conv1dWithState::call(q, k, v, kernel, tensors_of(state), name_of_gate(gate), key_mask, cu_seqlens));
}

Tensor simple_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, State& state, Gate gate, int64_t heads) {
  return dispatch::SimpleStep::call(q, k, v, tensors_of(state), name_of_gate(gate), heads);
}

Tensor local_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& bias, State& state,
                  Gate gate) {
  return dispatch::LocalStep::call(q, k, v, bias, tensors_of(state), name_of_gate(gate));
}

Tensor conv1d_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const Tensor& kernel, State& state,
                   Gate gate) {
  return dispatch::Conv1dStep::call(q, k, v, kernel, tensors_of(state), name_of_gate(gate));
}

}  // namespace aft

// AFT-full: the dense operator. Weights are a matrix, bias, or factors u and w, which stand for u w^T.

#include "aft/ops/full.h"

#include "family.h"

namespace aft {
namespace dispatch {
namespace {

using c10::SymInt;

struct FullCall : SequenceCall {
  OptionalTensor bias;  // [rows, columns], with [heads,] or [batch, heads,] before
  OptionalTensor u, w;  // [positions, width], with [heads,] before
};

struct FullBackwardCall : FullCall, Gradients {
  OptionalTensor grad_bias, grad_u, grad_w;
};

using WeightsIfAny = Join<Argument<"Tensor? bias=None", &FullCall::bias>, Argument<"Tensor? u=None", &FullCall::u>,
                          Argument<"Tensor? w=None", &FullCall::w>>;
using Weights = Join<Argument<"Tensor? bias", &FullCall::bias>, Argument<"Tensor? u", &FullCall::u>,
                     Argument<"Tensor? w", &FullCall::w>>;
using WrittenWeights = Join<Argument<"Tensor(d!)? grad_bias", &FullBackwardCall::grad_bias>,
                            Argument<"Tensor(e!)? grad_u", &FullBackwardCall::grad_u>,
                            Argument<"Tensor(f!)? grad_w", &FullBackwardCall::grad_w>>;
using Dense = Join<Qkv, WeightsIfAny, ByName, Causal, Options>;
using DenseGradient = Join<GradY, Qkv, Weights, Saved>;

struct Full : Operator<FullCall, "full", ReturnsTensor, Dense> {};
struct FullOut : Operator<FullCall, "full.out", ReturnsNothing, Join<Dense, Out>> {};
struct FullWithState : Operator<FullCall, "full_with_state", ReturnsYAndState,
                                Join<Qkv, Weights, StateBefore, ByName, GateName, Heads, KeyMask>> {};
struct FullStep
    : Operator<FullCall, "full_step_", ReturnsTensor, Join<Qkv, Weights, StateWritten, ByName, GateName, Heads>> {};
struct FullForward
    : Operator<FullCall, "full_forward", ReturnsForward, Join<Qkv, Weights, StateIfAny, ByName, Causal, Options>> {};
struct FullBackward : Operator<FullBackwardCall, "full_backward",
                               Returns<std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, std::vector<Tensor>>,
                                       "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_bias, Tensor grad_u, "
                                       "Tensor grad_w, Tensor[] grad_state)">,
                               Join<DenseGradient, StateIfAny, GradState, ByName, Causal, Options, WeightsGradient>> {};
struct FullBackwardOut : Operator<FullBackwardCall, "full_backward.out", ReturnsNothing,
                                  Join<DenseGradient, ByName, Causal, Options, Written, WrittenWeights>> {};

void check_targets(std::string_view op, const FullCall& c) {
  const Tensor &q = *c.q, &v = c.v;
  check_dtype_device(op, "q", q, "v", v);
  if (q.dim() != 3 || q.sym_size(0) != v.sym_size(0) || q.sym_size(2) != v.sym_size(2) ||
      (c.causal && q.sym_size(1) != v.sym_size(1))) {
    refuse(op, "q must have shape [", v.sym_size(0), ", ", c.causal ? "time of v" : "targets", ", ", v.sym_size(2),
           "], got ", sizes_of(q), c.causal ? ": causal=False takes other lengths" : ": reshape it");
  }
}

Tensor check_matrix(std::string_view op, const FullCall& c) {
  Tensor bias = *c.bias;
  check_weights(op, "bias", bias, c.v);
  if (bias.dim() < 2 || bias.dim() > 4) {
    refuse(op, "bias must have shape [rows, columns], [heads, rows, columns] or [batch, heads, rows, columns], got ",
           sizes_of(bias), ": reshape it");
  }
  while (bias.dim() < 4) bias = bias.unsqueeze(0);
  const bool packed = c.cu_seqlens.has_value();
  if (bias.sym_size(0) != 1 && (bias.sym_size(0) != c.v.sym_size(0) || packed)) {
    refuse(op, "bias must have a batch of 1", packed ? " with cu_seqlens" : " or of v's, ",
           packed ? std::string() : c10::str(c.v.sym_size(0)), ", got ", bias.sym_size(0), ": share it or repeat it");
  }
  return bias;
}

Tensor check_factor(std::string_view op, const char* name, const Tensor& factor, const Tensor& v) {
  check_weights(op, name, factor, v);
  if (factor.dim() != 2 && factor.dim() != 3) {
    refuse(op, name, " must have shape [positions, width] or [heads, positions, width], got ", sizes_of(factor),
           ": reshape it");
  }
  return factor.dim() == 2 ? factor.unsqueeze(0) : factor;
}

// A size of 1 shares a matrix, whatever its stride.
template <typename T>
ops::PairWeights<T> pair_weights(const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w) {
  static std::remove_const_t<T> empty{};  // weights without elements have no address, but they are there
  const auto data = [](const Tensor& t) { return t.numel() > 0 ? data_of<T>(t) : &empty; };
  const auto stride = [](const Tensor& t, int64_t i) { return t.size(i) == 1 ? 0 : t.stride(i); };
  ops::PairWeights<T> x;
  if (bias.has_value()) {
    x.table = data(*bias);
    x.batch_stride = stride(*bias, 0);
    x.head_stride = stride(*bias, 1);
    x.row_stride = bias->stride(2);
    x.rows = bias->size(2);
    x.columns = bias->size(3);
  } else if (u.has_value()) {
    x.u = data(*u);
    x.v = data(*w);
    x.width = u->size(2);
    x.u_head_stride = stride(*u, 0);
    x.v_head_stride = stride(*w, 0);
    x.rows = u->size(1);
    x.columns = w->size(1);
  }
  return x;
}

struct FullFamily {
  using Forward = FullForward;
  using Backward = FullBackward;
  static constexpr size_t kWeights = 3, kStateGradients = 2;

  struct Sizes {
    ops::Gate gate = ops::Gate::kSigmoid;
    SymInt targets, heads;
    // bias [B or 1, H or 1, rows, columns]; or u and w [H or 1, positions, width]
    std::array<OptionalTensor, 3> weights;
  };

  static Sizes check(std::string_view op, const FullCall& c) {
    Sizes s;
    auto& [bias, u, w] = s.weights;
    s.gate = check_call(op, c);
    check_packing(op, c.cu_seqlens, c.v);
    if (c.q.has_value()) check_targets(op, c);
    const bool one_factor = c.u.has_value() != c.w.has_value();
    if (one_factor || c.bias.has_value() == c.u.has_value()) {
      refuse(op, "weights must be either bias or both factors u and w, got ",
             c.bias.has_value() ? "bias and factors"
             : one_factor       ? "one factor"
                                : "none",
             ": pass one of the two");
    }
    if (c.bias.has_value()) {
      bias = check_matrix(op, c);
    } else {
      u = check_factor(op, "u", *c.u, c.v);
      w = check_factor(op, "w", *c.w, c.v);
      if (u->sym_size(0) != w->sym_size(0) || u->sym_size(2) != w->sym_size(2)) {
        refuse(op, "w must have the heads and width of u, ", sizes_of(*u), ", got ", sizes_of(*w), ": make both alike");
      }
    }
    s.heads = c.heads;
    const SymInt own_heads = bias.has_value() ? bias->sym_size(1) : u->sym_size(0);
    if (own_heads != 1) {
      if (s.heads != 1 && own_heads != s.heads) {
        refuse(op, "heads must be those of the weights, ", own_heads, ", or 1, got ", s.heads, ": drop the argument");
      }
      s.heads = own_heads;
    }
    check_heads(op, s.heads, c.v);
    check_keys(op, c.k, c.v, s.heads);
    s.targets = c.q.has_value()                        ? c.q->sym_size(1)
                : c.causal || c.cu_seqlens.has_value() ? c.v.sym_size(1)
                : bias.has_value()                     ? bias->sym_size(2)
                                                       : u->sym_size(1);
    return s;
  }

  // A ring holds as many positions as it was made with.
  static void check_state(std::string_view op, const FullCall& c, const Sizes&) {
    if (c.cu_seqlens.has_value()) refuse(op, "cu_seqlens must be absent with a state: drop one of the two");
    const bool has_ring = c.state.size() == 6 && c.state[4].defined() && c.state[4].dim() == 3;
    dispatch::check_state(op, c.v.sym_size(0), c.k.sym_size(2), has_ring ? c.state[4].sym_size(1) : SymInt(0), c);
  }
  static void check_y(std::string_view op, std::string_view name, const Tensor& t, const FullCall& c, const Sizes& s) {
    check_shape(op, name, t, y_shape(c, s), c.v);
  }
  static c10::SymDimVector y_shape(const FullCall& c, const Sizes& s) {
    return {c.v.sym_size(0), s.targets, c.v.sym_size(2)};
  }

  // ops::full_saved_size for sizes that are symbols.
  static SymInt saved_size(const FullCall& c, const Sizes& s) {
    return c.v.sym_size(0) * s.targets * c.v.sym_size(2) * 3;
  }

  static Tensor make_saved(const FullCall& c, const Sizes& s) {
    return at::empty_symint({saved_size(c, s)}, accumulated(c.v));
  }

  static void read(FullCall& c, Sizes& s) {
    for (OptionalTensor& t : s.weights) {
      if (t.has_value()) t = t->to(accumulated(c.v));
    }
    auto& [bias, u, w] = s.weights;
    make_readable(bias);
    if (u.has_value()) u = u->contiguous();
    if (w.has_value()) w = w->contiguous();
  }

  template <typename E>
  static ops::FullInputs<E> inputs(const FullCall& c, const Sizes& s) {
    auto in = inputs_of<E, ops::FullInputs<E>>(c);
    in.shape.batch = c.cu_seqlens.has_value() ? c.cu_seqlens->size(0) - 1 : c.v.size(0);
    in.shape.targets = s.targets.guard_int(__FILE__, __LINE__);
    in.shape.sources = c.v.size(1);
    in.shape.channels = c.v.size(2);
    in.shape.heads = s.heads.guard_int(__FILE__, __LINE__);
    in.shape.key_channels = c.k.size(2);
    in.shape.causal = c.causal;
    in.shape.packed = c.cu_seqlens.has_value();
    in.shape.gate = s.gate;
    in.shape.capacity = c.state.empty() ? 0 : c.state[4].size(1);
    in.weights = pair_weights<const ops::Accumulate<E>>(s.weights[0], s.weights[1], s.weights[2]);
    return in;
  }

  static std::vector<GradientOutput> weights_of(std::string_view op, FullBackwardCall& c) {
    if (c.grad_u.has_value() != c.grad_w.has_value()) {
      refuse(op, "grad_u and grad_w must both be tensors or both None, got one: pass both");
    }
    return {{"grad_bias", c.grad_bias, "bias", c.bias}, {"grad_u", c.grad_u, "u", c.u}, {"grad_w", c.grad_w, "w", c.w}};
  }
  template <typename E>
  static void put(ops::FullBackward<E>& p, const std::vector<GradientSum>& sums) {
    p.grad_weights = pair_weights<ops::Accumulate<E>>(sums[0].sum(), sums[1].sum(), sums[2].sum());
  }

  template <typename E>
  using ForwardParams = ops::FullForward<E>;
  template <typename E>
  using BackwardParams = ops::FullBackward<E>;
  template <typename E>
  using StepParams = ops::FullStep<E>;
  static constexpr auto forward = [](const auto& p, const auto& device) { ops::full_forward(p, device); };
  static constexpr auto backward = [](const auto& p, const auto& device) { ops::full_backward(p, device); };
  static constexpr auto step = [](const auto& p, const auto& device) { ops::full_step(p, device); };
  static constexpr auto workspace = []<typename E>(E, const ops::FullShape& shape, ops::Pass pass) {
    return ops::full_workspace<E>(shape, pass);
  };
};

AFT_REGISTER(m) {
  define_family<FullFamily, Full, FullOut, FullBackwardOut>(m);
  define_stateful<FullFamily, FullWithState, FullStep>(m);
  for (const char* name : {"full", "full_with_state", "full_step_"}) cast_by_autocast(m, name);
}

}  // namespace
}  // namespace dispatch

using torch::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor full(const OptionalTensor& q, const Tensor& k, const Tensor& v, const FullWeights& weights, bool causal,
            Gate gate, int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  return dispatch::Full::call(q, k, v, weights.bias, weights.u, weights.w, causal, dispatch::name_of_gate(gate), heads,
                              key_mask, cu_seqlens);
}

std::tuple<Tensor, State> full(const OptionalTensor& q, const Tensor& k, const Tensor& v, const FullWeights& weights,
                               const State& state, Gate gate, int64_t heads) {
  return dispatch::split(dispatch::FullWithState::call(q, k, v, weights.bias, weights.u, weights.w,
                                                       dispatch::tensors_of(state), dispatch::name_of_gate(gate), heads,
                                                       std::nullopt));
}

Tensor full_step(const OptionalTensor& q, const Tensor& k, const Tensor& v, const FullWeights& weights, State& state,
                 Gate gate, int64_t heads) {
  return dispatch::FullStep::call(q, k, v, weights.bias, weights.u, weights.w, dispatch::tensors_of(state),
                                  dispatch::name_of_gate(gate), heads);
}

}  // namespace aft

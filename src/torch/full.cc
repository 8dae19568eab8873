// AFT-full: the dense operator's checks, CPU, Meta and gradients.

#include "aft/ops/full.h"

#include <torch/library.h>
#include <torch/types.h>

#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "gradients.h"
#include "operators.h"
#include "tensors.h"
#include "torch_threads.h"
#include "version_check.h"

namespace aft::dispatch {
namespace {

// What a call is handed, checked, before any size must be a number.
class FullArguments {
 public:
  const OptionalTensor& q;
  const Tensor& k;
  const Tensor& v;
  OptionalTensor bias, u, w;  // bias [B or 1, H or 1, rows, columns]; or factors [H or 1, rows, width]
  bool causal;
  ops::Gate gate;
  c10::SymInt heads;
  OptionalTensor key_mask, cu_seqlens;

  FullArguments(std::string_view op_name, const OptionalTensor& query, const Tensor& key, const Tensor& value,
                const OptionalTensor& matrix, const OptionalTensor& factor_u, const OptionalTensor& factor_w,
                bool is_causal, std::string_view gate_name, int64_t head_count, const OptionalTensor& mask,
                const OptionalTensor& sequences)
      : q(query),
        k(key),
        v(value),
        bias(given(matrix)),
        u(given(factor_u)),
        w(given(factor_w)),
        causal(is_causal),
        gate(gate_from_name(op_name, gate_name)),
        heads(head_count),
        key_mask(given(mask)),
        cu_seqlens(given(sequences)),
        op(op_name) {
    check_torch_version();
    check_elements(op, "v", v);
    if (v.dim() != 3) {
      fail("aft::", op, ": v must have three dimensions [batch, time, channels], got shape ", sizes_of(v),
           ": add the missing ones with unsqueeze()");
    }
    check_query(gate_name);
    check_weights(head_count);
    if (heads < 1 || v.sym_size(2) % heads != 0) {
      fail("aft::", op, ": the number of heads must divide the ", v.sym_size(2), " channels of v, got ", heads,
           ": change one of them");
    }
    check_dtype_device(op, "k", k, "v", v);
    if (k.dim() != 3 || k.sym_size(0) != v.sym_size(0) || k.sym_size(1) != v.sym_size(1) ||
        (k.sym_size(2) != v.sym_size(2) && k.sym_size(2) != heads)) {
      fail("aft::", op, ": k must have shape ", sizes_of(v), " like v, or [", v.sym_size(0), ", ", v.sym_size(1), ", ",
           heads, "] with one key per head, got ", sizes_of(k), ": reshape it, or change the number of heads");
    }
    check_mask_and_sequences();
  }

  [[nodiscard]] c10::SymInt batch() const { return v.sym_size(0); }
  [[nodiscard]] c10::SymInt targets() const {
    return gate != ops::Gate::kNone ? q->sym_size(1) : causal || cu_seqlens.has_value() ? v.sym_size(1) : rows();
  }
  [[nodiscard]] c10::SymInt rows() const { return bias.has_value() ? bias->sym_size(2) : u->sym_size(1); }

  // y and the gradient of q.
  [[nodiscard]] c10::SymDimVector y_shape() const { return {batch(), targets(), v.sym_size(2)}; }

  [[nodiscard]] ops::FullShape shape(int64_t capacity) const {
    ops::FullShape s;
    s.batch = cu_seqlens.has_value() ? cu_seqlens->size(0) - 1 : v.size(0);
    s.targets = targets().guard_int(__FILE__, __LINE__);
    s.sources = v.size(1);
    s.channels = v.size(2);
    s.heads = heads.guard_int(__FILE__, __LINE__);
    s.key_channels = k.size(2);
    s.causal = causal;
    s.gate = gate;
    s.capacity = capacity;
    return s;
  }

  void check_state(TensorList state) const {
    if (!causal) fail("aft::", op, ": a state needs causal=True, got False: run the whole sequence at once");
    if (cu_seqlens.has_value()) fail("aft::", op, ": cu_seqlens must be absent with a state: drop one of the two");
    if (state.size() != 6) {
      fail("aft::", op, ": state must be the six tensors (position, max, den, num, ring_key, ring_value), got ",
           state.size(), ": make it with aft::initial_state(k, v, rows of the weights)");
    }
    const Tensor& position = state[0];
    if (!position.defined() || position.scalar_type() != at::kLong || position.dim() != 1 ||
        position.sym_size(0) != batch() || position.device() != v.device()) {
      fail("aft::", op, ": state position must be int64 of shape [", batch(), "] on ", v.device(),
           ": make it with aft::initial_state");
    }
    constexpr std::array<const char*, 6> kNames = {"",          "state max",      "state den",
                                                   "state num", "state ring_key", "state ring_value"};
    const c10::SymInt capacity = state[4].dim() == 3 ? state[4].sym_size(1) : c10::SymInt(0);
    const c10::SymInt keys = k.sym_size(2);
    const c10::SymInt channels = v.sym_size(2);
    const std::array<c10::SymDimVector, 6> shapes = {{{},
                                                      {batch(), keys},
                                                      {batch(), keys},
                                                      {batch(), channels},
                                                      {batch(), capacity, keys},
                                                      {batch(), capacity, channels}}};
    for (size_t i = 1; i < 6; ++i) {
      check_accumulated(op, kNames[i], state[i], v);
      if (state[i].sym_sizes() != c10::SymIntArrayRef(shapes[i])) {
        fail("aft::", op, ": ", kNames[i], " must have shape ", c10::SymIntArrayRef(shapes[i]), ", got ",
             sizes_of(state[i]), ": make it with aft::initial_state");
      }
    }
  }

 private:
  std::string_view op;

  static OptionalTensor given(const OptionalTensor& t) { return t.has_value() && t->defined() ? t : std::nullopt; }

  void check_query(std::string_view gate_name) const {
    const bool there = q.has_value() && q->defined();
    if (gate == ops::Gate::kNone) {
      if (there) {
        fail("aft::", op, ": q must be absent with gate \"none\", got a tensor of shape ", sizes_of(*q),
             ": pass None, or another gate");
      }
      return;
    }
    if (!there) {
      fail("aft::", op, ": q must be a tensor with gate \"", gate_name, "\", got none: pass one, or gate=\"none\"");
    }
    check_dtype_device(op, "q", *q, "v", v);
    if (q->dim() != 3 || q->sym_size(0) != v.sym_size(0) || q->sym_size(2) != v.sym_size(2) ||
        (causal && q->sym_size(1) != v.sym_size(1))) {
      fail("aft::", op, ": q must have shape [", v.sym_size(0), ", ", causal ? "time of v" : "targets", ", ",
           v.sym_size(2), "], got ", sizes_of(*q), causal ? ": causal=False takes other lengths" : ": reshape it");
    }
  }

  // The dtype that weights have: v's, or float32 beside 16-bit v.
  void check_weight(std::string_view name, const Tensor& t) const {
    if (t.scalar_type() != v.scalar_type() || t.device() != v.device()) check_accumulated(op, name, t, v);
  }

  void check_weights(int64_t head_count) {
    if (bias.has_value() == (u.has_value() || w.has_value()) || u.has_value() != w.has_value()) {
      fail("aft::", op, ": weights must be either bias or both factors u and w, got ",
           bias.has_value()                 ? "bias and factors"
           : u.has_value() || w.has_value() ? "one factor"
                                            : "none",
           ": pass one of the two");
    }
    c10::SymInt own_heads = 1;
    if (bias.has_value()) {
      check_weight("bias", *bias);
      if (bias->dim() < 2 || bias->dim() > 4) {
        fail("aft::", op, ": bias must have shape [rows, columns], [heads, rows, columns] or [batch, heads, rows, ",
             "columns], got ", sizes_of(*bias), ": reshape it");
      }
      while (bias->dim() < 4) bias = bias->unsqueeze(0);
      if (bias->sym_size(0) != 1 && (bias->sym_size(0) != batch() || cu_seqlens.has_value())) {
        fail("aft::", op, ": bias must have a batch of 1", cu_seqlens.has_value() ? " with cu_seqlens" : " or of v's, ",
             cu_seqlens.has_value() ? std::string() : c10::str(batch()), ", got ", bias->sym_size(0),
             ": share it or repeat it");
      }
      own_heads = bias->sym_size(1);
    } else {
      for (OptionalTensor* factor : {&u, &w}) {
        const char* name = factor == &u ? "u" : "w";
        check_weight(name, **factor);
        if ((*factor)->dim() != 2 && (*factor)->dim() != 3) {
          fail("aft::", op, ": ", name, " must have shape [positions, width] or [heads, positions, width], got ",
               sizes_of(**factor), ": reshape it");
        }
        if ((*factor)->dim() == 2) *factor = (*factor)->unsqueeze(0);
      }
      if (u->sym_size(0) != w->sym_size(0) || u->sym_size(2) != w->sym_size(2)) {
        fail("aft::", op, ": w must have the heads and width of u, ", sizes_of(*u), ", got ", sizes_of(*w),
             ": make both alike");
      }
      own_heads = u->sym_size(0);
    }
    if (own_heads != 1) {
      if (head_count != 1 && own_heads != head_count) {
        fail("aft::", op, ": heads must be those of the weights, ", own_heads, ", or 1, got ", head_count,
             ": drop the argument");
      }
      heads = own_heads;
    }
  }

  void check_mask_and_sequences() const {
    if (key_mask.has_value() &&
        (key_mask->scalar_type() != at::kBool || key_mask->dim() != 2 || key_mask->sym_size(0) != v.sym_size(0) ||
         key_mask->sym_size(1) != v.sym_size(1) || key_mask->device() != v.device())) {
      fail("aft::", op, ": key_mask must be bool of shape [", v.sym_size(0), ", ", v.sym_size(1), "] on ", v.device(),
           ", got ", key_mask->scalar_type(), " of shape ", sizes_of(*key_mask), " on ", key_mask->device(),
           ": True where a source is there");
    }
    if (!cu_seqlens.has_value()) return;
    if (cu_seqlens->scalar_type() != at::kLong || cu_seqlens->dim() != 1 || cu_seqlens->sym_size(0) < 1) {
      fail("aft::", op, ": cu_seqlens must be int64 of shape [sequences + 1], got ", cu_seqlens->scalar_type(),
           " of shape ", sizes_of(*cu_seqlens), ": pass the sums of the lengths, 0 first");
    }
    if (v.sym_size(0) != 1) {
      fail("aft::", op, ": v must have shape [1, tokens, channels] with cu_seqlens, got ", sizes_of(v),
           ": lay the sequences one after another");
    }
  }
};

// The same readable, kept alive for as long as the operator runs.
struct FullInputs {
  ops::FullShape shape;
  Tensor q, k, v, bias, u, w, mask, cu_seqlens;
  std::vector<Tensor> state;  // empty: none

  FullInputs(std::string_view op, const FullArguments& a, TensorList given_state) : k(readable(a.k)), v(readable(a.v)) {
    if (!given_state.empty()) {
      a.check_state(given_state);
      state = contiguous(given_state);
    }
    shape = a.shape(state.empty() ? 0 : state[4].size(1));
    if (a.gate != ops::Gate::kNone) q = readable(*a.q);
    const at::ScalarType accumulate = v.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    if (a.bias.has_value()) bias = readable(a.bias->to(accumulate));
    if (a.u.has_value()) u = a.u->to(accumulate).contiguous();
    if (a.w.has_value()) w = a.w->to(accumulate).contiguous();
    if (a.key_mask.has_value()) mask = readable(*a.key_mask);
    if (a.cu_seqlens.has_value()) {
      if (!a.cu_seqlens->is_cpu()) fail("aft::", op, ": cu_seqlens must lie on the CPU: move it with .cpu()");
      cu_seqlens = a.cu_seqlens->contiguous();
    }
  }

  template <typename E, typename Params>
  void fill(Params& p) const {
    using T = ops::Accumulate<E>;
    p.shape = shape;
    p.q = rows_of<const E>(q);
    p.k = rows_of<const E>(k);
    p.v = rows_of<const E>(v);
    p.weights = weights_of<const T>(bias, u, w);
  }
  template <typename Params>
  void fill_sequences(Params& p) const {
    if (mask.defined()) p.key_mask = {mask.const_data_ptr<bool>(), mask.stride(0)};
    if (cu_seqlens.defined()) p.cu_seqlens = cu_seqlens.const_data_ptr<int64_t>();
  }

  // A size of 1 shares a matrix, whatever its stride.
  template <typename T>
  static ops::PairWeights<T> weights_of(const Tensor& bias, const Tensor& u, const Tensor& w) {
    const auto stride = [](const Tensor& t, int64_t i) { return t.size(i) == 1 ? 0 : t.stride(i); };
    ops::PairWeights<T> x;
    if (bias.defined()) {
      x.table = static_cast<T*>(bias.data_ptr());
      x.batch_stride = stride(bias, 0);
      x.head_stride = stride(bias, 1);
      x.row_stride = bias.stride(2);
      x.rows = bias.size(2);
      x.columns = bias.size(3);
    } else if (u.defined()) {
      x.u = static_cast<T*>(u.data_ptr());
      x.v = static_cast<T*>(w.data_ptr());
      x.width = u.size(2);
      x.u_head_stride = stride(u, 0);
      x.v_head_stride = stride(w, 0);
      x.rows = u.size(1);
      x.columns = w.size(1);
    }
    return x;
  }
};

template <typename T>
ops::State<T> state_of(TensorList s) {
  if (s.empty()) return {};
  return {s[0].data_ptr<int64_t>(),         static_cast<T*>(s[1].data_ptr()), static_cast<T*>(s[2].data_ptr()),
          static_cast<T*>(s[3].data_ptr()), static_cast<T*>(s[4].data_ptr()), static_cast<T*>(s[5].data_ptr())};
}

at::TensorOptions accumulate_options(const Tensor& v) {
  return v.options().dtype(v.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

Tensor empty(c10::SymIntArrayRef shape, const at::TensorOptions& options) { return at::empty_symint(shape, options); }

// y, what is saved (if wanted), and the state after.
YSavedState empty_results(const FullArguments& a, TensorList state, bool wants_saved) {
  const at::TensorOptions options = accumulate_options(a.v);
  const auto none = [&] { return at::empty({0}, options); };  // results must not share memory
  const Tensor y = empty(a.y_shape(), a.v.options());
  const Tensor saved = wants_saved ? empty({y.sym_numel() * 3}, options) : none();
  if (state.empty())
    return {y, saved, at::empty({0}, options.dtype(at::kLong)), none(), none(), none(), none(), none()};
  // Ring slots that hold no source stay as they are: zeros.
  const auto like = [&](const Tensor& t) { return empty(t.sym_sizes(), t.options()); };
  const auto ring = [&](const Tensor& t) { return at::zeros_symint(t.sym_sizes(), t.options()); };
  return {y, saved, like(state[0]), like(state[1]), like(state[2]), like(state[3]), ring(state[4]), ring(state[5])};
}

YSavedState run_forward(std::string_view op, const FullArguments& a, TensorList state, bool wants_saved) {
  const FullInputs in(op, a, state);
  YSavedState results = empty_results(a, state, wants_saved);
  const auto& [y, saved, position, max, den, num, ring_key, ring_value] = results;
  with_element_type(a.v, [&]<typename E>(E) {
    using T = ops::Accumulate<E>;
    ops::FullForward<E> p;
    in.fill<E>(p);
    in.fill_sequences(p);
    p.y = rows_of<E>(y);
    p.initial_state = state_of<const T>(in.state);
    if (!state.empty()) {
      p.final_state = state_of<T>(std::vector<Tensor>{position, max, den, num, ring_key, ring_value});
    }
    if (wants_saved) p.saved = static_cast<T*>(saved.data_ptr());
    ops::full_forward(p, torch_threads());
  });
  return results;
}

Tensor full_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate, int64_t heads,
                const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  constexpr std::string_view op = "full";
  const FullArguments a(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  return std::get<0>(run_forward(op, a, {}, false));
}

YSavedState full_forward_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                             const OptionalTensor& u, const OptionalTensor& w, TensorList state, bool causal,
                             std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                             const OptionalTensor& cu_seqlens) {
  constexpr std::string_view op = "full_forward";
  const FullArguments a(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  return run_forward(op, a, state, true);
}

YAndState full_with_state_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                              const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                              int64_t heads, const OptionalTensor& key_mask) {
  constexpr std::string_view op = "full_with_state";
  const FullArguments a(op, q, k, v, bias, u, w, true, gate, heads, key_mask, std::nullopt);
  a.check_state(state);
  auto [y, saved, position, max, den, num, ring_key, ring_value] = run_forward(op, a, state, false);
  return {y, position, max, den, num, ring_key, ring_value};
}

Tensor full_step_cpu(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                     const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                     int64_t heads) {
  constexpr std::string_view op = "full_step_";
  const FullArguments a(op, q, k, v, bias, u, w, true, gate, heads, std::nullopt, std::nullopt);
  a.check_state(state);
  check_step(op, v, state);
  const FullInputs in(op, a, state);
  const Tensor y = at::empty(v.sizes(), v.options());
  with_element_type(v, [&]<typename E>(E) {
    ops::FullStep<E> p;
    in.fill<E>(p);
    p.y = rows_of<E>(y);
    p.state = state_of<ops::Accumulate<E>>(state);
    ops::full_step(p, torch_threads());
  });
  return y;
}

// Gradients of q, k, v, bias, u, w in the shapes and dtypes of what was given, then of the ring's keys and values.
FullGrads empty_gradients(const FullArguments& a, const OptionalTensor& bias, const OptionalTensor& u,
                          const OptionalTensor& w, TensorList state) {
  const auto like = [&](const Tensor& t) { return empty(t.sym_sizes(), t.options()); };
  const auto weights = [&](const OptionalTensor& t) {
    return t.has_value() && t->defined() ? like(*t) : at::empty({0}, a.v.options());
  };
  const auto ring = [&](size_t i) { return state.empty() ? at::empty({0}, a.v.options()) : like(state[i]); };
  return {a.gate == ops::Gate::kNone ? at::empty({0}, a.v.options()) : like(*a.q),
          like(a.k),
          like(a.v),
          weights(bias),
          weights(u),
          weights(w),
          ring(4),
          ring(5)};
}

FullGrads full_backward_cpu(const Tensor& grad_y, const OptionalTensor& grad_ring_key,
                            const OptionalTensor& grad_ring_value, const OptionalTensor& q, const Tensor& k,
                            const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u,
                            const OptionalTensor& w, TensorList state, const Tensor& saved, bool causal,
                            std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                            const OptionalTensor& cu_seqlens) {
  constexpr std::string_view op = "full_backward";
  const FullArguments a(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  const FullInputs in(op, a, state);
  check_dtype_device(op, "grad_y", grad_y, "v", v);
  if (grad_y.sym_sizes() != c10::SymIntArrayRef(a.y_shape())) {
    fail("aft::", op, ": grad_y must have the shape of y, ", c10::SymIntArrayRef(a.y_shape()), ", got ",
         sizes_of(grad_y), ": reshape it");
  }
  check_accumulated(op, "saved", saved, v);
  if (saved.numel() != ops::full_saved_size(in.shape, a.cu_seqlens.has_value())) {
    fail("aft::", op, ": saved must have ", ops::full_saved_size(in.shape, a.cu_seqlens.has_value()), " elements, got ",
         saved.numel(), ": pass what aft::full_forward gave");
  }
  FullGrads grads = empty_gradients(a, bias, u, w, state);
  auto& [grad_q, grad_k, grad_v, grad_bias, grad_u, grad_w, to_ring_key, to_ring_value] = grads;
  const Tensor gy = readable(grad_y);
  const Tensor kept = saved.contiguous();
  const at::TensorOptions options = accumulate_options(v);
  // In the accumulation type, dense, with all of its dimensions.
  const auto wide = [&](const Tensor& t) { return t.defined() ? at::empty(t.sizes(), options) : Tensor(); };
  const Tensor wide_bias = wide(in.bias);
  const Tensor wide_u = wide(in.u);
  const Tensor wide_w = wide(in.w);
  std::vector<Tensor> from_ring;
  for (const OptionalTensor* t : {&grad_ring_key, &grad_ring_value}) {
    from_ring.push_back(t->has_value() && (*t)->defined() && !state.empty() ? (*t)->contiguous() : Tensor());
  }
  with_element_type(v, [&]<typename E>(E) {
    using T = ops::Accumulate<E>;
    ops::FullBackward<E> p;
    in.fill<E>(p);
    in.fill_sequences(p);
    p.grad_y = rows_of<const E>(gy);
    if (a.gate != ops::Gate::kNone) p.grad_q = rows_of<E>(grad_q);
    p.grad_k = rows_of<E>(grad_k);
    p.grad_v = rows_of<E>(grad_v);
    p.grad_weights = FullInputs::weights_of<T>(wide_bias, wide_u, wide_w);
    p.initial_state = state_of<const T>(in.state);
    p.saved = static_cast<const T*>(kept.data_ptr());
    if (from_ring[0].defined()) p.grad_final_state.ring_key = static_cast<const T*>(from_ring[0].data_ptr());
    if (from_ring[1].defined()) p.grad_final_state.ring_value = static_cast<const T*>(from_ring[1].data_ptr());
    if (!state.empty()) {
      p.grad_initial_state.ring_key = static_cast<T*>(to_ring_key.data_ptr());
      p.grad_initial_state.ring_value = static_cast<T*>(to_ring_value.data_ptr());
    }
    ops::full_backward(p, torch_threads());
  });
  const auto narrow = [](Tensor& to, const Tensor& from) {
    if (from.defined()) to = from.reshape(to.sizes()).to(to.scalar_type());
  };
  narrow(grad_bias, wide_bias);
  narrow(grad_u, wide_u);
  narrow(grad_w, wide_w);
  return grads;
}

// ---- shapes without data

Tensor full_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                 const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate, int64_t heads,
                 const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  return empty(FullArguments("full", q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens).y_shape(),
               v.options());
}

YSavedState full_forward_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                              const OptionalTensor& u, const OptionalTensor& w, TensorList state, bool causal,
                              std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                              const OptionalTensor& cu_seqlens) {
  const FullArguments a("full_forward", q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  if (!state.empty()) a.check_state(state);
  return empty_results(a, state, true);
}

YAndState full_with_state_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                               const OptionalTensor& u, const OptionalTensor& w, TensorList state,
                               std::string_view gate, int64_t heads, const OptionalTensor& key_mask) {
  const FullArguments a("full_with_state", q, k, v, bias, u, w, true, gate, heads, key_mask, std::nullopt);
  a.check_state(state);
  auto [y, saved, position, max, den, num, ring_key, ring_value] = empty_results(a, state, false);
  return {y, position, max, den, num, ring_key, ring_value};
}

Tensor full_step_meta(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                      const OptionalTensor& u, const OptionalTensor& w, TensorList state, std::string_view gate,
                      int64_t heads) {
  const FullArguments a("full_step_", q, k, v, bias, u, w, true, gate, heads, std::nullopt, std::nullopt);
  a.check_state(state);
  check_step("full_step_", v, state);
  return empty(v.sym_sizes(), v.options());
}

FullGrads full_backward_meta(const Tensor& grad_y, const OptionalTensor& grad_ring_key,
                             const OptionalTensor& grad_ring_value, const OptionalTensor& q, const Tensor& k,
                             const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u,
                             const OptionalTensor& w, TensorList state, const Tensor& saved, bool causal,
                             std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                             const OptionalTensor& cu_seqlens) {
  (void)grad_ring_key, (void)grad_ring_value, (void)saved;
  constexpr std::string_view op = "full_backward";
  const FullArguments a(op, q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
  if (!state.empty()) a.check_state(state);
  check_dtype_device(op, "grad_y", grad_y, "v", v);
  return empty_gradients(a, bias, u, w, state);
}

// ---- gradients

// Of: q, k, v, bias, u, w, ring_key, ring_value. The state is absent where `stateful` is false.
struct Full : Function<Full> {
  static variable_list forward(AutogradContext* ctx, const OptionalTensor& q, const Tensor& k, const Tensor& v,
                               const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w,
                               const OptionalTensor& ring_key, const OptionalTensor& ring_value,
                               const std::vector<Tensor>& before_ring, bool causal, std::string_view gate,
                               int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
    const Below below;
    std::vector<Tensor> state = before_ring;  // position, max, den, num
    if (ring_key.has_value()) state.insert(state.end(), {*ring_key, *ring_value});
    auto [y, saved, position, max, den, num, key_after, value_after] =
        full_forward(q, k, v, bias, u, w, state, causal, gate, heads, key_mask, cu_seqlens);
    variable_list kept = {q.value_or(Tensor()),
                          k,
                          v,
                          bias.value_or(Tensor()),
                          u.value_or(Tensor()),
                          w.value_or(Tensor()),
                          key_mask.value_or(Tensor()),
                          cu_seqlens.value_or(Tensor()),
                          saved};
    kept.insert(kept.end(), state.begin(), state.end());
    ctx->save_for_backward(kept);
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["gate"] = std::string(gate);
    ctx->saved_data["heads"] = heads;
    if (state.empty()) return {y};
    ctx->mark_non_differentiable({position, max, den, num});
    return {y, position, max, den, num, key_after, value_after};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad) {
    const variable_list t = ctx->get_saved_variables();
    const bool stateful = t.size() > 9;
    auto [grad_q, grad_k, grad_v, grad_bias, grad_u, grad_w, grad_ring_key, grad_ring_value] =
        full_backward(grad[0], stateful ? present(grad[5]) : std::nullopt, stateful ? present(grad[6]) : std::nullopt,
                      present(t[0]), t[1], t[2], present(t[3]), present(t[4]), present(t[5]), TensorList(t).slice(9),
                      t[8], ctx->saved_data["causal"].toBool(), ctx->saved_data["gate"].toStringRef(),
                      ctx->saved_data["heads"].toInt(), present(t[6]), present(t[7]));
    const auto of = [](const Tensor& input, const Tensor& g) { return input.defined() ? g : Tensor(); };
    return {of(t[0], grad_q),
            grad_k,
            grad_v,
            of(t[3], grad_bias),
            of(t[4], grad_u),
            of(t[5], grad_w),
            stateful ? grad_ring_key : Tensor(),
            stateful ? grad_ring_value : Tensor(),
            {},
            {},
            {},
            {},
            {},
            {}};
  }
};

Tensor full_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                     const OptionalTensor& u, const OptionalTensor& w, bool causal, std::string_view gate,
                     int64_t heads, const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens) {
  if (gradient_needed(q, k, v, bias, u, w)) {
    return Full::apply(q, k, v, bias, u, w, OptionalTensor(), OptionalTensor(), std::vector<Tensor>(), causal, gate,
                       heads, key_mask, cu_seqlens)[0];
  }
  const Below below;
  return full(q, k, v, bias, u, w, causal, gate, heads, key_mask, cu_seqlens);
}

// A state of another length is left to the check below autograd.
YAndState full_with_state_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v,
                                   const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w,
                                   TensorList state, std::string_view gate, int64_t heads,
                                   const OptionalTensor& key_mask) {
  if (gradient_needed(q, k, v, bias, u, w, state) && state.size() == 6) {
    const variable_list r = Full::apply(q, k, v, bias, u, w, OptionalTensor(state[4]), OptionalTensor(state[5]),
                                        state.slice(0, 4).vec(), true, gate, heads, key_mask, OptionalTensor());
    return {r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
  }
  const Below below;
  return full_with_state(q, k, v, bias, u, w, state, gate, heads, key_mask);
}

YSavedState full_forward_autograd(const OptionalTensor& q, const Tensor& k, const Tensor& v, const OptionalTensor& bias,
                                  const OptionalTensor& u, const OptionalTensor& w, TensorList state, bool causal,
                                  std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                                  const OptionalTensor& cu_seqlens) {
  return without_derivative(
      "aft::full_forward has no derivative: call aft::full or aft::full_with_state",
      [&] { return full_forward(q, k, v, bias, u, w, state, causal, gate, heads, key_mask, cu_seqlens); }, q, k, v,
      bias, u, w, state);
}

FullGrads full_backward_autograd(const Tensor& grad_y, const OptionalTensor& grad_ring_key,
                                 const OptionalTensor& grad_ring_value, const OptionalTensor& q, const Tensor& k,
                                 const Tensor& v, const OptionalTensor& bias, const OptionalTensor& u,
                                 const OptionalTensor& w, TensorList state, const Tensor& saved, bool causal,
                                 std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                                 const OptionalTensor& cu_seqlens) {
  return without_derivative(
      kNoSecond,
      [&] {
        return full_backward(grad_y, grad_ring_key, grad_ring_value, q, k, v, bias, u, w, state, saved, causal, gate,
                             heads, key_mask, cu_seqlens);
      },
      grad_y, grad_ring_key, grad_ring_value, q, k, v, bias, u, w, state);
}

TORCH_LIBRARY_IMPL(aft, CPU, m) {
  m.impl("full", full_cpu);
  m.impl("full_forward", full_forward_cpu);
  m.impl("full_with_state", full_with_state_cpu);
  m.impl("full_step_", full_step_cpu);
  m.impl("full_backward", full_backward_cpu);
}

TORCH_LIBRARY_IMPL(aft, Meta, m) {
  m.impl("full", full_meta);
  m.impl("full_forward", full_forward_meta);
  m.impl("full_with_state", full_with_state_meta);
  m.impl("full_step_", full_step_meta);
  m.impl("full_backward", full_backward_meta);
}

TORCH_LIBRARY_IMPL(aft, Autograd, m) {
  m.impl("full", full_autograd);
  m.impl("full_forward", full_forward_autograd);
  m.impl("full_with_state", full_with_state_autograd);
  m.impl("full_backward", full_backward_autograd);
  m.impl("full_step_", torch::CppFunction::makeFromBoxedFunction<&in_place_autograd>());
}

}  // namespace
}  // namespace aft::dispatch

#include "arguments.h"

#include <ATen/OpMathType.h>

#include <array>
#include <initializer_list>

#include "version_check.h"

namespace aft::dispatch {

namespace {

void check_given(std::string_view op, std::string_view name, const Tensor& t) {
  if (!t.defined()) refuse(op, name, " must be a tensor, got none: pass one");
}

constexpr std::array<std::string_view, 6> kStateNames = {"state position", "state max",      "state den",
                                                         "state num",      "state ring_key", "state ring_value"};

}  // namespace

void check_floating(std::string_view op, std::string_view name, const Tensor& t, bool narrow) {
  check_given(op, name, t);
  const at::ScalarType type = t.scalar_type();
  if (type == at::kFloat || type == at::kDouble || (narrow && (type == at::kBFloat16 || type == at::kHalf))) return;
  refuse(op, name, " must be ", narrow ? "float32, float64, bfloat16 or float16" : "float32 or float64", ", got ", type,
         ": convert it with .to()");
}

void check_accumulated(std::string_view op, std::string_view name, const Tensor& t, const Tensor& v, bool or_like_v) {
  const at::ScalarType expected = at::toOpMathType(v.scalar_type());
  check_given(op, name, t);
  if (expected == v.scalar_type() || (or_like_v && t.scalar_type() == v.scalar_type())) {
    check_dtype_device(op, name, t, "v", v);
  } else if (t.scalar_type() != expected || t.device() != v.device()) {
    refuse(op, name, " must be ", expected, " on ", v.device(), ", since v is ", v.scalar_type(), ", got ",
           t.scalar_type(), " on ", t.device(), ": convert it with .to()");
  }
}

void check_dtype_device(std::string_view op, std::string_view name, const Tensor& t, std::string_view like_name,
                        const Tensor& like) {
  check_given(op, name, t);
  if (t.scalar_type() != like.scalar_type()) {
    refuse(op, name, " must have the dtype of ", like_name, ", ", like.scalar_type(), ", got ", t.scalar_type(),
           ": convert it with .to()");
  }
  if (t.device() != like.device()) {
    refuse(op, name, " must be on the device of ", like_name, ", ", like.device(), ", got ", t.device(),
           ": move it with .to()");
  }
}

ops::Gate gate_from_name(std::string_view op, std::string_view name) {
  if (name == "sigmoid") return ops::Gate::kSigmoid;
  if (name == "relu") return ops::Gate::kRelu;
  if (name == "none") return ops::Gate::kNone;
  refuse(op, "gate must be \"sigmoid\", \"relu\" or \"none\", got \"", name, "\": choose one of the three");
}

std::string_view name_of_gate(ops::Gate gate) {
  return gate == ops::Gate::kSigmoid ? "sigmoid" : gate == ops::Gate::kRelu ? "relu" : "none";
}

void check_same(std::string_view op, std::string_view name, const Tensor& t, std::string_view like_name,
                const Tensor& like) {
  check_dtype_device(op, name, t, like_name, like);
  if (t.sym_sizes() != like.sym_sizes()) {
    refuse(op, name, " must have the shape of ", like_name, ", ", sizes_of(like), ", got ", sizes_of(t),
           ": reshape it");
  }
}

void check_shape(std::string_view op, std::string_view name, const Tensor& t, c10::SymIntArrayRef expected,
                 const Tensor& v) {
  check_dtype_device(op, name, t, "v", v);
  if (t.sym_sizes() != expected) {
    refuse(op, name, " must have shape ", expected, ", got ", sizes_of(t), ": allocate it with that shape");
  }
}

bool has_query(std::string_view op, const OptionalTensor& q, ops::Gate gate) {
  const bool given = q.has_value() && q->defined();
  if (gate == ops::Gate::kNone && given) {
    refuse(op, "q must be absent with gate \"none\", got a tensor of shape ", sizes_of(*q),
           ": pass None, or another gate");
  }
  if (gate != ops::Gate::kNone && !given) {
    refuse(op, "q must be a tensor with gate \"", name_of_gate(gate), "\", got none: pass one, or gate=\"none\"");
  }
  return given;
}

ops::Gate check_call(std::string_view op, const Call& c, std::string_view shape, std::string_view remedy) {
  check_torch_version();
  const ops::Gate gate = gate_from_name(op, c.gate);
  check_floating(op, "v", c.v, /*narrow=*/true);
  if (c.v.dim() != 3) {
    refuse(op, "v must have three dimensions ", shape, ", got shape ", sizes_of(c.v), ": ", remedy);
  }
  check_key_mask(op, c.key_mask, c.v);
  (void)has_query(op, c.q, gate);
  return gate;
}

void check_heads(std::string_view op, const c10::SymInt& heads, const Tensor& v) {
  if (heads < 1 || v.sym_size(2) % heads != 0) {
    refuse(op, "the number of heads must divide the ", v.sym_size(2), " channels of v, got ", heads,
           ": change one of them");
  }
}

void check_keys(std::string_view op, const Tensor& k, const Tensor& v, const c10::SymInt& heads) {
  check_dtype_device(op, "k", k, "v", v);
  const bool rows = k.dim() == 3 && k.sym_size(0) == v.sym_size(0) && k.sym_size(1) == v.sym_size(1);
  if (rows && k.sym_size(2) == v.sym_size(2)) return;
  if (v.sym_size(2) == 0) {
    refuse(op, "k must have shape ", sizes_of(v), " like v, got ", sizes_of(k), ": no channel needs a key");
  }
  if (!rows || k.sym_size(2) != heads) {
    refuse(op, "k must have shape ", sizes_of(v), " like v, or [", v.sym_size(0), ", ", v.sym_size(1), ", ", heads,
           "] with one key per head, got ", sizes_of(k), ": reshape it, or change the number of heads");
  }
}

void check_key_mask(std::string_view op, const OptionalTensor& key_mask, const Tensor& v) {
  if (!key_mask.has_value()) return;
  if (key_mask->scalar_type() != at::kBool || key_mask->device() != v.device() || key_mask->dim() != 2 ||
      key_mask->sym_size(0) != v.sym_size(0) || key_mask->sym_size(1) != v.sym_size(1)) {
    refuse(op, "key_mask must be bool of shape [", v.sym_size(0), ", ", v.sym_size(1), "] on ", v.device(), ", got ",
           key_mask->scalar_type(), " of shape ", sizes_of(*key_mask), " on ", key_mask->device(),
           ": True where a source is there");
  }
}

void check_packing(std::string_view op, const OptionalTensor& cu_seqlens, const Tensor& v) {
  if (!cu_seqlens.has_value()) return;
  if (cu_seqlens->scalar_type() != at::kLong || cu_seqlens->device() != v.device() || cu_seqlens->dim() != 1 ||
      cu_seqlens->sym_size(0) < 1) {
    refuse(op, "cu_seqlens must be int64 of shape [sequences + 1] on ", v.device(), ", got ", cu_seqlens->scalar_type(),
           " of shape ", sizes_of(*cu_seqlens), " on ", cu_seqlens->device(),
           ": pass where each sequence begins, and the number of tokens");
  }
  if (v.sym_size(0) != 1) {
    refuse(op, "v must have shape [1, tokens, channels] with cu_seqlens, got ", sizes_of(v),
           ": put the sequences one after another");
  }
}

void check_state(std::string_view op, const c10::SymInt& rows, const c10::SymInt& key_channels, const c10::SymInt& ring,
                 const SequenceCall& c) {
  const TensorList state = c.state;
  const Tensor& v = c.v;
  if (!c.causal) refuse(op, "a state needs causal=True, got False: run the whole sequence at once");
  if (state.size() != 6) {
    refuse(op, "state must be the six tensors position, max, den, num, ring_key, ring_value, got ", state.size(),
           ": make it with aft::initial_state");
  }
  const Tensor& position = state[0];
  if (!position.defined() || position.scalar_type() != at::kLong || position.device() != v.device() ||
      position.dim() != 1 || position.sym_size(0) != rows) {
    refuse(op, "state position must be int64 of shape [", rows, "] on ", v.device(), ", got ",
           position.defined()
               ? c10::str(position.scalar_type(), " of shape ", sizes_of(position), " on ", position.device())
               : std::string("none"),
           ": make it with aft::initial_state");
  }
  const auto check = [&](size_t i, std::initializer_list<c10::SymInt> expected) {
    check_accumulated(op, kStateNames[i], state[i], v);
    if (state[i].sym_sizes() != c10::SymIntArrayRef(expected)) {
      refuse(op, kStateNames[i], " must have shape ", c10::SymIntArrayRef(expected), ", got ", sizes_of(state[i]),
             ": make it with aft::initial_state for the same k, v and left");
    }
  };
  const c10::SymInt channels = v.sym_size(2);
  check(1, {rows, key_channels});
  check(2, {rows, key_channels});
  check(3, {rows, channels});
  check(4, {rows, ring, key_channels});
  check(5, {rows, ring, channels});
}

void check_step(std::string_view op, const SequenceCall& c) {
  if (c.v.sym_size(1) != 1) {
    refuse(op, "v must hold one position, shape [batch, 1, channels], got ", sizes_of(c.v),
           ": use the form with_state for several");
  }
  for (const Tensor& t : c.state) {
    if (!t.is_contiguous()) {
      refuse(op, "the state is edited in place and must be contiguous, got strides ", t.sym_strides(),
             ": call .contiguous() on it first");
    }
  }
}

void check_reach(std::string_view op, std::string_view name, int64_t reach) {
  if (reach < 0 || reach > ops::kLongestReach) {
    refuse(op, name, " must be between 0 and 2^40, got ", reach, ": pass how many positions the window reaches");
  }
}

void check_state_gradients(std::string_view op, TensorList gradients, TensorList state, size_t count) {
  if (gradients.empty()) return;
  constexpr std::array<std::string_view, 4> kNames = {"grad_den", "grad_num", "grad_ring_key", "grad_ring_value"};
  if (state.empty()) refuse(op, "grad_state must be None without a state, got tensors: leave it out");
  if (gradients.size() != count) {
    refuse(op, "grad_state must be the gradients of the last ", count, " tensors of a state, got ", gradients.size(),
           ": pass those, or None");
  }
  for (size_t i = 6 - count; i < 6; ++i) {
    check_same(op, kNames[i - 2], gradients[i - 6 + count], kStateNames[i], state[i]);
  }
}

void check_saved(std::string_view op, const Tensor& saved, const c10::SymInt& size, const Tensor& v) {
  check_accumulated(op, "saved", saved, v);
  if (saved.sym_numel() != size) {
    refuse(op, "saved must have ", size, " elements, got ", saved.sym_numel(),
           ": pass what aft::", op.substr(0, op.rfind('_')), "_forward gave");
  }
}

}  // namespace aft::dispatch

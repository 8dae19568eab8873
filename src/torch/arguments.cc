#include "arguments.h"

#include <ATen/OpMathType.h>

#include <initializer_list>

namespace aft::dispatch {

std::string sizes_of(const at::Tensor& t) { return c10::str(t.sym_sizes()); }

void check_floating(std::string_view op, std::string_view name, const at::Tensor& t) {
  if (!t.defined()) fail("aft::", op, ": ", name, " must be a tensor, got none: pass one");
  if (t.scalar_type() != at::kFloat && t.scalar_type() != at::kDouble) {
    fail("aft::", op, ": ", name, " must be float32 or float64, got ", t.scalar_type(), ": convert it with .to()");
  }
}

void check_elements(std::string_view op, std::string_view name, const at::Tensor& t) {
  if (!t.defined()) fail("aft::", op, ": ", name, " must be a tensor, got none: pass one");
  if (t.scalar_type() != at::kFloat && t.scalar_type() != at::kDouble && t.scalar_type() != at::kBFloat16 &&
      t.scalar_type() != at::kHalf) {
    fail("aft::", op, ": ", name, " must be float32, float64, bfloat16 or float16, got ", t.scalar_type(),
         ": convert it with .to()");
  }
}

void check_accumulated(std::string_view op, std::string_view name, const at::Tensor& t, const at::Tensor& v) {
  const at::ScalarType expected = at::toOpMathType(v.scalar_type());
  if (expected == v.scalar_type()) {
    check_dtype_device(op, name, t, "v", v);
    return;
  }
  if (!t.defined()) fail("aft::", op, ": ", name, " must be a tensor, got none: pass one");
  if (t.scalar_type() != expected || t.device() != v.device()) {
    fail("aft::", op, ": ", name, " must be ", expected, " on ", v.device(), ", since v is ", v.scalar_type(), ", got ",
         t.scalar_type(), " on ", t.device(), ": convert it with .to()");
  }
}

void check_dtype_device(std::string_view op, std::string_view name, const at::Tensor& t, std::string_view like_name,
                        const at::Tensor& like) {
  if (!t.defined()) fail("aft::", op, ": ", name, " must be a tensor, got none: pass one");
  if (t.scalar_type() != like.scalar_type()) {
    fail("aft::", op, ": ", name, " must have the dtype of ", like_name, ", ", like.scalar_type(), ", got ",
         t.scalar_type(), ": convert it with .to()");
  }
  if (t.device() != like.device()) {
    fail("aft::", op, ": ", name, " must be on the device of ", like_name, ", ", like.device(), ", got ", t.device(),
         ": move it with .to()");
  }
}

void check_weights(std::string_view op, std::string_view name, const at::Tensor& t, const at::Tensor& v) {
  if (t.defined() && t.scalar_type() != v.scalar_type()) {
    check_accumulated(op, name, t, v);
  } else {
    check_dtype_device(op, name, t, "v", v);
  }
}

ops::Gate gate_from_name(std::string_view op, std::string_view name) {
  if (name == "sigmoid") return ops::Gate::kSigmoid;
  if (name == "relu") return ops::Gate::kRelu;
  if (name == "none") return ops::Gate::kNone;
  fail("aft::", op, ": gate must be \"sigmoid\", \"relu\" or \"none\", got \"", name, "\": choose one of the three");
}

std::string_view name_of_gate(ops::Gate gate) {
  return gate == ops::Gate::kSigmoid ? "sigmoid" : gate == ops::Gate::kRelu ? "relu" : "none";
}

void check_same(std::string_view op, std::string_view name, const at::Tensor& tensor, std::string_view like_name,
                const at::Tensor& like) {
  check_dtype_device(op, name, tensor, like_name, like);
  if (tensor.sym_sizes() != like.sym_sizes()) {
    fail("aft::", op, ": ", name, " must have the shape of ", like_name, ", ", sizes_of(like), ", got ",
         sizes_of(tensor), ": reshape it");
  }
}

void check_gradients(std::string_view op, const std::vector<GradientOutput>& outputs) {
  for (const GradientOutput& output : outputs) {
    const auto& [name, to, of_name, of, may_be_left_out] = output;
    if (to.defined() && !of.defined()) {
      fail("aft::", op, ": ", name, " must be None where ", of_name, " is, got a tensor: leave it out");
    }
    if (of.defined() && !to.defined() && !may_be_left_out) {
      fail("aft::", op, ": ", name, " must be a tensor where ", of_name, " is one, got None: pass one");
    }
    if (to.defined()) check_same(op, name, to, of_name, of);
  }
}

void check_shape(std::string_view op, std::string_view name, const at::Tensor& tensor, c10::SymIntArrayRef expected,
                 const at::Tensor& v) {
  check_dtype_device(op, name, tensor, "v", v);
  if (tensor.sym_sizes() != expected) {
    fail("aft::", op, ": ", name, " must have shape ", expected, ", got ", sizes_of(tensor),
         ": allocate it with that shape");
  }
}

void check_values(std::string_view op, const at::Tensor& v) {
  check_elements(op, "v", v);
  if (v.dim() != 3) {
    fail("aft::", op, ": v must have three dimensions [batch, time, channels], got shape ", sizes_of(v),
         ": add the missing ones with unsqueeze()");
  }
}

bool has_query(std::string_view op, const OptionalTensor& q, ops::Gate gate) {
  const bool given = q.has_value() && q->defined();
  if (gate == ops::Gate::kNone && given) {
    fail("aft::", op, ": q must be absent with gate \"none\", got a tensor of shape ", sizes_of(*q),
         ": pass None, or another gate");
  }
  if (gate != ops::Gate::kNone && !given) {
    fail("aft::", op, ": q must be a tensor with gate \"", name_of_gate(gate),
         "\", got none: pass one, or gate=\"none\"");
  }
  return given;
}

void check_heads(std::string_view op, const c10::SymInt& heads, const at::Tensor& v) {
  if (heads < 1 || v.sym_size(2) % heads != 0) {
    fail("aft::", op, ": the number of heads must divide the ", v.sym_size(2), " channels of v, got ", heads,
         ": change one of them");
  }
}

void check_keys(std::string_view op, const at::Tensor& k, const at::Tensor& v, const c10::SymInt& heads) {
  check_dtype_device(op, "k", k, "v", v);
  const bool rows = k.dim() == 3 && k.sym_size(0) == v.sym_size(0) && k.sym_size(1) == v.sym_size(1);
  if (rows && k.sym_size(2) == v.sym_size(2)) return;
  if (v.sym_size(2) == 0) {
    fail("aft::", op, ": k must have shape ", sizes_of(v), " like v, got ", sizes_of(k), ": no channel needs a key");
  }
  if (!rows || k.sym_size(2) != heads) {
    fail("aft::", op, ": k must have shape ", sizes_of(v), " like v, or [", v.sym_size(0), ", ", v.sym_size(1), ", ",
         heads, "] with one key per head, got ", sizes_of(k), ": reshape it, or change the number of heads");
  }
}

void check_key_mask(std::string_view op, const OptionalTensor& key_mask, const at::Tensor& v) {
  if (!key_mask.has_value()) return;
  if (key_mask->scalar_type() != at::kBool || key_mask->device() != v.device() || key_mask->dim() != 2 ||
      key_mask->sym_size(0) != v.sym_size(0) || key_mask->sym_size(1) != v.sym_size(1)) {
    fail("aft::", op, ": key_mask must be bool of shape [", v.sym_size(0), ", ", v.sym_size(1), "] on ", v.device(),
         ", got ", key_mask->scalar_type(), " of shape ", sizes_of(*key_mask), " on ", key_mask->device(),
         ": True where a source is there");
  }
}

void check_packing(std::string_view op, const OptionalTensor& cu_seqlens, const at::Tensor& v) {
  if (!cu_seqlens.has_value()) return;
  if (cu_seqlens->scalar_type() != at::kLong || cu_seqlens->device() != v.device() || cu_seqlens->dim() != 1 ||
      cu_seqlens->sym_size(0) < 1) {
    fail("aft::", op, ": cu_seqlens must be int64 of shape [sequences + 1] on ", v.device(), ", got ",
         cu_seqlens->scalar_type(), " of shape ", sizes_of(*cu_seqlens), " on ", cu_seqlens->device(),
         ": pass where each sequence begins, and the number of tokens");
  }
  if (v.sym_size(0) != 1) {
    fail("aft::", op, ": v must have shape [1, tokens, channels] with cu_seqlens, got ", sizes_of(v),
         ": put the sequences one after another");
  }
}

void check_state(std::string_view op, const c10::SymInt& rows, const c10::SymInt& key_channels, const c10::SymInt& ring,
                 const at::Tensor& v, at::TensorList state) {
  if (state.size() != 6) {
    fail("aft::", op, ": state must be the six tensors position, max, den, num, ring_key, ring_value, got ",
         state.size(), ": make it with aft::initial_state");
  }
  const at::Tensor& position = state[0];
  if (!position.defined() || position.scalar_type() != at::kLong || position.device() != v.device() ||
      position.dim() != 1 || position.sym_size(0) != rows) {
    fail("aft::", op, ": state position must be int64 of shape [", rows, "] on ", v.device(), ", got ",
         position.defined()
             ? c10::str(position.scalar_type(), " of shape ", sizes_of(position), " on ", position.device())
             : std::string("none"),
         ": make it with aft::initial_state");
  }
  const auto check = [&](size_t i, std::string_view name, std::initializer_list<c10::SymInt> expected) {
    check_accumulated(op, c10::str("state ", name), state[i], v);
    if (state[i].sym_sizes() != c10::SymIntArrayRef(expected)) {
      fail("aft::", op, ": state ", name, " must have shape ", c10::SymIntArrayRef(expected), ", got ",
           sizes_of(state[i]), ": make it with aft::initial_state for the same k, v and left");
    }
  };
  const c10::SymInt channels = v.sym_size(2);
  check(1, "max", {rows, key_channels});
  check(2, "den", {rows, key_channels});
  check(3, "num", {rows, channels});
  check(4, "ring_key", {rows, ring, key_channels});
  check(5, "ring_value", {rows, ring, channels});
}

void check_step(std::string_view op, const at::Tensor& v, at::TensorList state) {
  if (v.sym_size(1) != 1) {
    fail("aft::", op, ": v must hold one position, shape [batch, 1, channels], got ", sizes_of(v),
         ": use the form with_state for several");
  }
  for (const at::Tensor& t : state) {
    if (!t.is_contiguous()) {
      fail("aft::", op, ": the state is edited in place and must be contiguous, got strides ", t.sym_strides(),
           ": call .contiguous() on it first");
    }
  }
}

}  // namespace aft::dispatch

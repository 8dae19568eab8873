#include "full_arguments.h"

#include <string>

#include "version_check.h"

namespace aft::dispatch {
namespace {

OptionalTensor given(const OptionalTensor& t) { return t.has_value() && t->defined() ? t : std::nullopt; }

void check_targets(std::string_view op, const FullArguments& a) {
  check_dtype_device(op, "q", *a.q, "v", a.v);
  if (a.q->dim() != 3 || a.q->sym_size(0) != a.v.sym_size(0) || a.q->sym_size(2) != a.v.sym_size(2) ||
      (a.causal && a.q->sym_size(1) != a.v.sym_size(1))) {
    fail("aft::", op, ": q must have shape [", a.v.sym_size(0), ", ", a.causal ? "time of v" : "targets", ", ",
         a.v.sym_size(2), "], got ", sizes_of(*a.q), a.causal ? ": causal=False takes other lengths" : ": reshape it");
  }
}

// Gives the matrix all of its dimensions.
void check_matrix(std::string_view op, FullArguments& a) {
  OptionalTensor& bias = a.bias;
  check_weights(op, "bias", *bias, a.v);
  if (bias->dim() < 2 || bias->dim() > 4) {
    fail("aft::", op, ": bias must have shape [rows, columns], [heads, rows, columns] or [batch, heads, rows, ",
         "columns], got ", sizes_of(*bias), ": reshape it");
  }
  while (bias->dim() < 4) bias = bias->unsqueeze(0);
  const bool packed = a.cu_seqlens.has_value();
  if (bias->sym_size(0) != 1 && (bias->sym_size(0) != a.batch() || packed)) {
    fail("aft::", op, ": bias must have a batch of 1", packed ? " with cu_seqlens" : " or of v's, ",
         packed ? std::string() : c10::str(a.batch()), ", got ", bias->sym_size(0), ": share it or repeat it");
  }
}

// Gives the factors all of their dimensions.
void check_factors(std::string_view op, FullArguments& a) {
  for (OptionalTensor* factor : {&a.u, &a.w}) {
    const char* name = factor == &a.u ? "u" : "w";
    check_weights(op, name, **factor, a.v);
    if ((*factor)->dim() != 2 && (*factor)->dim() != 3) {
      fail("aft::", op, ": ", name, " must have shape [positions, width] or [heads, positions, width], got ",
           sizes_of(**factor), ": reshape it");
    }
    if ((*factor)->dim() == 2) *factor = (*factor)->unsqueeze(0);
  }
  if (a.u->sym_size(0) != a.w->sym_size(0) || a.u->sym_size(2) != a.w->sym_size(2)) {
    fail("aft::", op, ": w must have the heads and width of u, ", sizes_of(*a.u), ", got ", sizes_of(*a.w),
         ": make both alike");
  }
}

// And the heads, which the weights may say.
void check_pair_weights(std::string_view op, FullArguments& a) {
  const bool one_factor = a.u.has_value() != a.w.has_value();
  if (one_factor || a.bias.has_value() == a.u.has_value()) {
    fail("aft::", op, ": weights must be either bias or both factors u and w, got ",
         a.bias.has_value() ? "bias and factors"
         : one_factor       ? "one factor"
                            : "none",
         ": pass one of the two");
  }
  if (a.bias.has_value()) {
    check_matrix(op, a);
  } else {
    check_factors(op, a);
  }
  const c10::SymInt own_heads = a.bias.has_value() ? a.bias->sym_size(1) : a.u->sym_size(0);
  if (own_heads != 1) {
    if (a.heads != 1 && own_heads != a.heads) {
      fail("aft::", op, ": heads must be those of the weights, ", own_heads, ", or 1, got ", a.heads,
           ": drop the argument");
    }
    a.heads = own_heads;
  }
  check_heads(op, a.heads, a.v);
}

}  // namespace

c10::SymInt FullArguments::targets() const {
  if (gate != ops::Gate::kNone) return q->sym_size(1);
  if (causal || cu_seqlens.has_value()) return v.sym_size(1);
  return bias.has_value() ? bias->sym_size(2) : u->sym_size(1);
}

ops::FullShape FullArguments::shape(int64_t capacity) const {
  ops::FullShape s;
  s.batch = cu_seqlens.has_value() ? cu_seqlens->size(0) - 1 : v.size(0);
  s.targets = targets().guard_int(__FILE__, __LINE__);
  s.sources = v.size(1);
  s.channels = v.size(2);
  s.heads = heads.guard_int(__FILE__, __LINE__);
  s.key_channels = k.size(2);
  s.causal = causal;
  s.packed = cu_seqlens.has_value();
  s.gate = gate;
  s.capacity = capacity;
  return s;
}

FullArguments check_full(std::string_view op, const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                         const OptionalTensor& bias, const OptionalTensor& u, const OptionalTensor& w, bool causal,
                         std::string_view gate, int64_t heads, const OptionalTensor& key_mask,
                         const OptionalTensor& cu_seqlens) {
  check_torch_version();
  FullArguments a = {q,
                     k,
                     v,
                     given(bias),
                     given(u),
                     given(w),
                     causal,
                     gate_from_name(op, gate),
                     heads,
                     given(key_mask),
                     given(cu_seqlens)};
  check_values(op, v);
  if (has_query(op, q, a.gate)) check_targets(op, a);
  check_pair_weights(op, a);
  check_keys(op, k, v, a.heads);
  check_key_mask(op, a.key_mask, v);
  check_packing(op, a.cu_seqlens, v);
  return a;
}

void check_state(std::string_view op, const FullArguments& a, at::TensorList state) {
  if (!a.causal) fail("aft::", op, ": a state needs causal=True, got False: run the whole sequence at once");
  if (a.cu_seqlens.has_value()) fail("aft::", op, ": cu_seqlens must be absent with a state: drop one of the two");
  const bool has_ring = state.size() == 6 && state[4].defined() && state[4].dim() == 3;
  check_state(op, a.batch(), a.k.sym_size(2), has_ring ? state[4].sym_size(1) : c10::SymInt(0), a.v, state);
}

}  // namespace aft::dispatch

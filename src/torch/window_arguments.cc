#include "window_arguments.h"

#include "version_check.h"

namespace aft::dispatch {
namespace {

void check_reach(std::string_view op, std::string_view name, int64_t reach) {
  if (reach < 0 || reach > ops::kLongestReach) {
    fail("aft::", op, ": ", name, " must be between 0 and 2^40, got ", reach,
         ": pass how many positions the window reaches");
  }
}

}  // namespace

ops::WindowShape WindowSizes::shape() const {
  ops::WindowShape s;
  s.batch = sequences.guard_int(__FILE__, __LINE__);
  s.time = time.guard_int(__FILE__, __LINE__);
  s.channels = channels.guard_int(__FILE__, __LINE__);
  s.heads = heads.guard_int(__FILE__, __LINE__);
  s.key_channels = key_channels.guard_int(__FILE__, __LINE__);
  s.causal = causal;
  s.packed = packed;
  s.has_band = span > 0;
  s.left = left.guard_int(__FILE__, __LINE__);
  s.right = right.guard_int(__FILE__, __LINE__);
  s.gate = gate;
  return s;
}

ops::LocalBiasShape LocalBiasSizes::shape() const {
  return {heads.guard_int(__FILE__, __LINE__), rows.guard_int(__FILE__, __LINE__), width.guard_int(__FILE__, __LINE__),
          left, right};
}

WindowSizes check_window(std::string_view op, const OptionalTensor& q, const at::Tensor& k, const at::Tensor& v,
                         const OptionalTensor& band, bool causal, std::string_view gate, int64_t heads,
                         const OptionalTensor& key_mask, const OptionalTensor& cu_seqlens, std::string_view band_name) {
  check_torch_version();
  WindowSizes s;
  s.causal = causal;
  s.gate = gate_from_name(op, gate);
  check_values(op, v);
  s.batch = v.sym_size(0);
  s.time = v.sym_size(1);
  s.channels = v.sym_size(2);
  s.sequences = s.batch;
  const bool packed = s.packed = cu_seqlens.has_value();
  check_packing(op, cu_seqlens, v);
  if (packed) s.sequences = cu_seqlens->sym_size(0) - 1;
  check_key_mask(op, key_mask, v);
  if (has_query(op, q, s.gate)) check_same(op, "q", *q, "v", v);

  s.heads = heads;
  if (band.has_value()) {
    check_weights(op, band_name, *band, v);
    if (band->dim() != 2 && band->dim() != 3) {
      fail("aft::", op, ": ", band_name, " must have shape [heads, rows, J], or [heads, J] for one row, got ",
           sizes_of(*band), ": reshape it");
    }
    s.heads = band->sym_size(0);
    s.span = band->sym_size(-1);
    if (band->dim() == 3 && !packed && band->sym_size(1) < s.time) {
      fail("aft::", op, ": ", band_name, " must have a row for each of the ", s.time, " positions, got ",
           band->sym_size(1), " rows: shorten the sequence, or use a longer table");
    }
    if (s.span > 0) {
      if (!causal && s.span % 2 == 0) {
        fail("aft::", op, ": ", band_name, " must have an odd number of columns J = 2 s - 1 if causal is false, got ",
             s.span, ": reach as far to later positions as to earlier ones");
      }
      s.left = causal ? s.span - 1 : (s.span - 1) / 2;
      s.right = causal ? c10::SymInt(0) : s.left;
    }
  }
  check_heads(op, s.heads, v);
  check_keys(op, k, v, s.heads);
  s.key_channels = k.sym_size(2);
  return s;
}

void check_state(std::string_view op, const WindowSizes& s, const at::Tensor& v, at::TensorList state) {
  check_state(op, s.sequences, s.key_channels, s.left, v, state);
}

void check_state_gradients(std::string_view op, const at::Tensor& grad_den, const at::Tensor& grad_num,
                           const at::Tensor& grad_ring_key, const at::Tensor& grad_ring_value, at::TensorList state) {
  check_same(op, "grad_den", grad_den, "state den", state[2]);
  check_same(op, "grad_num", grad_num, "state num", state[3]);
  check_same(op, "grad_ring_key", grad_ring_key, "state ring_key", state[4]);
  check_same(op, "grad_ring_value", grad_ring_value, "state ring_value", state[5]);
}

std::vector<GradientOutput> window_gradients(std::string_view op, const OptionalTensor& q, const at::Tensor& k,
                                             const at::Tensor& v, const OptionalTensor& band,
                                             const OptionalTensor& grad_q, const at::Tensor& grad_k,
                                             const at::Tensor& grad_v, const OptionalTensor& grad_band) {
  std::vector<GradientOutput> outputs = {
      {"grad_q", grad_q.value_or(at::Tensor()), "q", q.value_or(at::Tensor())},
      {"grad_k", grad_k, "k", k},
      {"grad_v", grad_v, "v", v},
      {"grad_band", grad_band.value_or(at::Tensor()), "band", band.value_or(at::Tensor()), /*may_be_left_out=*/true}};
  check_gradients(op, outputs);
  return outputs;
}

WindowSizes check_initial_state(const at::Tensor& k, const at::Tensor& v, int64_t left) {
  check_torch_version();
  check_elements("initial_state", "v", v);
  check_dtype_device("initial_state", "k", k, "v", v);
  if (k.dim() != 3 || v.dim() != 3 || k.sym_size(0) != v.sym_size(0)) {
    fail("aft::initial_state: k and v must have shapes [batch, time, key channels] and [batch, time, channels], got ",
         sizes_of(k), " and ", sizes_of(v), ": pass what the operator will get");
  }
  check_reach("initial_state", "left", left);
  WindowSizes s;
  s.batch = s.sequences = v.sym_size(0);
  s.channels = v.sym_size(2);
  s.key_channels = k.sym_size(2);
  s.span = left;
  s.left = left;
  return s;
}

// The time becomes a number here, since the size goes with it in steps of the kernel's chunk; the batch stays a symbol.
//
// Packed sequences save sum floor((length - 1) / chunk) boundaries, never more than the floor((tokens - 1) / chunk) of
// one sequence of all tokens, which is a packing too. Fewer could be had only by looking into cu_seqlens, which shapes
// without data (Meta, torch.compile) do not have: the whole is 3 / 64 of a tensor at the most.
c10::SymInt saved_size(const WindowSizes& sizes) {
  WindowSizes one = sizes;
  one.sequences = 1;
  return sizes.batch * ops::window_saved_size(one.shape());
}

LocalBiasSizes check_local_bias(std::string_view op, const at::Tensor& u, const at::Tensor& v, int64_t left,
                                int64_t right) {
  check_torch_version();
  check_floating(op, "u", u);
  if (u.dim() != 2 && u.dim() != 3) {
    fail("aft::", op, ": u must have shape [rows, width] or [heads, rows, width], got ", sizes_of(u), ": reshape it");
  }
  check_same(op, "v", v, "u", u);
  check_reach(op, "left", left);
  check_reach(op, "right", right);
  return {u.dim() == 3 ? u.sym_size(0) : c10::SymInt(1), u.sym_size(-2), u.sym_size(-1), left, right};
}

std::vector<GradientOutput> local_bias_gradients(std::string_view op, const at::Tensor& u, const at::Tensor& v,
                                                 const at::Tensor& grad_u, const at::Tensor& grad_v) {
  std::vector<GradientOutput> outputs = {{"grad_u", grad_u, "u", u}, {"grad_v", grad_v, "v", v}};
  check_gradients(op, outputs);
  return outputs;
}

c10::SymDimVector local_bias_shape(const at::Tensor& u, int64_t left, int64_t right) {
  c10::SymDimVector shape(u.sym_sizes().begin(), u.sym_sizes().end());
  shape.back() = c10::SymInt(left) + 1 + right;
  return shape;
}

}  // namespace aft::dispatch

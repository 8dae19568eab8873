// The public names and schemas (docs/ops.md). `(a!)` marks what an operator writes.
//
// key_mask: bool [B, T], false leaves a source out. cu_seqlens: int64 [N + 1], packs N sequences into q, k, v
// [1, total, d]. A backward leaves out the gradient of what it is not asked for: with weights_gradient=False, or of the
// form .out where no tensor is given for it, that of the weights (band, kernel, bias, u, w).
//
// simple, local and conv1d are one windowed operator: they check their own arguments and call `window`, which alone has
// kernels and gradients (variants.cc).

#include <torch/library.h>

TORCH_LIBRARY(aft, m) {
  // AFT-simple.
  m.def(
      "simple(Tensor? q, Tensor k, Tensor v, *, bool causal=True, str gate=\"sigmoid\", int heads=1, "
      "Tensor? key_mask=None, Tensor? cu_seqlens=None) -> Tensor");
  m.def(
      "simple_with_state(Tensor? q, Tensor k, Tensor v, Tensor[] state, *, str gate=\"sigmoid\", int heads=1, "
      "Tensor? key_mask=None, Tensor? cu_seqlens=None) -> (Tensor y, Tensor position, Tensor max, Tensor den, "
      "Tensor num, Tensor ring_key, Tensor ring_value)");
  m.def(
      "simple_step_(Tensor? q, Tensor k, Tensor v, Tensor(a!)[] state, *, str gate=\"sigmoid\", int heads=1) -> "
      "Tensor");

  // AFT-local.
  m.def(
      "local(Tensor? q, Tensor k, Tensor v, Tensor bias, *, bool causal=True, str gate=\"sigmoid\", "
      "Tensor? key_mask=None, Tensor? cu_seqlens=None) -> Tensor");
  m.def(
      "local_with_state(Tensor? q, Tensor k, Tensor v, Tensor bias, Tensor[] state, *, str gate=\"sigmoid\", "
      "Tensor? key_mask=None, Tensor? cu_seqlens=None) -> (Tensor y, Tensor position, Tensor max, Tensor den, "
      "Tensor num, Tensor ring_key, Tensor ring_value)");
  m.def(
      "local_step_(Tensor? q, Tensor k, Tensor v, Tensor bias, Tensor(a!)[] state, *, str gate=\"sigmoid\") -> Tensor");

  // AFT-conv, 1-D.
  m.def(
      "conv1d(Tensor? q, Tensor k, Tensor v, Tensor kernel, *, bool causal=True, str gate=\"sigmoid\", "
      "Tensor? key_mask=None, Tensor? cu_seqlens=None) -> Tensor");
  m.def(
      "conv1d_with_state(Tensor? q, Tensor k, Tensor v, Tensor kernel, Tensor[] state, *, str gate=\"sigmoid\", "
      "Tensor? key_mask=None, Tensor? cu_seqlens=None) -> (Tensor y, Tensor position, Tensor max, Tensor den, "
      "Tensor num, Tensor ring_key, Tensor ring_value)");
  m.def(
      "conv1d_step_(Tensor? q, Tensor k, Tensor v, Tensor kernel, Tensor(a!)[] state, *, str gate=\"sigmoid\") -> "
      "Tensor");

  // AFT-conv, 2-D: the grid operator. grid: [height, width].
  m.def(
      "conv2d(Tensor? q, Tensor k, Tensor v, Tensor kernel, SymInt[2] grid, *, Tensor? key_mask=None, "
      "str gate=\"sigmoid\") -> Tensor");
  m.def(
      "conv2d.out(Tensor? q, Tensor k, Tensor v, Tensor kernel, SymInt[2] grid, *, Tensor? key_mask=None, "
      "str gate=\"sigmoid\", Tensor(a!) out) -> ()");
  m.def(
      "conv2d_backward(Tensor grad_y, Tensor? q, Tensor k, Tensor v, Tensor kernel, SymInt[2] grid, *, "
      "Tensor? key_mask=None, str gate=\"sigmoid\", bool weights_gradient=True) "
      "-> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_kernel)");
  m.def(
      "conv2d_backward.out(Tensor grad_y, Tensor? q, Tensor k, Tensor v, Tensor kernel, SymInt[2] grid, *, "
      "Tensor? key_mask=None, str gate=\"sigmoid\", Tensor(a!)? grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v, "
      "Tensor(d!)? grad_kernel) -> ()");

  // The windowed operator. band: [heads, rows, J], a row a position; [heads, J], one row for all; absent, no window.
  // heads counts where there is no band.
  m.def(
      "window(Tensor? q, Tensor k, Tensor v, Tensor? band=None, *, bool causal=True, str gate=\"sigmoid\", "
      "int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None) -> Tensor");
  m.def(
      "window.out(Tensor? q, Tensor k, Tensor v, Tensor? band=None, *, bool causal=True, str gate=\"sigmoid\", "
      "int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None, Tensor(a!) out) -> ()");
  m.def(
      "window_forward(Tensor? q, Tensor k, Tensor v, Tensor? band=None, *, bool causal=True, str gate=\"sigmoid\", "
      "int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None) -> (Tensor y, Tensor saved)");
  m.def(
      "window_backward(Tensor grad_y, Tensor? q, Tensor k, Tensor v, Tensor? band, Tensor saved, *, "
      "bool causal=True, str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None, "
      "bool weights_gradient=True) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_band)");
  m.def(
      "window_backward.out(Tensor grad_y, Tensor? q, Tensor k, Tensor v, Tensor? band, Tensor saved, *, "
      "bool causal=True, str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None, "
      "Tensor(a!)? grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v, Tensor(d!)? grad_band) -> ()");
  m.def(
      "window_with_state(Tensor? q, Tensor k, Tensor v, Tensor? band, Tensor[] state, *, str gate=\"sigmoid\", "
      "int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None) -> (Tensor y, Tensor position, Tensor max, "
      "Tensor den, Tensor num, Tensor ring_key, Tensor ring_value)");
  m.def(
      "window_step_(Tensor? q, Tensor k, Tensor v, Tensor? band, Tensor(a!)[] state, *, str gate=\"sigmoid\", "
      "int heads=1) -> Tensor");
  m.def(
      "window_with_state_forward(Tensor? q, Tensor k, Tensor v, Tensor? band, Tensor[] state, *, "
      "str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None) -> (Tensor y, "
      "Tensor position, Tensor max, Tensor den, Tensor num, Tensor ring_key, Tensor ring_value, Tensor saved)");
  m.def(
      "window_with_state_backward(Tensor grad_y, Tensor grad_den, Tensor grad_num, Tensor grad_ring_key, "
      "Tensor grad_ring_value, Tensor? q, Tensor k, Tensor v, Tensor? band, Tensor[] state, Tensor saved, *, "
      "str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None, bool weights_gradient=True) "
      "-> "
      "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_band, Tensor grad_den, Tensor grad_num, "
      "Tensor grad_ring_key, Tensor grad_ring_value)");

  // The neutral state for keys and values like k and v.
  m.def(
      "initial_state(Tensor k, Tensor v, int left=0) -> (Tensor position, Tensor max, Tensor den, Tensor num, "
      "Tensor ring_key, Tensor ring_value)");

  // Factors of AFT-local to the weights of its window.
  m.def("local_bias(Tensor u, Tensor v, int left, int right=0) -> Tensor");
  m.def("local_bias.out(Tensor u, Tensor v, int left, int right=0, *, Tensor(a!) out) -> ()");
  m.def(
      "local_bias_backward(Tensor grad_bias, Tensor u, Tensor v, int left, int right=0) -> (Tensor grad_u, "
      "Tensor grad_v)");
  m.def(
      "local_bias_backward.out(Tensor grad_bias, Tensor u, Tensor v, int left, int right=0, *, Tensor(a!) grad_u, "
      "Tensor(b!) grad_v) -> ()");

  // AFT-full. Weights: bias [rows, columns], with [heads,] or [batch, heads,] before; or factors u and w, [positions,
  // width], with [heads,] before: u w^T.
  m.def(
      "full(Tensor? q, Tensor k, Tensor v, Tensor? bias=None, Tensor? u=None, Tensor? w=None, *, bool causal=True, "
      "str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None) -> Tensor");
  m.def(
      "full.out(Tensor? q, Tensor k, Tensor v, Tensor? bias=None, Tensor? u=None, Tensor? w=None, *, "
      "bool causal=True, str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None, "
      "Tensor(a!) out) -> ()");
  m.def(
      "full_with_state(Tensor? q, Tensor k, Tensor v, Tensor? bias, Tensor? u, Tensor? w, Tensor[] state, *, "
      "str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None) -> (Tensor y, Tensor position, Tensor max, Tensor "
      "den, "
      "Tensor num, Tensor ring_key, Tensor ring_value)");
  m.def(
      "full_step_(Tensor? q, Tensor k, Tensor v, Tensor? bias, Tensor? u, Tensor? w, Tensor(a!)[] state, *, "
      "str gate=\"sigmoid\", int heads=1) -> Tensor");
  m.def(
      "full_forward(Tensor? q, Tensor k, Tensor v, Tensor? bias, Tensor? u, Tensor? w, Tensor[] state, *, "
      "bool causal=True, str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None) "
      "-> (Tensor y, Tensor saved, Tensor position, Tensor max, Tensor den, Tensor num, Tensor ring_key, "
      "Tensor ring_value)");
  m.def(
      "full_backward(Tensor grad_y, Tensor? grad_ring_key, Tensor? grad_ring_value, Tensor? q, Tensor k, Tensor v, "
      "Tensor? bias, Tensor? u, Tensor? w, Tensor[] state, Tensor saved, *, bool causal=True, str gate=\"sigmoid\", "
      "int heads=1, Tensor? key_mask=None, Tensor? cu_seqlens=None, bool weights_gradient=True) -> (Tensor grad_q, "
      "Tensor grad_k, Tensor grad_v, Tensor grad_bias, Tensor grad_u, Tensor grad_w, Tensor grad_ring_key, "
      "Tensor grad_ring_value)");

  // Without a state.
  m.def(
      "full_backward.out(Tensor grad_y, Tensor? q, Tensor k, Tensor v, Tensor? bias, Tensor? u, Tensor? w, "
      "Tensor saved, *, bool causal=True, str gate=\"sigmoid\", int heads=1, Tensor? key_mask=None, "
      "Tensor? cu_seqlens=None, Tensor(a!)? grad_q, Tensor(b!) grad_k, Tensor(c!) grad_v, Tensor(d!)? grad_bias, "
      "Tensor(e!)? grad_u, Tensor(f!)? grad_w) -> ()");

  // The family in plain torch operations, dense: w spreads over [batch, heads, Tq, Tk]; and w of a window
  // (reference.cc).
  m.def(
      "reference(Tensor? q, Tensor k, Tensor v, Tensor? w=None, *, bool causal=True, str gate=\"sigmoid\", "
      "int heads=1, Tensor? key_mask=None) -> Tensor");
  m.def("local_weights(Tensor bias, SymInt time, int left, int right=0) -> Tensor");
  m.def("conv2d_weights(Tensor kernel, SymInt[2] grid) -> Tensor");

  // (pairs redone exactly, pairs computed) by all operators since the process began.
  m.def("redo_count() -> (int redone, int total)");
}

// Backward of the windowed operator on a CUDA device: which of the two, and that without a band, AFT-simple. Cost and
// layout: README.md.
//
// With a[t] = gy gate / D and b[t] = a N/D:   dv[t'] = e^k sum_t a[t]    dk[t'] = v dv - e^k sum_t b[t].
// Everything of row t stands under the maximum M[t] of the running sums there: a and b are worth 2^-M. So the sums over
// later targets are running sums of terms with exponent -M, folded from right to left.

#include <cstdint>
#include <type_traits>

#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"
#include "ops/window/check.h"
#include "ops/window/cuda_backward_simple.cuh"
#include "ops/window/cuda_checks.h"

namespace aft::ops {
namespace window {
namespace {

template <typename E>
void backward_simple(const WindowBackward<E>& p, const Cuda& cuda) {
  const WindowShape& s = p.in.shape;
  if (s.channels == 0 || s.batch == 0) return;
  cuda::Workspace workspace(cuda.workspace);
  const BackwardMemory<E> memory(s, workspace);
  const Slots slots(s);
  const auto fits = [&](const auto& rows) { return moves_in_packs<kPack<E>>(s, rows); };
  const bool packs = fits(p.in.v) && fits(p.grad_y) && fits(p.grad_v) &&
                     (s.key_channels != s.channels || (fits(p.in.k) && fits(p.grad_k))) &&
                     (s.gate == Gate::kNone || (fits(p.in.q) && fits(p.grad_q)));
  const SimpleBackward<E> call = {p, slots, memory, cuda, packs};
  if (!s.causal) {
    with_pack<kPack<E>>(packs, [&]<int N>(std::integral_constant<int, N>) {
      cuda::launch(cuda, kBackwardName, slots.count * (s.channels / N), sum_chunks<E, N>, p.in, slots, int64_t{0},
                   memory.before.chunks);
    });
    fold_chunks(cuda, kBackwardName, p.in, slots, memory.before, false, memory.ends);
  }
  run_simple_targets(call);
  fold_targets(cuda, kBackwardName, p, slots, memory);
  run_simple_sources(call);
  const auto& initial = p.grad_initial_state;
  if (p.in.initial_state.position != nullptr && (initial.num != nullptr || initial.den != nullptr)) {
    cuda::launch(cuda, kBackwardName, s.batch * s.key_channels, write_initial<E>, p, memory.at_start);
  }
}

}  // namespace
}  // namespace window

template <typename E>
void window_backward(const WindowBackward<E>& p, const Cuda& cuda) {
  window::check_sizes(p);
  window::check_values(p.in, cuda);
  p.in.shape.has_band ? window::backward_band(p, cuda) : window::backward_simple(p, cuda);
}

#define AFT_INSTANTIATE(E) template void window_backward<E>(const WindowBackward<E>&, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

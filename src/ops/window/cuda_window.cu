// What every pass of the windowed operator needs on a CUDA device beside its kernels: checks, sizes, the neutral state.

#include <limits>

#include "aft/ops/window.h"
#include "ops/common/cuda/host_values.cuh"
#include "ops/common/for_each_element.h"
#include "ops/window/check.h"
#include "ops/window/cuda_checks.h"
#include "ops/window/cuda_memory.h"

namespace aft::ops {
namespace window {
namespace {

template <typename T>
__global__ void neutral_state(WindowShape s, State<T> state) {
  const int64_t i = cuda::thread_index();
  const auto fill = [i](auto* to, int64_t count, auto value) {
    if (i < count) to[i] = value;
  };
  fill(state.position, s.batch, int64_t{0});
  fill(state.max, s.batch * s.key_channels, std::numeric_limits<T>::lowest());
  fill(state.den, s.batch * s.key_channels, T(0));
  fill(state.num, s.batch * s.channels, T(0));
  fill(state.ring_key, s.batch * s.left * s.key_channels, T(0));
  fill(state.ring_value, s.batch * s.left * s.channels, T(0));
}

}  // namespace

template <typename E>
void check_values(WindowInputs<E> in, const Cuda& cuda) {
  cuda::with_values_on_host(in, cuda, [](const WindowInputs<E>& on_host) { check_values(on_host); });
}

#define AFT_INSTANTIATE(E) template void check_values<E>(WindowInputs<E>, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace window

template <typename E>
int64_t window_workspace(const WindowShape& s, Pass pass) {
  cuda::Workspace workspace(nullptr);
  if (s.batch == 0 || s.channels == 0) return 0;
  if (pass == Pass::kForward) {
    window::ForwardMemory<E>(s, pass, workspace);
  } else if (pass == Pass::kBackward && s.has_band) {
    window::BandBackwardMemory<E>(s, workspace);
  } else if (pass == Pass::kBackward) {
    window::BackwardMemory<E>(s, workspace);
  }
  return workspace.bytes();
}

template <typename T>
void window_state_init(const WindowShape& s, const State<T>& state, const Cuda& cuda) {
  const int64_t most = std::max({int64_t{1}, s.left}) * s.batch * std::max({int64_t{1}, s.channels, s.key_channels});
  cuda::launch(cuda, "window_state_init", most, window::neutral_state<T>, s, state);
}

#define AFT_INSTANTIATE(E) template int64_t window_workspace<E>(const WindowShape&, Pass);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE
template void window_state_init<float>(const WindowShape&, const State<float>&, const Cuda&);
template void window_state_init<double>(const WindowShape&, const State<double>&, const Cuda&);

}  // namespace aft::ops

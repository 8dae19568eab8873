// A build without CUDA has the same symbols: they throw.

#include "aft/error.h"
#include "aft/ops/full.h"
#include "aft/ops/grid.h"
#include "aft/ops/local_bias.h"
#include "aft/ops/window.h"
#include "ops/common/for_each_element.h"

namespace aft::ops {
namespace {

[[noreturn]] void fail(const char* operation) {
  throw Error(std::string(operation) +
              ": expected tensors on the CPU, since this library is built without CUDA, got tensors on a CUDA device; "
              "move them to the CPU, or build with -DAFT_CUDA=ON (cmake --preset cuda)");
}

}  // namespace

std::string cuda_architectures() { return ""; }
std::vector<std::string> cuda_devices() { return {}; }

template <typename E>
void window_forward(const WindowForward<E>&, const Cuda&) {
  fail("window_forward");
}
template <typename E>
void window_backward(const WindowBackward<E>&, const Cuda&) {
  fail("window_backward");
}
template <typename E>
void window_step(const WindowStep<E>&, const Cuda&) {
  fail("window_step");
}
template <typename E>
int64_t window_workspace(const WindowShape&, Pass) {
  fail("window_workspace");
}
template <typename T>
void window_state_init(const WindowShape&, const State<T>&, const Cuda&) {
  fail("window_state_init");
}
template <typename E>
void grid_forward(const GridForward<E>&, const Cuda&) {
  fail("grid_forward");
}
template <typename E>
void grid_backward(const GridBackward<E>&, const Cuda&) {
  fail("grid_backward");
}
template <typename E>
int64_t grid_workspace(const GridShape&, Pass) {
  fail("grid_workspace");
}
template <typename E>
void full_forward(const FullForward<E>&, const Cuda&) {
  fail("full_forward");
}
template <typename E>
void full_backward(const FullBackward<E>&, const Cuda&) {
  fail("full_backward");
}
template <typename E>
void full_step(const FullStep<E>&, const Cuda&) {
  fail("full_step");
}
template <typename E>
int64_t full_workspace(const FullShape&, Pass) {
  fail("full_workspace");
}
template <typename T>
void local_bias_forward(const LocalBiasForward<T>&, const Cuda&) {
  fail("local_bias_forward");
}
template <typename T>
void local_bias_backward(const LocalBiasBackward<T>&, const Cuda&) {
  fail("local_bias_backward");
}

#define AFT_INSTANTIATE(E)                                                 \
  template void window_forward<E>(const WindowForward<E>&, const Cuda&);   \
  template void window_backward<E>(const WindowBackward<E>&, const Cuda&); \
  template void window_step<E>(const WindowStep<E>&, const Cuda&);         \
  template int64_t window_workspace<E>(const WindowShape&, Pass);          \
  template void grid_forward<E>(const GridForward<E>&, const Cuda&);       \
  template void grid_backward<E>(const GridBackward<E>&, const Cuda&);     \
  template int64_t grid_workspace<E>(const GridShape&, Pass);              \
  template void full_forward<E>(const FullForward<E>&, const Cuda&);       \
  template void full_backward<E>(const FullBackward<E>&, const Cuda&);     \
  template void full_step<E>(const FullStep<E>&, const Cuda&);             \
  template int64_t full_workspace<E>(const FullShape&, Pass);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

#define AFT_INSTANTIATE(T)                                                              \
  template void window_state_init<T>(const WindowShape&, const State<T>&, const Cuda&); \
  template void local_bias_forward<T>(const LocalBiasForward<T>&, const Cuda&);         \
  template void local_bias_backward<T>(const LocalBiasBackward<T>&, const Cuda&);
AFT_INSTANTIATE(float)
AFT_INSTANTIATE(double)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

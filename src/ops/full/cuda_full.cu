// What every pass of the dense operator needs on a CUDA device beside its kernels: checks of values, sizes.

#include "aft/ops/full.h"
#include "ops/common/cuda/host_values.cuh"
#include "ops/common/for_each_element.h"
#include "ops/full/check.h"
#include "ops/full/cuda_call.cuh"

namespace aft::ops {
namespace full {

template <typename E>
void check_values(FullInputs<E> in, const Cuda& cuda) {
  cuda::with_values_on_host(in, cuda, [](const FullInputs<E>& on_host) { check_values(on_host); });
}

#define AFT_INSTANTIATE(E) template void check_values<E>(FullInputs<E>, const Cuda&);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace full

template <typename E>
int64_t full_workspace(const FullShape& s, Pass pass) {
  if (pass == Pass::kStep) return 0;
  cuda::Workspace workspace(nullptr);
  full::Memory<E>(s, pass, workspace);
  return workspace.bytes();
}

#define AFT_INSTANTIATE(E) template int64_t full_workspace<E>(const FullShape&, Pass);
AFT_FOR_EACH_ELEMENT(AFT_INSTANTIATE)
#undef AFT_INSTANTIATE

}  // namespace aft::ops

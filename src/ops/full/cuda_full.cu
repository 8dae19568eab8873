// What every pass of the dense operator needs on a CUDA device beside its kernels: checks of values, sizes.

#include <vector>

#include "aft/ops/full.h"
#include "ops/common/for_each_element.h"
#include "ops/full/check.h"
#include "ops/full/cuda_call.cuh"

namespace aft::ops {
namespace full {
namespace {

// A copy in the host's memory, for as long as `room` lives.
const int64_t* on_host(const int64_t* device, int64_t count, std::vector<int64_t>& room, const Cuda& cuda) {
  if (device == nullptr) return nullptr;
  room.resize(count);
  constexpr const char* kName = "check_values";
  cuda::check(
      cudaMemcpyAsync(room.data(), device, count * sizeof(int64_t), cudaMemcpyDeviceToHost, cuda::stream_of(cuda)),
      kName);
  cuda::check(cudaStreamSynchronize(cuda::stream_of(cuda)), kName);
  return room.data();
}

}  // namespace

template <typename E>
void check_values(FullInputs<E> in, const Cuda& cuda) {
  if (!cuda.check_values) return;
  std::vector<int64_t> lengths, positions;
  in.cu_seqlens = on_host(in.cu_seqlens, in.shape.batch + 1, lengths, cuda);
  in.initial_state.position = on_host(in.initial_state.position, in.shape.batch, positions, cuda);
  check_values(in);
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

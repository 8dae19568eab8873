#pragma once

// Values that a check reads, brought to the host.

#include <vector>

#include "ops/common/cuda/launch.cuh"

namespace aft::ops::cuda {

/// Where the caller asks for it (Cuda::check_values), calls check(inputs) with positions and cu_seqlens in the host's
/// memory. That waits for the stream.
template <typename Inputs, typename Check>
void with_values_on_host(Inputs in, const Cuda& cuda, const Check& check_values) {
  if (!cuda.check_values) return;
  const auto on_host = [&](const int64_t* device, int64_t count, std::vector<int64_t>& room) {
    constexpr const char* kName = "check_values";
    room.resize(count);
    check(cudaMemcpyAsync(room.data(), device, count * sizeof(int64_t), cudaMemcpyDeviceToHost, stream_of(cuda)),
          kName);
    check(cudaStreamSynchronize(stream_of(cuda)), kName);
    return static_cast<const int64_t*>(room.data());
  };
  std::vector<int64_t> lengths, positions;
  const int64_t*& position = in.initial_state.position;
  if (in.cu_seqlens != nullptr) in.cu_seqlens = on_host(in.cu_seqlens, in.shape.batch + 1, lengths);
  if (position != nullptr) position = on_host(position, in.shape.batch, positions);
  check_values(in);
}

}  // namespace aft::ops::cuda

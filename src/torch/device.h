#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>

#include "aft/ops/device.h"

// Where operators run: the last argument of aft/ops, from LibTorch's threads, streams and memory.

namespace aft::dispatch {

/// LibTorch's own threads (at::set_num_threads, torch.set_num_threads), and the counts of redo_count().
ops::Cpu cpu_device();

/// A CUDA device's current stream, memory for one call, and the counts of redo_count(); for as long as this lives.
class CudaDevice {
 public:
  CudaDevice(c10::Device device, int64_t workspace_bytes);
  [[nodiscard]] const ops::Cuda& get() const { return cuda_; }

 private:
  c10::DeviceGuard guard_;
  at::Tensor workspace_;
  ops::Cuda cuda_;
};

/// Throws where the operators are built without CUDA.
void require_cuda(c10::Device device);

/// Of all operators on all devices since the process began.
ops::RedoCount redo_count();

/// Calls run(device) with that of `t`. workspace() says how many bytes the pass takes on CUDA.
template <typename Workspace, typename Run>
void on_device(const at::Tensor& t, const Workspace& workspace, const Run& run) {
  if (t.is_cpu()) {
    run(cpu_device());
  } else {
    require_cuda(t.device());
    run(CudaDevice(t.device(), workspace()).get());
  }
}

}  // namespace aft::dispatch

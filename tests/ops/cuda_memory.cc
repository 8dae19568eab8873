// The backend `cuda`: memory of the current device.

#include <cuda_runtime.h>

#include <stdexcept>

#include "tests/ops/backend.h"

namespace aft::ops::test {
namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

class CudaMemory : public DeviceMemory {
 public:
  void* allocate(size_t bytes) override {
    void* device = nullptr;
    check(cudaMalloc(&device, bytes > 0 ? bytes : 1));
    return device;
  }
  void release(void* device) override { (void)cudaFree(device); }
  void copy_in(void* device, const void* host, size_t bytes) override {
    check(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
  }
  void copy_out(void* host, const void* device, size_t bytes) override {
    check(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
  }
};

}  // namespace

DeviceMemory* cuda_memory() {
  static CudaMemory memory;
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess && devices > 0 ? &memory : nullptr;
}

}  // namespace aft::ops::test

// What there is on the CUDA side: devices, architectures compiled, and what is said where the two do not meet.

#include "aft/error.h"
#include "aft/ops/device.h"
#include "ops/common/cuda/failure.h"

namespace aft::ops {
namespace {

int capability_of(const cudaDeviceProp& device) { return 10 * device.major + device.minor; }

std::string name_of(const cudaDeviceProp& device) {
  return std::string(device.name) + " (" + std::to_string(capability_of(device)) + ")";
}

}  // namespace

std::string cuda_architectures() { return AFT_CUDA_ARCHITECTURES; }

std::vector<std::string> cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return {};  // no driver, or no device
  std::vector<std::string> names;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp device;
    names.push_back(cudaGetDeviceProperties(&device, i) == cudaSuccess ? name_of(device) : "unknown");
  }
  return names;
}

namespace cuda {

std::string not_compiled_for(const std::string& device, int capability) {
  return "expected a GPU that the CUDA kernels are compiled for (" + cuda_architectures() + "), got " + device +
         "; build with -DAFT_CUDA_ARCHITECTURES=" + std::to_string(capability) + ", or move the tensors to the CPU";
}

void fail(cudaError_t status, const char* what) {
  const bool no_kernel = status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction ||
                         status == cudaErrorUnsupportedPtxVersion;
  int current = 0;
  cudaDeviceProp device;
  if (no_kernel && cudaGetDevice(&current) == cudaSuccess && cudaGetDeviceProperties(&device, current) == cudaSuccess) {
    throw Error(std::string(what) + ": " + not_compiled_for(name_of(device), capability_of(device)));
  }
  throw Error(std::string(what) + ": CUDA says " + cudaGetErrorString(status));
}

}  // namespace cuda
}  // namespace aft::ops

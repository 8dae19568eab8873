#pragma once

#include <cuda_runtime.h>

#include <string>

namespace aft::ops::cuda {

/// Throws aft::Error for what CUDA said when `what` was called; names the GPU where no kernel was compiled for it.
[[noreturn]] void fail(cudaError_t status, const char* what);

/// What it says then. device: as cuda_devices() names it; capability: such as 90.
std::string not_compiled_for(const std::string& device, int capability);

}  // namespace aft::ops::cuda

#pragma once

#include <c10/core/Device.h>

#include <filesystem>

namespace aft {

/// From here on LibTorch records its operators and, on CUDA, the kernels that they start.
void begin_profile(c10::Device device);

/// Ends that and writes it as a trace, JSON for chrome://tracing or Perfetto. Throws aft::SystemError.
void write_profile(const std::filesystem::path& file);

}  // namespace aft

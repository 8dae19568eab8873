#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "aft/ops/parallel.h"

// Where an operator runs: the last argument of every pass. What is the same on every device is in the params struct
// before it.

namespace aft::ops {

/// The certified fast path of a kernel factors e^(k+w); what fails its certificate is redone exactly. Counted in (row,
/// channel) pairs.
struct RedoCount {
  int64_t redone = 0;
  int64_t total = 0;  // pairs computed
};

/// On the caller's threads. `redone`, where not null, is added to once for every part of a call, atomically: calls on
/// several threads may share one.
struct Cpu {
  ParallelFor parallel = {};
  RedoCount* redone = nullptr;
};

/// Whether calls on a CUDA device check values (Cuda::check_values) if they do not say: true if the environment
/// variable AFT_CHECK_VALUES is set, and not to 0 or nothing.
bool check_values_by_default();

/// On a CUDA device, whose memory all pointers are of. A call neither synchronises nor allocates, and reads no device
/// memory from the host. Without CUDA in the build every such call throws aft::Error.
struct Cuda {
  void* stream = nullptr;     // cudaStream_t; null: the default stream
  void* workspace = nullptr;  // as many bytes as *_workspace() says, on the device, aligned to 256; for this call alone
  int64_t* redone = nullptr;  // two counters on the device, those of RedoCount, or null: not wanted
  /// For debugging: positions and cu_seqlens are read back and checked as on the CPU, which synchronises. Without it a
  /// row past the end of a table is NaN; nothing else is touched and nothing out of bounds is read.
  bool check_values = check_values_by_default();
};

/// The GPUs that this library's CUDA kernels are compiled for, by compute capability: "80, 90, PTX 90", where PTX is
/// what later GPUs compile from. Empty: built without CUDA.
std::string cuda_architectures();

/// The CUDA devices here, in their order, with their compute capability: "NVIDIA H200 (90)". Empty without CUDA.
std::vector<std::string> cuda_devices();

/// The SIMD targets of the CPU kernels by Highway's names: all compiled ones, best first, and the one used here.
struct SimdTargets {
  std::string chosen;
  std::vector<std::string> compiled;
};
SimdTargets simd_targets();

/// The passes of an operator, for the size of their workspaces.
enum class Pass : int32_t { kForward, kBackward, kStep };

}  // namespace aft::ops

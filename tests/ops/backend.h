#pragma once

#include <hwy/targets.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace aft::ops::test {

/// Memory of a device, where its kernels cannot use the host's.
class DeviceMemory {
 public:
  virtual ~DeviceMemory() = default;
  virtual void* allocate(size_t bytes) = 0;  // aligned to 256
  virtual void release(void* device) = 0;
  virtual void copy_in(void* device, const void* host, size_t bytes) = 0;
  /// After all calls before it have ended.
  virtual void copy_out(void* host, const void* device, size_t bytes) = 0;
};

/// Where kernels run. Within a backend a result is the same bits however a call is cut, threaded or aligned; between
/// two of them only the error rule holds, each judged against the truth.
struct Backend {
  std::string name;                // pools of errors carry it
  int64_t target = 0;              // SIMD target that the CPU's kernels run as; 0: as the library chooses
  bool cuda = false;               // kernels are called with Cuda, not Cpu
  DeviceMemory* memory = nullptr;  // null: kernels work on the host's memory
};

/// Of the current CUDA device; null where there is none. Only in a build with CUDA.
DeviceMemory* cuda_memory();

/// Those of this machine, the usual one first: every SIMD target, and a CUDA device. Every case of the error rule runs
/// through all of them, what holds bit for bit through the first. AFT_TEST_BACKEND=NAME leaves that one alone.
const std::vector<Backend>& backends();

/// The one that runs are on where they do not say: the first, or that of the innermost scope.
const Backend& current_backend();
class BackendScope {
 public:
  explicit BackendScope(const Backend& backend);
  ~BackendScope();
  BackendScope(const BackendScope&) = delete;

 private:
  const Backend* before_;
};

/// The CPU's kernels run as `target` while this lives; 0: as they are.
class TargetScope {
 public:
  explicit TargetScope(int64_t target) : set_(target != 0) {
    if (set_) hwy::SetSupportedTargetsForTest(target);
  }
  ~TargetScope() {
    if (set_) hwy::SetSupportedTargetsForTest(0);
  }
  TargetScope(const TargetScope&) = delete;

 private:
  bool set_;
};

}  // namespace aft::ops::test

// Compiled with -fopenmp, alone: see CMakeLists.txt.

#include "device.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <atomic>
#include <map>
#include <mutex>

#include "aft/error.h"
#include "one_copy.h"

#ifndef _OPENMP
#error "device.cc needs -fopenmp: without it at::parallel_for runs on one thread"
#endif

namespace aft {
namespace dispatch {
namespace {

ops::RedoCount cpu_count;

// Two counters on every CUDA device that was used. Never destroyed: the devices may be gone by then. A CUDA graph whose
// capture was a device's first call sets them to 0 at every replay: PyTorch asks for a call before capture.
struct CudaCounts {
  std::mutex mutex;
  std::map<c10::DeviceIndex, at::Tensor> of;
};
CudaCounts& cuda_counts() {
  static auto* counts = new CudaCounts;
  return *counts;
}

int64_t* cuda_count(c10::Device device) {
  CudaCounts& counts = cuda_counts();
  const std::lock_guard lock(counts.mutex);
  at::Tensor& count = counts.of[device.index()];
  if (!count.defined()) count = at::zeros({2}, at::device(device).dtype(at::kLong));
  return count.data_ptr<int64_t>();
}

}  // namespace

ops::Cpu cpu_device() {
  const auto run = [](int64_t count, const std::function<void(int64_t)>& body) {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  };
  return {{at::get_num_threads(), run}, &cpu_count};
}

CudaDevice::CudaDevice(c10::Device device, int64_t workspace_bytes)
    : guard_(device), workspace_(at::empty({workspace_bytes}, at::device(device).dtype(at::kByte))) {
  cuda_.stream = c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
  cuda_.workspace = workspace_.data_ptr();
  cuda_.redone = cuda_count(device);
}

void require_cuda(c10::Device device) {
  static const bool built = !ops::cuda_architectures().empty();
  if (built) return;
  throw Error("aft: expected tensors on the CPU, since libaft_torch.so is built without CUDA, got tensors on " +
              device.str() + "; move them to the CPU, or build with -DAFT_CUDA=ON (cmake --preset cuda)");
}

ops::RedoCount redo_count() {
  ops::RedoCount sum{std::atomic_ref(cpu_count.redone).load(), std::atomic_ref(cpu_count.total).load()};
  CudaCounts& counts = cuda_counts();
  const std::lock_guard lock(counts.mutex);
  for (const auto& [index, count] : counts.of) {
    c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).synchronizeDevice(index);  // any stream may still count
    const at::Tensor read = count.cpu();
    sum.redone += read.data_ptr<int64_t>()[0];
    sum.total += read.data_ptr<int64_t>()[1];
  }
  return sum;
}

namespace {

AFT_REGISTER(m) {
  // These take no tensor, so no device decides.
  m.def("redo_count() -> (int redone, int total)", [] {
    const ops::RedoCount count = redo_count();
    return std::tuple(count.redone, count.total);
  });
  m.def("cuda_architectures() -> str", [] { return ops::cuda_architectures(); });
  m.def("cuda_devices() -> str[]", [] { return ops::cuda_devices(); });
  m.def("simd_targets() -> (str chosen, str[] compiled)", [] {
    const ops::SimdTargets targets = ops::simd_targets();
    return std::tuple(targets.chosen, targets.compiled);
  });
}

}  // namespace
}  // namespace dispatch

ops::RedoCount redo_count() { return dispatch::redo_count(); }

}  // namespace aft

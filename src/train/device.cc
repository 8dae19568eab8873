#include "train/device.h"

#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <link.h>
#include <torch/types.h>
#include <torch/version.h>

#include <cstdlib>
#include <filesystem>

#include "aft/error.h"
#include "aft/torch.h"
#include "train/device_name.h"

namespace aft {
namespace {

std::filesystem::path torch_folder() {
  void* const c10 = dlopen("libc10.so", RTLD_LAZY | RTLD_NOLOAD);
  const link_map* loaded = nullptr;
  if (c10 == nullptr || dlinfo(c10, RTLD_DI_LINKMAP, &loaded) != 0) return {};
  return std::filesystem::path(loaded->l_name).parent_path();
}

/// LibTorch's CUDA part is a library of its own, which the program does not name: it takes a second to load, and a
/// build of LibTorch without CUDA has none. Nothing, or why it is not there.
std::string load_cuda() {
  if (c10::impl::hasDeviceGuardImpl(c10::kCUDA)) return "";
  const auto library = torch_folder() / "libtorch_cuda.so";
  std::error_code error;
  if (!std::filesystem::exists(library, error)) {
    return "LibTorch " TORCH_VERSION " in " + library.parent_path().string() + " is built without CUDA";
  }
  if (dlopen(library.c_str(), RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    return "LibTorch's CUDA library cannot be loaded: " + std::string(dlerror());
  }
  return c10::impl::hasDeviceGuardImpl(c10::kCUDA) ? "" : library.string() + " brings no CUDA devices";
}

}  // namespace

c10::Device find_device(const std::string& key, const std::string& name) {
  const std::optional<int8_t> index = cuda_index(key, name);
  if (!index) return c10::kCPU;
  const auto refuse = [&](const std::string& expected, const std::string& why, const std::string& remedy) {
    throw Error(key + ": expected " + expected + ", as " + why + ", got " + name + "; " + remedy);
  };
  // cuBLAS reads this when it is first used; without it its results may differ between two runs.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", 0);
  if (const std::string why = load_cuda(); !why.empty()) {
    refuse("cpu", why, "set cpu, or build aft with a LibTorch that has CUDA");
  }
  const int count = c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount();
  if (count == 0) {
    refuse("cpu", "this process sees no CUDA device",
           "set cpu, or see what nvidia-smi and the variable CUDA_VISIBLE_DEVICES say");
  }
  if (*index >= count) {
    refuse(count == 1 ? "cpu or cuda:0" : "cpu or cuda:0 to cuda:" + std::to_string(count - 1),
           "this process sees " + std::to_string(count) + (count == 1 ? " CUDA device" : " CUDA devices"),
           "set one of them, or see what nvidia-smi and the variable CUDA_VISIBLE_DEVICES say");
  }
  const c10::Device device(c10::kCUDA, *index);
  try {
    initial_state(1, 1, 1, 0, torch::TensorOptions(torch::kFloat32).device(device));  // the least that runs a kernel
  } catch (const Error& problem) {
    refuse("cpu", std::string("aft's operators do not run on that device (") + problem.what() + ")",
           "set cpu, or build aft for the device: cmake --preset cuda");
  }
  // Not to warn only: attention then takes the faster gradient, which adds in any order.
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  return device;
}

std::optional<int64_t> peak_bytes(c10::Device device) {
  if (device.is_cpu()) return std::nullopt;
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

Autocast::Autocast(c10::Device device, bool on) : type_(device.type()), on_(on) {
  if (!on_) return;
  at::autocast::increment_nesting();
  at::autocast::set_autocast_dtype(type_, torch::kBFloat16);
  at::autocast::set_autocast_enabled(type_, true);
}

Autocast::~Autocast() {
  if (!on_) return;
  at::autocast::set_autocast_enabled(type_, false);
  if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
}

}  // namespace aft

#pragma once

#include <c10/core/Device.h>

#include <optional>
#include <string>

namespace aft {

/// The device that `name` names, ready to compute: "cpu", "cuda" or "cuda:N". Throws aft::Error, which names `key`, for
/// a device that is not there or that this build does not run on. On CUDA LibTorch is made to choose algorithms that
/// give the same bits every time, and to throw where it has none.
c10::Device find_device(const std::string& key, const std::string& name);

/// Most bytes of tensors on the device at one time since the process began; nothing for the CPU.
std::optional<int64_t> peak_bytes(c10::Device device);

/// While this lives, the calling thread computes in bf16 what autocast takes for safe, from f32 weights. If not `on`,
/// nothing changes.
class Autocast {
 public:
  Autocast(c10::Device device, bool on);
  ~Autocast();
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  c10::DeviceType type_;
  bool on_;
};

}  // namespace aft

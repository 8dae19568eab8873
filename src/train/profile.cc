#include "train/profile.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

#include "aft/error.h"

namespace aft {

void begin_profile(c10::Device device) {
  using torch::profiler::impl::ActivityType;
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  std::set<ActivityType> activities = {ActivityType::CPU};
  if (device.is_cuda()) activities.insert(ActivityType::CUDA);
  torch::autograd::profiler::prepareProfiler(config, activities);
  torch::autograd::profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION});
}

void write_profile(const std::filesystem::path& file) {
  torch::autograd::profiler::disableProfiler()->save(file.string());
  // LibTorch does not say whether it could.
  std::error_code error;
  if (std::filesystem::file_size(file, error) == 0 || error) {
    throw SystemError("--profile: " + file.string() + " could not be written");
  }
}

}  // namespace aft

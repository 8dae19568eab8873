#include "runtime/allowed_cpus.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <thread>

namespace aft {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kNoQuota = std::numeric_limits<int64_t>::max();

int64_t affinity() {
  for (int cpus = 1024; cpus <= (1 << 20); cpus *= 2) {  // the kernel refuses a mask that is too short for it
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(cpus), [](cpu_set_t* s) { CPU_FREE(s); });
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    if (set && ::sched_getaffinity(0, bytes, set.get()) == 0) return CPU_COUNT_S(bytes, set.get());
    if (errno != EINVAL) break;
  }
  return std::max(1U, std::thread::hardware_concurrency());
}

/// What one file of a control group says: "QUOTA PERIOD" (v2) or "QUOTA" (v1, the period in a file beside it). "max",
/// -1 and a missing file mean no quota.
int64_t whole_cpus(std::optional<double> quota, std::optional<double> period) {
  if (!quota || !period || *quota <= 0 || *period <= 0) return kNoQuota;
  return std::max<int64_t>(1, static_cast<int64_t>(std::min(*quota / *period, 1e9)));
}

std::optional<double> number(std::istream& stream) {
  double value = 0;
  if (stream >> value) return value;
  return std::nullopt;
}

int64_t group_quota(const fs::path& folder) {
  std::ifstream both(folder / "cpu.max");
  const auto quota = number(both);
  if (quota) return whole_cpus(quota, number(both));
  std::ifstream first(folder / "cpu.cfs_quota_us");
  std::ifstream second(folder / "cpu.cfs_period_us");
  const auto old_quota = number(first);
  return whole_cpus(old_quota, number(second));
}

/// The least of a group and the groups around it. A path that is not there (seen from inside a container) has only its
/// root left.
int64_t path_quota(const fs::path& hierarchy, fs::path group) {
  int64_t least = group_quota(hierarchy);
  for (; group.has_relative_path(); group = group.parent_path()) {
    least = std::min(least, group_quota(hierarchy / group.relative_path()));
  }
  return least;
}

}  // namespace

int64_t cpu_quota(const fs::path& root) {
  int64_t least = kNoQuota;
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // NUMBER:CONTROLLERS:PATH, v2: 0::PATH
    std::istringstream fields(line);
    std::string controllers;
    std::string path;
    std::getline(fields, controllers, ':');
    std::getline(fields, controllers, ':');
    std::getline(fields, path);
    if (controllers.empty()) least = std::min(least, path_quota(root / "sys/fs/cgroup", path));
    if ((',' + controllers + ',').find(",cpu,") != std::string::npos) {
      for (const std::string& name : {controllers, std::string("cpu")}) {
        least = std::min(least, path_quota(root / "sys/fs/cgroup" / name, path));
      }
    }
  }
  return least;
}

int64_t allowed_cpus() { return std::max<int64_t>(1, std::min(affinity(), cpu_quota("/"))); }

}  // namespace aft

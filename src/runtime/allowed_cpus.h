#pragma once

#include <cstdint>
#include <filesystem>

namespace aft {

/// How many CPUs this process may use, at least 1: those of its affinity mask, and no more than the CPU quota of its
/// control groups (v1 or v2) pays for. Threads beyond that only take turns. Both programs count their threads by it.
int64_t allowed_cpus();

/// Whole CPUs that the quotas of the process's control groups pay for, rounded down but at least 1; a large number
/// where there is no quota. `root`: where proc and sys are, for tests.
int64_t cpu_quota(const std::filesystem::path& root);

}  // namespace aft

#pragma once

#include <hwy/targets.h>

#include <cstdint>
#include <vector>

namespace aft::ops::test {

/// The SIMD targets that were compiled and that this machine has.
inline std::vector<int64_t> machine_targets() { return hwy::SupportedAndGeneratedTargets(); }

/// Kernels run as `target` while this lives.
class TargetScope {
 public:
  explicit TargetScope(int64_t target) { hwy::SetSupportedTargetsForTest(target); }
  ~TargetScope() { hwy::SetSupportedTargetsForTest(0); }
  TargetScope(const TargetScope&) = delete;
};

}  // namespace aft::ops::test

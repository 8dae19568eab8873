#include <hwy/targets.h>

#include "aft/ops/device.h"

namespace aft::ops {

SimdTargets simd_targets() {
  SimdTargets targets;
  // Highway gives better targets lower bits.
  for (int64_t rest = HWY_TARGETS; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    targets.compiled.emplace_back(hwy::TargetName(target));
    if (targets.chosen.empty() && (target & hwy::SupportedTargets()) != 0) targets.chosen = targets.compiled.back();
  }
  return targets;
}

}  // namespace aft::ops

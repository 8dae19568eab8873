#pragma once

#include <hwy/targets.h>

#include <cstddef>

// Calling the kernel of the best SIMD target of this machine. Highway's HWY_EXPORT takes plain functions alone, one by
// one; a kernel is a template over its element type (from 1.1 on Highway has HWY_EXPORT_T for that).

namespace aft::ops {

/// The entry of this machine's target in a table of Highway's order.
inline size_t target_entry() {
  hwy::ChosenTarget& chosen = hwy::GetChosenTarget();
  if (!chosen.IsInitialized()) chosen.Update(hwy::SupportedTargets());
  return chosen.GetIndex();
}

}  // namespace aft::ops

/// AFT_DISPATCH(Kernel<E>)(arguments...), where HWY_ONCE, in the namespace around that of the targets.
#if (HWY_TARGETS & (HWY_TARGETS - 1)) == 0
#define AFT_DISPATCH(Kernel) HWY_STATIC_DISPATCH(Kernel)
#else
#define AFT_DISPATCH(Kernel)                                                                                     \
  ([] {                                                                                                          \
    static constexpr decltype(&HWY_STATIC_DISPATCH(Kernel)) kTable[] = {nullptr, HWY_CHOOSE_TARGET_LIST(Kernel), \
                                                                        HWY_CHOOSE_FALLBACK(Kernel)};            \
    return kTable[target_entry()];                                                                               \
  }())
#endif

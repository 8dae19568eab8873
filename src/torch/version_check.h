#pragma once

#include <cstdint>

namespace aft::dispatch {

/// Throws aft::Error where the LibTorch loaded at run time is not the one this library was compiled with: PyTorch keeps
/// no binary interface between versions, and a mismatch may compute nonsense instead of failing. Called by every
/// operator; costs one load once it has passed.
void check_torch_version();

/// For tests: what the loaded LibTorch is taken for, as TORCH_ABI_VERSION counts; 0: the truth.
void set_loaded_torch_version_for_test(uint64_t version);

}  // namespace aft::dispatch

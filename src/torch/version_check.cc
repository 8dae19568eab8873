#include "version_check.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/version.h>

#include <atomic>
#include <string>

#include "aft/error.h"

namespace aft::dispatch {
namespace {

std::atomic<bool> passed = false;
std::atomic<uint64_t> faked = 0;

std::string text(uint64_t version) {
  const auto part = [&](int shift) { return std::to_string((version >> shift) & 0xff); };
  return part(56) + "." + part(48) + "." + part(40);
}

}  // namespace

void check_torch_version() {
  if (passed.load(std::memory_order_relaxed)) return;
  const uint64_t loaded = faked != 0 ? faked.load() : aoti_torch_abi_version();
  if (text(loaded) != text(TORCH_ABI_VERSION)) {
    throw Error("libaft_torch.so was built for LibTorch " + text(TORCH_ABI_VERSION) + " but LibTorch " + text(loaded) +
                " is loaded: build AFT again against this LibTorch, or use LibTorch " + text(TORCH_ABI_VERSION));
  }
  passed = true;
}

void set_loaded_torch_version_for_test(uint64_t version) {
  faked = version;
  passed = false;
}

}  // namespace aft::dispatch

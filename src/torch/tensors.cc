#include "tensors.h"

#include <ATen/MemoryOverlap.h>

namespace aft::dispatch {

using at::Tensor;
using at::TensorList;

void check_writable(std::string_view op, std::string_view name, const Tensor& out, TensorList inputs) {
  if (out.size(-1) > 1 && out.stride(-1) != 1) {
    fail("aft::", op, ": ", name, " must have its last dimension contiguous, got strides ", out.strides(),
         ": allocate it with torch.empty");
  }
  if (at::has_internal_overlap(out) == at::MemOverlap::Yes) {
    fail("aft::", op, ": ", name, " must own each of its elements, got strides ", out.strides(),
         ": allocate it with torch.empty");
  }
  for (const Tensor& input : inputs) {
    if (!input.defined()) continue;
    const at::MemOverlapStatus status = at::get_overlap_status(out, input);
    if (status == at::MemOverlapStatus::Full || status == at::MemOverlapStatus::Partial) {
      fail("aft::", op, ": ", name, " must not share memory with another argument: give it memory of its own");
    }
  }
}

}  // namespace aft::dispatch

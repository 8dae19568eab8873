#include "tensors.h"

#include <ATen/MemoryOverlap.h>

namespace aft::dispatch {

using at::Tensor;

void check_writable(std::string_view op, std::string_view name, const Tensor& out,
                    const std::vector<OptionalTensor>& inputs) {
  if (out.size(-1) > 1 && out.stride(-1) != 1) {
    fail("aft::", op, ": ", name, " must have its last dimension contiguous, got strides ", out.strides(),
         ": allocate it with torch.empty");
  }
  if (at::has_internal_overlap(out) == at::MemOverlap::Yes) {
    fail("aft::", op, ": ", name, " must own each of its elements, got strides ", out.strides(),
         ": allocate it with torch.empty");
  }
  for (const OptionalTensor& input : inputs) {
    if (!input.has_value() || !input->defined()) continue;
    const at::MemOverlapStatus status = at::get_overlap_status(out, *input);
    if (status == at::MemOverlapStatus::Full || status == at::MemOverlapStatus::Partial) {
      fail("aft::", op, ": ", name, " must not share memory with another argument: give it memory of its own");
    }
  }
}

void check_writable(std::string_view op, const std::vector<GradientOutput>& outputs,
                    std::vector<OptionalTensor> inputs) {
  for (const GradientOutput& output : outputs) {
    if (!output.to.has_value()) continue;
    check_writable(op, output.name, *output.to, inputs);
    inputs.push_back(output.to);
  }
}

}  // namespace aft::dispatch

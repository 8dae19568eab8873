// The older vmap, which torch.autograd.grad(is_grads_batched=True) still takes. Its header cannot be where that of
// torch.func is: their names collide.

#include <ATen/LegacyBatchedTensorImpl.h>

#include "vmap.h"

namespace aft::dispatch {
namespace {

struct Legacy {
  explicit Legacy(const std::vector<Tensor>& tensors) {
    for (const Tensor& t : tensors) {
      if (at::isBatchedTensor(t)) level = std::max(level, innermost(t).level());
    }
  }

  [[nodiscard]] int64_t size(const Tensor& t) const {
    if (!at::isBatchedTensor(t) || innermost(t).level() != level) return -1;
    return at::unsafeGetBatchedImpl(t)->value().size(innermost(t).dim());
  }
  [[nodiscard]] Tensor slice(const Tensor& t, int64_t i) const {
    const int64_t dim = innermost(t).dim();
    at::BatchDims outer;
    for (const at::BatchDim& b : at::unsafeGetBatchedImpl(t)->bdims()) {
      if (b.dim() != dim) outer.emplace_back(b.level(), b.dim() > dim ? b.dim() - 1 : b.dim());
    }
    const Tensor value = at::unsafeGetBatchedImpl(t)->value().select(dim, i);
    return outer.empty() ? value : at::makeBatched(value, outer);
  }
  [[nodiscard]] Tensor together(const std::vector<Tensor>& slices) const {
    return at::addBatchDim(at::stack(slices), level, 0);
  }

  static const at::BatchDim& innermost(const Tensor& t) { return at::unsafeGetBatchedImpl(t)->bdims().back(); }
  int64_t level = -1;
};

}  // namespace

torch::CppFunction each_slice_of_older_vmap() {
  return torch::CppFunction::makeFromBoxedFunction<&each_slice<Legacy>>();
}

}  // namespace aft::dispatch

// torch.func.vmap.

#include "vmap.h"

#include <ATen/functorch/DynamicLayer.h>
#include <ATen/functorch/PlumbingHelper.h>

namespace aft::dispatch {
namespace {

struct FuncTorch {
  explicit FuncTorch(const std::vector<Tensor>&) : level(at::functorch::maybeCurrentDynamicLayer()->layerId()) {}

  [[nodiscard]] int64_t size(const Tensor& t) const {
    const auto [value, dim] = at::functorch::unwrapTensorAtLevel(t, level);
    return dim.has_value() ? value.size(*dim) : -1;
  }
  [[nodiscard]] Tensor slice(const Tensor& t, int64_t i) const {
    const auto [value, dim] = at::functorch::unwrapTensorAtLevel(t, level);
    return value.select(*dim, i);
  }
  [[nodiscard]] Tensor together(const std::vector<Tensor>& slices) const {
    return at::functorch::makeBatched(at::stack(slices), 0, level);
  }

  c10::impl::ExcludeDispatchKeyGuard below{c10::DispatchKey::FuncTorchBatched};
  int64_t level;
};

}  // namespace

torch::CppFunction each_slice_of_vmap() { return torch::CppFunction::makeFromBoxedFunction<&each_slice<FuncTorch>>(); }

}  // namespace aft::dispatch

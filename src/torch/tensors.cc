#include "tensors.h"

#include <algorithm>
#include <cstdint>
#include <limits>

namespace aft::dispatch {
namespace {

struct Dimension {
  int64_t step, size;  // bytes, elements
};

// Where a tensor lies in memory. Dimensions smallest step first, without those that take none.
struct Layout {
  int64_t begin = 0, item = 0;
  std::vector<Dimension> dimensions;

  explicit Layout(const Tensor& t)
      : begin(static_cast<int64_t>(reinterpret_cast<intptr_t>(t.const_data_ptr()))), item(t.element_size()) {
    for (int64_t i = 0; i < t.dim(); ++i) {
      if (t.size(i) > 1 && t.stride(i) != 0) dimensions.push_back({t.stride(i) * item, t.size(i)});
    }
    std::sort(dimensions.begin(), dimensions.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  }

  // Bytes from the first element to the end of the last of those that smaller steps than this reach.
  int64_t extent(int64_t below) const {
    int64_t bytes = item;
    for (const Dimension& d : dimensions) bytes += d.step < below ? (d.size - 1) * d.step : 0;
    return bytes;
  }
  int64_t end() const { return begin + extent(std::numeric_limits<int64_t>::max()); }

  // Whether all bytes lie, modulo this, where those of the smaller steps do.
  bool repeats_every(int64_t period) const {
    return std::all_of(dimensions.begin(), dimensions.end(),
                       [&](const Dimension& d) { return d.step < period || d.step % period == 0; });
  }
};

bool owns_its_elements(const Tensor& t) {
  for (int64_t i = 0; i < t.dim(); ++i) {
    if (t.size(i) > 1 && t.stride(i) == 0) return false;
  }
  const Layout layout(t);
  int64_t extent = layout.item;  // of the dimensions so far
  for (const Dimension& d : layout.dimensions) {
    if (d.step < extent) return false;
    extent += (d.size - 1) * d.step;
  }
  return true;
}

// Rows of both that repeat every `period` bytes lie in different columns of them.
bool in_different_columns(const Layout& a, const Layout& b, int64_t period) {
  if (!a.repeats_every(period) || !b.repeats_every(period)) return false;
  const Layout& first = a.begin <= b.begin ? a : b;
  const Layout& second = a.begin <= b.begin ? b : a;
  const int64_t column = (second.begin - first.begin) % period;
  return first.extent(period) <= column && column + second.extent(period) <= period;
}

// Whether both take the same outermost steps, with room between these for what lies within one of both.
bool in_step(const Layout& a, const Layout& b) {
  if (a.dimensions.empty() || b.dimensions.empty()) return false;
  const int64_t step = a.dimensions.back().step;
  return step == b.dimensions.back().step &&
         std::max(a.begin + a.extent(step), b.begin + b.extent(step)) - std::min(a.begin, b.begin) <= step;
}

// Whether a byte may belong to both: not so for slices of one packed tensor, whatever dimension it is packed along.
bool may_share_memory(Layout a, Layout b) {
  while (a.begin < b.end() && b.begin < a.end()) {
    for (const Layout* layout : {&a, &b}) {
      for (const Dimension& d : layout->dimensions) {
        if (in_different_columns(a, b, d.step)) return false;
      }
    }
    if (!in_step(a, b)) return true;
    a.dimensions.pop_back();
    b.dimensions.pop_back();
  }
  return false;
}

bool may_share_memory(const Tensor& a, const Tensor& b) {
  return a.numel() > 0 && b.numel() > 0 && may_share_memory(Layout(a), Layout(b));
}

}  // namespace

std::vector<Tensor> empty_state_like(TensorList state) {
  std::vector<Tensor> result;
  result.reserve(state.size());
  for (size_t i = 0; i < state.size(); ++i) {
    result.push_back(i < 4 ? dense_like(state[i]) : at::zeros_symint(state[i].sym_sizes(), state[i].options()));
  }
  return result;
}

std::vector<Tensor> contiguous(TensorList tensors) {
  std::vector<Tensor> result;
  result.reserve(tensors.size());
  for (const Tensor& t : tensors) result.push_back(t.contiguous());
  return result;
}

void make_readable(Call& c) {
  make_readable(c.q);
  make_readable(c.k);
  make_readable(c.v);
  make_readable(c.key_mask);
}

void make_readable(SequenceCall& c) {
  make_readable(static_cast<Call&>(c));
  if (c.cu_seqlens.has_value()) c.cu_seqlens = c.cu_seqlens->contiguous();
  const auto is_contiguous = [](const Tensor& t) { return t.is_contiguous(); };
  if (std::all_of(c.state.begin(), c.state.end(), is_contiguous)) return;
  c.state_copy = contiguous(c.state);
  c.state = c.state_copy;
}

void check_writable(std::string_view op, std::string_view name, const Tensor& out, const std::vector<Tensor>& inputs) {
  if (out.is_meta()) return;
  if (out.size(-1) > 1 && out.stride(-1) != 1) {
    refuse(op, name, " must have its last dimension contiguous, got strides ", out.strides(),
           ": allocate it with torch.empty");
  }
  if (!owns_its_elements(out)) {
    refuse(op, name, " must own each of its elements, got strides ", out.strides(), ": allocate it with torch.empty");
  }
  for (const Tensor& input : inputs) {
    if (input.defined() && may_share_memory(out, input)) {
      refuse(op, name, " must not share memory with another argument: give it memory of its own");
    }
  }
}

void check_gradients(std::string_view op, const std::vector<GradientOutput>& outputs, std::vector<Tensor> inputs) {
  for (size_t i = 0; i < outputs.size(); ++i) {
    const auto& [name, to, of_name, of] = outputs[i];
    if (to.has_value() && !of.has_value()) {
      refuse(op, name, " must be None where ", of_name, " is, got a tensor: leave it out");
    }
    if (of.has_value() && !to.has_value() && i < 3) {
      refuse(op, name, " must be a tensor where ", of_name, " is one, got None: pass one");
    }
    if (to.has_value()) check_same(op, name, *to, of_name, *of);
  }
  for (const GradientOutput& output : outputs) {
    if (!output.to.has_value()) continue;
    check_writable(op, output.name, *output.to, inputs);
    inputs.push_back(*output.to);
  }
}

GradientSum::GradientSum(const OptionalTensor& result, const OptionalTensor& weights, const Tensor& v)
    : result_(result) {
  if (!result.has_value()) return;
  const at::TensorOptions options = accumulated(v);
  const bool direct = result->scalar_type() == options.dtype() && result->is_contiguous();
  sum_ = direct ? result->view(weights->sizes()) : at::empty(weights->sizes(), options);
}

void GradientSum::finish() const {
  if (result_.has_value() && !sum_->is_alias_of(*result_)) result_->copy_(sum_->view(result_->sizes()));
}

}  // namespace aft::dispatch

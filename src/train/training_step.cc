#include "train/training_step.h"

#include <algorithm>
#include <cmath>

namespace aft {
namespace {

/// [batch, context + 1] bytes as int64: inputs and, one further, targets.
torch::Tensor gather_windows(const Bytes& text, const WindowOrder& order, int64_t position, int64_t batch,
                             int64_t length) {
  auto windows = torch::empty({batch, length}, torch::kInt64);
  auto* out = windows.mutable_data_ptr<int64_t>();
  std::vector<uint8_t> bytes(static_cast<size_t>(length));
  for (int64_t row = 0; row < batch; ++row) {
    text.read(order.start(position + row), bytes);
    out = std::copy(bytes.begin(), bytes.end(), out);
  }
  return windows;
}

bool is_finite(const torch::Tensor& tensor) { return torch::isfinite(tensor).all().item<bool>(); }

/// Walks the forward again and names what first goes wrong.
std::string find_in_forward(ByteLM& model, const Optimizer& optimizer, const torch::Tensor& windows) {
  const torch::NoGradGuard no_grad;
  if (const auto name = first_non_finite(optimizer, optimizer.weight())) return "the weight " + *name;
  std::string first;
  model->observe([&](const std::string& name, const torch::Tensor& value) {
    if (first.empty() && !is_finite(value)) first = "the output of " + name;
  });
  model->forward(windows.narrow(1, 0, windows.size(1) - 1));
  model->observe({});
  return first.empty() ? "the loss itself" : first;
}

/// Backward runs from the head to the embedding, so what went wrong first is the last parameter of the model's order.
std::string find_in_backward(const Optimizer& optimizer) {
  const auto& entries = optimizer.entries();
  for (auto it = entries.rbegin(); it != entries.rend(); ++it) {
    if (!is_finite(Optimizer::slice(optimizer.gradient(), *it))) return "the gradient of " + it->name;
  }
  return "the norm of the gradient";
}

}  // namespace

StepResult compute_gradient(ByteLM& model, Optimizer& optimizer, const Bytes& text, const WindowOrder& order,
                            const Recipe& recipe, int64_t position) {
  const int64_t context = recipe.model.context;
  const int64_t batch = recipe.train.batch;
  const int64_t chunk = recipe.train.chunk > 0 ? recipe.train.chunk : context;
  const auto targets_in_step = static_cast<double>(recipe.train.accumulate * batch * context);
  optimizer.clear_gradient();
  StepResult result;
  for (int64_t part = 0; part < recipe.train.accumulate; ++part) {
    const auto windows = gather_windows(text, order, position + part * batch, batch, context + 1);
    ByteLMState state;
    if (chunk < context) state = model->initial_state(batch);
    for (int64_t begin = 0; begin < context; begin += chunk) {
      const int64_t size = std::min(chunk, context - begin);
      const auto inputs = windows.narrow(1, begin, size);
      torch::Tensor logits;
      if (chunk < context) {
        std::tie(logits, state) = model->forward_with_state(inputs, state);
        state = state.detach();
      } else {
        logits = model->forward(inputs);
      }
      const auto targets = windows.narrow(1, begin + 1, size).reshape(-1);
      const auto mean = at::cross_entropy_loss(logits.view({targets.size(0), -1}), targets);
      const double share = static_cast<double>(targets.size(0)) / targets_in_step;
      const double loss = mean.item<double>();
      if (!std::isfinite(loss)) {
        throw NotFinite{"the loss is not finite, first in " + find_in_forward(model, optimizer, windows)};
      }
      result.loss += loss * share;
      (share == 1 ? mean : mean * share).backward();
    }
  }
  result.gradient_norm = optimizer.gradient_norm();
  if (!std::isfinite(result.gradient_norm)) {
    throw NotFinite{"the gradient is not finite, first in " + find_in_backward(optimizer)};
  }
  return result;
}

std::optional<std::string> first_non_finite(const Optimizer& optimizer, const torch::Tensor& flat) {
  // A sum of finite numbers may overflow; only then look closer.
  if (std::isfinite(flat.sum().item<double>())) return std::nullopt;
  for (const FlatEntry& entry : optimizer.entries()) {
    if (!is_finite(Optimizer::slice(flat, entry))) return entry.name;
  }
  return std::nullopt;
}

}  // namespace aft

#include "train/training_step.h"

#include <ATen/OpMathType.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "train/device.h"

namespace aft {
namespace {

bool is_finite(const torch::Tensor& tensor) { return torch::isfinite(tensor).all().item<bool>(); }

/// Walks the forward again and names what first goes wrong.
std::string find_in_forward(ByteLM& model, const Optimizer& optimizer, const torch::Tensor& windows, bool narrow) {
  const torch::NoGradGuard no_grad;
  const Autocast autocast(windows.device(), narrow);
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

StepResult compute_gradient(ByteLM& model, Optimizer& optimizer, Batches& batches, const Recipe& recipe,
                            int64_t position, Look look) {
  const int64_t context = recipe.model.context;
  const int64_t batch = recipe.train.batch;
  const int64_t chunk = recipe.train.chunk > 0 ? recipe.train.chunk : context;
  const auto targets_in_step = static_cast<double>(recipe.train.accumulate * batch * context);
  const c10::Device device = optimizer.weight().device();
  const bool narrow = recipe.train.precision == "bf16";
  optimizer.clear_gradient();
  StepResult result;
  result.loss = torch::zeros({}, torch::TensorOptions(torch::kFloat64).device(device));
  for (int64_t part = 0; part < recipe.train.accumulate; ++part) {
    const auto windows = batches.take(position + part * batch);
    ByteLMState state;
    if (chunk < context) state = model->initial_state(batch);
    for (int64_t begin = 0; begin < context; begin += chunk) {
      const int64_t size = std::min(chunk, context - begin);
      const auto inputs = windows.narrow(1, begin, size);
      const auto targets = windows.narrow(1, begin + 1, size).reshape(-1);
      torch::Tensor mean;
      {
        const Autocast autocast(device, narrow);
        torch::Tensor logits;
        if (chunk < context) {
          std::tie(logits, state) = model->forward_with_state(inputs, state);
          state = state.detach();
        } else {
          logits = model->forward(inputs);
        }
        const auto wide = logits.to(at::toOpMathType(logits.scalar_type()));
        mean = at::cross_entropy_loss(wide.view({targets.size(0), -1}), targets);
      }
      if (look == Look::kAtOnce && !is_finite(mean)) {
        throw NotFinite{"the loss is not finite, first in " + find_in_forward(model, optimizer, windows, narrow)};
      }
      const double share = static_cast<double>(targets.size(0)) / targets_in_step;
      result.loss += mean.detach().to(torch::kFloat64) * share;
      (share == 1 ? mean : mean * share).backward();
    }
    batches.send_ahead(position + (part + 1) * batch);
  }
  result.gradient_norm = optimizer.gradient_norm();
  if (look == Look::kAtOnce && !is_finite(result.gradient_norm)) {
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

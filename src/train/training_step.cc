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
std::string find_in_forward(Model& model, const Optimizer& optimizer, const torch::Tensor& input, bool narrow) {
  const torch::NoGradGuard no_grad;
  const Autocast autocast(input.device(), narrow);
  if (const auto name = first_non_finite(optimizer, optimizer.weight())) return "the weight " + *name;
  std::string first;
  model.observe([&](const std::string& name, const torch::Tensor& value) {
    if (first.empty() && !is_finite(value)) first = "the output of " + name;
  });
  model.forward(input);
  model.observe({});
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

torch::Tensor mean_loss(const torch::Tensor& logits, const torch::Tensor& targets, const Mixed& mixed,
                        double label_smoothing) {
  const auto loss = [&](const torch::Tensor& wanted, at::Reduction::Reduction reduction) {
    return at::cross_entropy_loss(logits, wanted, /*weight=*/{}, reduction, /*ignore_index=*/-100, label_smoothing);
  };
  if (!mixed.second.defined()) return loss(targets, at::Reduction::Mean);
  const auto first = loss(targets, at::Reduction::None);
  const auto second = loss(mixed.second, at::Reduction::None);
  return (mixed.share * first + (1 - mixed.share) * second).mean();
}

torch::Tensor count_correct(const torch::Tensor& logits, const torch::Tensor& targets, int64_t most) {
  const auto own = logits.gather(1, targets.unsqueeze(1));
  const auto before = torch::arange(logits.size(1), targets.options()).unsqueeze(0) < targets.unsqueeze(1);
  const auto larger = ((logits > own) | ((logits == own) & before)).sum(1);
  return (larger < most).sum().to(torch::kFloat64);
}

StepResult compute_gradient(Model& model, Optimizer& optimizer, Loader& loader, const Recipe& recipe, int64_t position,
                            Look look) {
  const Task& task = task_of(recipe.model);
  const int64_t batch = recipe.train.batch;
  const c10::Device device = optimizer.weight().device();
  const bool narrow = recipe.train.precision == "bf16";
  optimizer.clear_gradient();
  StepResult result;
  for (torch::Tensor* sum : {&result.loss, &result.correct, &result.correct_5}) {
    *sum = torch::zeros({}, torch::TensorOptions(torch::kFloat64).device(device));
  }
  for (int64_t part = 0; part < recipe.train.accumulate; ++part) {
    const Sample sample = task.sample(recipe.model, loader.take(position + part * batch));
    result.targets = recipe.train.accumulate * sample.targets.numel();
    const int64_t length = sample.targets.dim() > 1 ? sample.targets.size(1) : 1;
    const int64_t chunk = recipe.train.chunk > 0 ? std::min(recipe.train.chunk, length) : length;
    ModelState state;
    if (chunk < length) state = model.initial_state(batch);
    for (int64_t begin = 0; begin < length; begin += chunk) {
      const int64_t size = std::min(chunk, length - begin);
      const bool whole = size == length;
      const auto input = whole ? sample.input : sample.input.narrow(1, begin, size);
      const auto targets = (whole ? sample.targets : sample.targets.narrow(1, begin, size)).reshape(-1);
      torch::Tensor mean;
      {
        const Autocast autocast(device, narrow);
        torch::Tensor logits;
        if (whole) {
          logits = model.forward(input);
        } else {
          std::tie(logits, state) = model.forward_with_state(input, state);
          state = state.detach();
        }
        const auto wide = logits.to(at::toOpMathType(logits.scalar_type())).view({targets.size(0), -1});
        mean = mean_loss(wide, targets, sample.mixed, recipe.train.label_smoothing);
        if (task.counts_correct) {
          result.correct += count_correct(wide.detach(), targets, 1);
          result.correct_5 += count_correct(wide.detach(), targets, 5);
        }
      }
      if (look == Look::kAtOnce && !is_finite(mean)) {
        throw NotFinite{"the loss is not finite, first in " + find_in_forward(model, optimizer, sample.input, narrow)};
      }
      const double share = static_cast<double>(targets.size(0)) / static_cast<double>(result.targets);
      result.loss += mean.detach().to(torch::kFloat64) * share;
      (share == 1 ? mean : mean * share).backward();
    }
    loader.send_ahead(position + (part + 1) * batch);
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

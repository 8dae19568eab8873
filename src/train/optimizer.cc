#include "train/optimizer.h"

#include <algorithm>
#include <set>

#include "config/architecture.h"
#include "train/adamw.h"

namespace aft {
namespace {

constexpr int64_t kAlign = 16;  // elements: every parameter starts on a cache line, as if allocated alone

template <typename T>
void update_range(const AdamWStep& step, int64_t begin, int64_t end, const torch::Tensor& gradient,
                  const torch::Tensor& weight, const torch::Tensor& first, const torch::Tensor& second) {
  adamw_update<T>(step, end - begin, gradient.const_data_ptr<T>() + begin, weight.mutable_data_ptr<T>() + begin,
                  first.mutable_data_ptr<T>() + begin, second.mutable_data_ptr<T>() + begin);
}

}  // namespace

Optimizer::Optimizer(ModelPtr model, bool averages) : model_(std::move(model)) {
  const torch::NoGradGuard no_grad;
  const auto parameters = model_->module().named_parameters();
  std::set<std::string> decaying;
  for (const TensorSpec& spec : model_tensors(model_->config)) {
    if (spec.decays) decaying.insert(spec.name);
  }
  int64_t size = 0;
  for (const auto& item : parameters)
    entries_.push_back({item.key(), item.value().sizes().vec(), 0, item.value().numel()});
  for (const bool decays : {true, false}) {
    for (auto& entry : entries_) {
      if (decaying.contains(entry.name) != decays) continue;
      entry.offset = size;
      size += (entry.count + kAlign - 1) / kAlign * kAlign;
    }
    if (decays) decayed_ = size;
  }
  const auto options = parameters.begin()->value().options().requires_grad(false);
  weight_ = torch::zeros({size}, options);
  gradient_ = torch::zeros({size}, options);
  first_moment_ = torch::zeros({size}, options);
  second_moment_ = torch::zeros({size}, options);
  stopped_ = torch::zeros({}, options.dtype(torch::kFloat32));
  for (const auto& entry : entries_) {
    torch::Tensor parameter = parameters[entry.name];
    const auto view = slice(weight_, entry);
    view.copy_(parameter);
    parameter.set_data(view);
    parameter.mutable_grad() = slice(gradient_, entry);
  }
  if (averages) average_ = weight_.clone();
}

torch::Tensor Optimizer::slice(const torch::Tensor& flat, const FlatEntry& entry) {
  return flat.narrow(0, entry.offset, entry.count).view(entry.shape);
}

void Optimizer::clear_gradient() { gradient_.zero_(); }

torch::Tensor Optimizer::gradient_norm() const { return at::linalg_vector_norm(gradient_, 2); }

void Optimizer::update(const TrainConfig& config, int64_t step, double norm) {
  AdamWStep adamw;
  adamw.step = step;
  adamw.lr = learning_rate(config, step);
  adamw.beta1 = config.beta1;
  adamw.beta2 = config.beta2;
  adamw.eps = config.eps;
  if (config.clip > 0 && norm > config.clip) adamw.gradient_scale = config.clip / norm;
  for (const bool decays : {true, false}) {
    adamw.weight_decay = decays ? config.weight_decay : 0;
    const int64_t begin = decays ? 0 : decayed_;
    const int64_t end = decays ? decayed_ : weight_.numel();
    if (weight_.scalar_type() == torch::kFloat32) {
      update_range<float>(adamw, begin, end, gradient_, weight_, first_moment_, second_moment_);
    } else {
      update_range<double>(adamw, begin, end, gradient_, weight_, first_moment_, second_moment_);
    }
  }
  update_average(config, step);
}

void Optimizer::update_average(const TrainConfig& config, int64_t step) {
  if (!average_.defined()) return;
  const auto steps = static_cast<double>(step);
  const double decay = std::min(config.ema, (1 + steps) / (10 + steps));
  average_.lerp_(weight_, ((1 - stopped_) * (1 - decay)).to(average_.scalar_type()));
}

void Optimizer::show_average(Model& model) const {
  const torch::NoGradGuard no_grad;
  const auto parameters = model.module().named_parameters();
  for (const FlatEntry& entry : entries_) {
    torch::Tensor parameter = parameters[entry.name];
    parameter.set_data(slice(average_, entry));
  }
}

void Optimizer::update_unread(const TrainConfig& config, int64_t step, const torch::Tensor& loss,
                              const torch::Tensor& norm) {
  const auto f32 = stopped_.options();
  stopped_ = at::maximum(stopped_, (loss + norm).isfinite().logical_not().to(torch::kFloat32));
  // LibTorch's kernel divides the gradient by the scale, and does nothing at all if stopped_ is 1.
  std::optional<torch::Tensor> scale;
  if (config.clip > 0) scale = norm.to(torch::kFloat32).div(config.clip).clamp_min(1);
  const auto steps = torch::full({}, static_cast<double>(step), f32);
  for (const bool decays : {true, false}) {
    const int64_t begin = decays ? 0 : decayed_;
    const int64_t count = (decays ? decayed_ : weight_.numel()) - begin;
    at::_fused_adamw_({weight_.narrow(0, begin, count)}, {gradient_.narrow(0, begin, count)},
                      {first_moment_.narrow(0, begin, count)}, {second_moment_.narrow(0, begin, count)},
                      /*max_exp_avg_sqs=*/{}, {steps}, learning_rate(config, step), config.beta1, config.beta2,
                      decays ? config.weight_decay : 0, config.eps, /*amsgrad=*/false, /*maximize=*/false, scale,
                      stopped_);
  }
  update_average(config, step);
}

}  // namespace aft

#pragma once

#include <torch/types.h>

#include <string>
#include <vector>

#include "models/model.h"
#include "train/train.h"

namespace aft {

/// One parameter's place in the flat buffers.
struct FlatEntry {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;
  int64_t count = 0;
};

/// AdamW over a model's parameters, which become views of one flat tensor (f32 or f64), linear weights first: clipping
/// and the update are one pass each, and a checkpoint is a list of slices.
class Optimizer {
 public:
  /// `averages`: keeps average() too.
  explicit Optimizer(ModelPtr model, bool averages = false);

  /// Sets all gradients to zero.
  void clear_gradient();

  /// Norm of the whole gradient: a scalar on the model's device.
  [[nodiscard]] torch::Tensor gradient_norm() const;

  /// Clips to config.clip, given the norm, and updates weights, moments and average. `step` counts from 1. On the CPU
  /// alone.
  void update(const TrainConfig& config, int64_t step, double norm);

  /// The same on any device, and without reading `loss` and `norm` from it, both scalars: where one of them is not
  /// finite, neither this step nor any later one changes weights, moments or average.
  void update_unread(const TrainConfig& config, int64_t step, const torch::Tensor& loss, const torch::Tensor& norm);

  /// In the order of the model.
  [[nodiscard]] const std::vector<FlatEntry>& entries() const { return entries_; }
  /// The entry's slice of one of the flat tensors below, in the entry's shape.
  [[nodiscard]] static torch::Tensor slice(const torch::Tensor& flat, const FlatEntry& entry);

  [[nodiscard]] const torch::Tensor& weight() const { return weight_; }
  [[nodiscard]] const torch::Tensor& gradient() const { return gradient_; }
  [[nodiscard]] const torch::Tensor& first_moment() const { return first_moment_; }
  [[nodiscard]] const torch::Tensor& second_moment() const { return second_moment_; }
  /// Exponential moving average of the weights, undefined unless kept: those of the beginning, and after each update
  /// d times the average and 1 - d times the new weights, d = min(config.ema, (1 + step) / (10 + step)), so that it
  /// leaves the beginning behind at first.
  [[nodiscard]] const torch::Tensor& average() const { return average_; }
  /// Makes the parameters of `model`, of the same configuration, views of average().
  void show_average(Model& model) const;

 private:
  /// After the weights of `step`; nothing where stopped_ is 1.
  void update_average(const TrainConfig& config, int64_t step);

  ModelPtr model_;
  std::vector<FlatEntry> entries_;
  int64_t decayed_ = 0;  // the first elements of the flat tensors, where weight decay applies
  torch::Tensor weight_;
  torch::Tensor gradient_;
  torch::Tensor first_moment_;
  torch::Tensor second_moment_;
  torch::Tensor average_;
  torch::Tensor stopped_;  // f32 scalar: 1 once a step of update_unread() was not finite, else 0
};

}  // namespace aft

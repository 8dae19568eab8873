#pragma once

#include <optional>
#include <string>

#include "models/model.h"
#include "train/loader.h"
#include "train/optimizer.h"
#include "train/task.h"
#include "train/train.h"

namespace aft {

/// A loss or gradient that is not finite; `where` names the first such tensor.
struct NotFinite {
  std::string where;
};

/// Scalars on the model's device, f64 but the norm.
struct StepResult {
  torch::Tensor loss;     // mean over all targets of the step, in nats
  torch::Tensor correct;  // targets with the largest logit, and among the five largest: 0 unless the task counts
  torch::Tensor correct_5;
  torch::Tensor gradient_norm;  // of the gradient of that mean
  int64_t targets = 0;
};

/// When the host looks at what a step computed. Looking waits for the device.
enum class Look {
  kAtOnce,  // at every loss and gradient: NotFinite is thrown where one is not finite
  kLater,   // the caller does
};

/// Forward and backward, on the model's device and in the precision of the recipe, over the `accumulate` batches that
/// begin at `position` of the run. The gradient is left in the optimizer, in the type of the weights.
StepResult compute_gradient(Model& model, Optimizer& optimizer, Loader& loader, const Recipe& recipe, int64_t position,
                            Look look);

/// The training loss: mean over the targets [N] of -ln p in nats, p the softmax of their logits [N, classes]. Of a
/// mixed example it is share times that of the first target and 1 - share times that of the second. Smoothed by s in
/// [0, 1) (Szegedy et al. 2016): 1 - s times this, and s times the mean over all classes.
torch::Tensor mean_loss(const torch::Tensor& logits, const torch::Tensor& targets, const Mixed& mixed,
                        double label_smoothing);

/// How many of the targets [N] have the largest of their logits [N, classes] (`most` 1), or one of the `most` largest:
/// an f64 scalar. Of equal logits, those at smaller indices count as larger.
torch::Tensor count_correct(const torch::Tensor& logits, const torch::Tensor& targets, int64_t most);

/// Name of the first parameter, in the order of the model, whose slice of `flat` is not finite.
std::optional<std::string> first_non_finite(const Optimizer& optimizer, const torch::Tensor& flat);

}  // namespace aft

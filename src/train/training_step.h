#pragma once

#include <optional>
#include <string>

#include "models/models.h"
#include "train/batches.h"
#include "train/optimizer.h"
#include "train/train.h"

namespace aft {

/// A loss or gradient that is not finite; `where` names the first such tensor.
struct NotFinite {
  std::string where;
};

/// Scalars on the model's device.
struct StepResult {
  torch::Tensor loss;           // f64: mean over all targets of the step, in nats
  torch::Tensor gradient_norm;  // of the gradient of that mean
};

/// When the host looks at what a step computed. Looking waits for the device.
enum class Look {
  kAtOnce,  // at every loss and gradient: NotFinite is thrown where one is not finite
  kLater,   // the caller does
};

/// Forward and backward, on the model's device and in the precision of the recipe, over the `accumulate` batches that
/// begin at `position` of the run. The gradient is left in the optimizer, in the type of the weights.
StepResult compute_gradient(ByteLM& model, Optimizer& optimizer, Batches& batches, const Recipe& recipe,
                            int64_t position, Look look);

/// Name of the first parameter, in the order of the model, whose slice of `flat` is not finite.
std::optional<std::string> first_non_finite(const Optimizer& optimizer, const torch::Tensor& flat);

}  // namespace aft

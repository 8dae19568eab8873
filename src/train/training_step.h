#pragma once

#include <optional>
#include <string>

#include "aft/models.h"
#include "aft/train.h"
#include "train/optimizer.h"

namespace aft {

/// A loss or gradient that is not finite; `where` names the first such tensor.
struct NotFinite {
  std::string where;
};

struct StepResult {
  double loss = 0;           // mean over all targets of the step, in nats
  double gradient_norm = 0;  // of the gradient of that mean
};

/// Forward and backward over the `accumulate` batches of windows that begin at `position` of the run. The gradient is
/// left in the optimizer. Throws NotFinite.
StepResult compute_gradient(ByteLM& model, Optimizer& optimizer, const Bytes& text, const WindowOrder& order,
                            const Recipe& recipe, int64_t position);

/// Name of the first parameter, in the order of the model, whose slice of `flat` is not finite.
std::optional<std::string> first_non_finite(const Optimizer& optimizer, const torch::Tensor& flat);

}  // namespace aft

#include <algorithm>
#include <cmath>
#include <numbers>

#include "train/train.h"

namespace aft {

double learning_rate(const TrainConfig& config, int64_t step) {
  const auto warmup = static_cast<double>(config.warmup);
  const auto now = static_cast<double>(step);
  if (step <= config.warmup) return config.lr * now / warmup;
  if (config.schedule == "constant") return config.lr;
  if (config.schedule == "inverse_sqrt") {
    return config.lr * std::max(config.min_lr_ratio, std::sqrt(std::max(warmup, 1.0) / now));
  }
  const double done = std::min(1.0, (now - warmup) / std::max(1.0, static_cast<double>(config.steps) - warmup));
  const double cosine = 0.5 * (1 + std::cos(std::numbers::pi * done));
  return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine);
}

}  // namespace aft

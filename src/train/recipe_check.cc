#include <cmath>
#include <sstream>

#include "aft/error.h"
#include "aft/train.h"

namespace aft {
namespace {

template <typename T>
void require(bool good, const char* key, const char* expected, const T& got) {
  if (good) return;
  std::ostringstream text;
  text << key << ": expected " << expected << ", got " << got;
  throw Error(text.str());
}

void require_fraction(double value, const char* key) {
  require(value >= 0 && value < 1, key, "a number in [0, 1)", value);
}

void check_data(const Recipe& recipe) {
  validate(recipe.data);
  const bool has_valid = recipe.data.path.empty() ? !recipe.data.valid.empty() : recipe.data.split[1] > 0;
  if (recipe.train.eval_every > 0 && !has_valid) {
    throw Error("train.eval_every: expected 0 without validation data, got " + std::to_string(recipe.train.eval_every) +
                "; give data.split a valid part or set data.valid");
  }
}

}  // namespace

void validate(const Recipe& recipe, bool with_data) {
  validate(recipe.model);
  const TrainConfig& t = recipe.train;
  constexpr int64_t kMany = int64_t{1} << 40;  // products of the sizes below stay far inside int64
  require(t.steps >= 1 && t.steps < kMany, "train.steps", "at least 1", t.steps);
  require(t.batch >= 1 && t.batch <= 1 << 20, "train.batch", "1 to 1048576", t.batch);
  require(t.accumulate >= 1 && t.accumulate <= 1 << 20, "train.accumulate", "1 to 1048576", t.accumulate);
  require(t.chunk >= 0 && t.chunk <= recipe.model.context, "train.chunk", "0 (whole windows) to model.context",
          t.chunk);
  require(t.lr > 0 && std::isfinite(t.lr), "train.lr", "a finite number above 0", t.lr);
  require(t.schedule == "cosine" || t.schedule == "inverse_sqrt" || t.schedule == "constant", "train.schedule",
          "cosine, inverse_sqrt or constant", t.schedule);
  require(t.warmup >= 0 && t.warmup <= t.steps, "train.warmup", "0 to train.steps", t.warmup);
  require(t.min_lr_ratio >= 0 && t.min_lr_ratio <= 1, "train.min_lr_ratio", "0 to 1", t.min_lr_ratio);
  require(t.weight_decay >= 0 && std::isfinite(t.weight_decay), "train.weight_decay", "0 or more", t.weight_decay);
  require_fraction(t.beta1, "train.beta1");
  require_fraction(t.beta2, "train.beta2");
  require(t.eps > 0 && std::isfinite(t.eps), "train.eps", "a finite number above 0", t.eps);
  require(t.clip >= 0 && std::isfinite(t.clip), "train.clip", "0 (no clipping) or more", t.clip);
  require(t.seed >= 0, "train.seed", "0 or more", t.seed);
  require(t.eval_every >= 0, "train.eval_every", "0 or more", t.eval_every);
  require(t.checkpoint_every >= 0, "train.checkpoint_every", "0 or more", t.checkpoint_every);
  require(t.log_every >= 1, "train.log_every", "at least 1", t.log_every);
  require(t.threads >= 0 && t.threads <= 4096, "train.threads", "0 (all) to 4096", t.threads);
  if (with_data) check_data(recipe);
}

}  // namespace aft

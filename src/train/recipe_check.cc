#include <algorithm>
#include <cmath>
#include <sstream>

#include "aft/error.h"
#include "train/device_name.h"
#include "train/recipe_fields.h"
#include "train/recipe_text.h"
#include "train/train.h"

namespace aft {
namespace {

template <typename T>
std::string text(const T& value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

template <typename T>
void require(bool good, const char* key, const std::string& expected, const T& got) {
  if (!good) throw Error(std::string(key) + ": expected " + expected + ", got " + text(got));
}

/// The update computes in f32: what vanishes or overflows there can train nothing.
void require_above_zero(double value, const char* key) {
  const auto single = static_cast<float>(value);
  require(single > 0 && std::isfinite(single), key, "a finite number above 0, also as a float (1e-45 to 3e38)", value);
}

void require_momentum(double value, const char* key) {
  require(value >= 0 && static_cast<float>(value) < 1, key, "a number in [0, 1), also as a float", value);
}

/// Names go into JSON and TOML, which are UTF-8.
void check_names(const Recipe& recipe) {
  visit_fields(recipe, [](const char* key, const auto& value) {
    const auto check = [&](const std::string& name) {
      if (is_utf8(name)) return;
      throw Error(std::string(key) + ": expected UTF-8, got other bytes: \"" + name + "\"; give another name" +
                  (std::string(key) == "run.folder" ? " by --set run.folder=" : ""));
    };
    using Value = std::decay_t<decltype(value)>;
    if constexpr (std::is_same_v<Value, std::string>) check(value);
    if constexpr (std::is_same_v<Value, std::vector<std::string>>) std::for_each(value.begin(), value.end(), check);
  });
}

/// For what changes the loss that is minimised: of a language model it is the measure too, in bits.
void require_classifier(const Recipe& recipe, double value, const char* key) {
  require(value == 0 || !is_causal(recipe.model), key,
          "0 with model.model = \"" + recipe.model.model + "\", whose bits are those of the loss", value);
}

void check_data(const Recipe& recipe) {
  validate(recipe.data);
  require_classifier(recipe, recipe.data.mixup, "data.mixup");
  require_classifier(recipe, recipe.data.cutmix, "data.cutmix");
  const bool text_wanted = recipe.model.model == "byte_lm";
  require(text_wanted == (recipe.data.format == "bytes"), "data.format",
          text_wanted ? "bytes, which a byte_lm reads" : "cifar10, idx or folder, images for a " + recipe.model.model,
          recipe.data.format);
  const bool has_valid = !text_wanted               ? recipe.data.holdout != 0
                         : recipe.data.path.empty() ? !recipe.data.valid.empty()
                                                    : recipe.data.split[1] > 0;
  if (recipe.train.eval_every > 0 && !has_valid) {
    throw Error("train.eval_every: expected 0 without validation data, got " + std::to_string(recipe.train.eval_every) +
                (text_wanted ? "; give data.split a valid part or set data.valid" : "; set data.holdout"));
  }
}

}  // namespace

void validate(const Recipe& recipe, bool with_data) {
  check_names(recipe);
  validate(recipe.model);
  const TrainConfig& t = recipe.train;
  constexpr int64_t kMany = int64_t{1} << 40;  // products of the sizes below stay far inside int64
  require(t.steps >= 1 && t.steps < kMany, "train.steps", "at least 1", t.steps);
  require(t.batch >= 1 && t.batch <= 1 << 20, "train.batch", "1 to 1048576", t.batch);
  require(t.accumulate >= 1 && t.accumulate <= 1 << 20, "train.accumulate", "1 to 1048576", t.accumulate);
  const int64_t longest = is_causal(recipe.model) ? positions(recipe.model) : 0;
  require(t.chunk >= 0 && t.chunk <= longest, "train.chunk",
          "0 (whole sequences) to the " + std::to_string(longest) + " positions that are read one after another",
          t.chunk);
  require_above_zero(t.lr, "train.lr");
  require(t.schedule == "cosine" || t.schedule == "inverse_sqrt" || t.schedule == "constant", "train.schedule",
          "cosine, inverse_sqrt or constant", t.schedule);
  require(t.warmup >= 0 && t.warmup <= t.steps, "train.warmup", "0 to train.steps = " + std::to_string(t.steps),
          t.warmup);
  require(t.min_lr_ratio >= 0 && t.min_lr_ratio <= 1, "train.min_lr_ratio", "0 to 1", t.min_lr_ratio);
  require(t.weight_decay >= 0 && std::isfinite(t.weight_decay), "train.weight_decay", "0 or more", t.weight_decay);
  require(t.lr * t.weight_decay < 1, "train.weight_decay", "below 1 / train.lr, which is " + text(1 / t.lr),
          t.weight_decay);
  require_momentum(t.beta1, "train.beta1");
  require_momentum(t.beta2, "train.beta2");
  require_above_zero(t.eps, "train.eps");
  if (t.clip != 0) require_above_zero(t.clip, "train.clip");
  require(t.label_smoothing >= 0 && t.label_smoothing < 1, "train.label_smoothing", "a number in [0, 1)",
          t.label_smoothing);
  require_classifier(recipe, t.label_smoothing, "train.label_smoothing");
  require(t.ema >= 0 && t.ema < 1, "train.ema", "0 (none), or a decay below 1", t.ema);
  require(t.seed >= 0, "train.seed", "0 or more", t.seed);
  require(t.eval_every >= 0, "train.eval_every", "0 or more", t.eval_every);
  require(t.checkpoint_every >= 0, "train.checkpoint_every", "0 or more", t.checkpoint_every);
  require(t.log_every >= 1, "train.log_every", "at least 1", t.log_every);
  require(t.loaders >= 0 && t.loaders <= 64, "train.loaders", "0 (the step reads) to 64", t.loaders);
  require(t.threads >= 0 && t.threads <= 4096, "train.threads", "0 (all) to 4096", t.threads);
  cuda_index("train.device", t.device);
  require(t.precision == "f32" || t.precision == "bf16", "train.precision", "f32 or bf16", t.precision);
  require(t.init_skip.empty() || !t.init.empty(), "train.init_skip", "none without train.init", t.init_skip.size());
  if (with_data) check_data(recipe);
}

}  // namespace aft

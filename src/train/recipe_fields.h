#pragma once

#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "config/architecture.h"
#include "train/train.h"

namespace aft {

template <typename Owner, typename Config, typename Visit>
void visit_options(std::span<const Field<Owner>> fields, const std::string& section, Config& config, Visit&& visit) {
  for (const Field<Owner>& field : fields) {
    std::visit([&](auto member) { visit((section + field.name).c_str(), config.*member); }, field.member);
  }
}

template <typename Config, typename Visit>
void visit_model_fields(Config& model, Visit&& visit) {
  visit("model.model", model.model);
  visit_options<ModelConfig>(common_fields(), "model.", model, visit);
  visit_options<ModelConfig>(model_entry(model.model).options, "model.", model, visit);
  visit("mixer.name", model.mixer.name);
  visit_options<MixerConfig>(mixer_entry(model.mixer.name).options, "mixer.", model.mixer, visit);
}

template <typename Config, typename Visit>
void visit_data_fields(Config& data, bool text, Visit&& visit) {
  if (!text) visit("data.format", data.format);
  visit("data.path", data.path);
  if (text) {
    visit("data.split", data.split);
    visit("data.train", data.train);
    visit("data.valid", data.valid);
    visit("data.test", data.test);
  } else {
    visit("data.holdout", data.holdout);
    visit("data.flip", data.flip);
    visit("data.jitter", data.jitter);
    visit("data.crop_scale", data.crop_scale);
    visit("data.rand_augment", data.rand_augment);
    visit("data.magnitude", data.magnitude);
    visit("data.magnitude_deviation", data.magnitude_deviation);
    visit("data.erase", data.erase);
    visit("data.mixup", data.mixup);
    visit("data.cutmix", data.cutmix);
    visit("data.mix_probability", data.mix_probability);
    if (data.format == "folder") visit("data.broken", data.broken);
  }
}

/// The one list of recipe keys: reading, writing, overriding and comparing all walk it. `visit(key, member)` is called
/// in the order of the file, members being std::string, bool, int64_t, double or a vector of doubles or of text. What
/// follows "model.model" and "mixer.name" depends on what these are when visit() returns: each model and mixer has
/// options of its own, as the architecture table says, and images have another section [data] than text,
/// with more keys where they are files.
template <typename R, typename Visit>
void visit_fields(R& recipe, Visit&& visit) {
  visit_model_fields(recipe.model, visit);
  visit_data_fields(recipe.data, recipe.model.model == "byte_lm", visit);
  auto& train = recipe.train;
  visit("train.init", train.init);
  visit("train.init_skip", train.init_skip);
  visit("train.steps", train.steps);
  visit("train.batch", train.batch);
  visit("train.accumulate", train.accumulate);
  visit("train.chunk", train.chunk);
  visit("train.lr", train.lr);
  visit("train.schedule", train.schedule);
  visit("train.warmup", train.warmup);
  visit("train.min_lr_ratio", train.min_lr_ratio);
  visit("train.weight_decay", train.weight_decay);
  visit("train.beta1", train.beta1);
  visit("train.beta2", train.beta2);
  visit("train.eps", train.eps);
  visit("train.clip", train.clip);
  visit("train.label_smoothing", train.label_smoothing);
  visit("train.ema", train.ema);
  visit("train.seed", train.seed);
  visit("train.eval_every", train.eval_every);
  visit("train.checkpoint_every", train.checkpoint_every);
  visit("train.log_every", train.log_every);
  visit("train.loaders", train.loaders);
  visit("train.threads", train.threads);
  visit("train.device", train.device);
  visit("train.precision", train.precision);
  visit("run.folder", recipe.run.folder);
}

/// Every key with its value as TOML: equal exactly where the values are.
std::vector<std::pair<std::string, std::string>> recipe_values(const Recipe& recipe);

}  // namespace aft

#pragma once

#include <string>
#include <utility>
#include <vector>

#include "train/train.h"

namespace aft {

/// The one list of recipe keys: reading, writing, overriding and comparing all walk it. `visit(key, member)` is called
/// in the order of the file, members being std::string, int64_t, double or a vector of
/// doubles or of text.
template <typename R, typename Visit>
void visit_fields(R& recipe, Visit&& visit) {
  visit("model.model", recipe.model.model);
  visit("model.mixer", recipe.model.mixer);
  visit("model.vocabulary", recipe.model.vocabulary);
  visit("model.layers", recipe.model.layers);
  visit("model.channels", recipe.model.channels);
  visit("model.mlp_channels", recipe.model.mlp_channels);
  visit("model.context", recipe.model.context);
  visit("model.heads", recipe.model.heads);
  visit("model.window", recipe.model.window);
  visit("model.factor_channels", recipe.model.factor_channels);
  visit("model.dropout", recipe.model.dropout);
  visit("data.path", recipe.data.path);
  visit("data.split", recipe.data.split);
  visit("data.train", recipe.data.train);
  visit("data.valid", recipe.data.valid);
  visit("data.test", recipe.data.test);
  visit("train.init", recipe.train.init);
  visit("train.init_skip", recipe.train.init_skip);
  visit("train.steps", recipe.train.steps);
  visit("train.batch", recipe.train.batch);
  visit("train.accumulate", recipe.train.accumulate);
  visit("train.chunk", recipe.train.chunk);
  visit("train.lr", recipe.train.lr);
  visit("train.schedule", recipe.train.schedule);
  visit("train.warmup", recipe.train.warmup);
  visit("train.min_lr_ratio", recipe.train.min_lr_ratio);
  visit("train.weight_decay", recipe.train.weight_decay);
  visit("train.beta1", recipe.train.beta1);
  visit("train.beta2", recipe.train.beta2);
  visit("train.eps", recipe.train.eps);
  visit("train.clip", recipe.train.clip);
  visit("train.seed", recipe.train.seed);
  visit("train.eval_every", recipe.train.eval_every);
  visit("train.checkpoint_every", recipe.train.checkpoint_every);
  visit("train.log_every", recipe.train.log_every);
  visit("train.threads", recipe.train.threads);
  visit("train.device", recipe.train.device);
  visit("train.precision", recipe.train.precision);
  visit("run.folder", recipe.run.folder);
}

/// Every key with its value as TOML: equal exactly where the values are.
std::vector<std::pair<std::string, std::string>> recipe_values(const Recipe& recipe);

}  // namespace aft

#pragma once

#include <atomic>
#include <optional>

#include "data/data_set.h"
#include "models/model.h"
#include "train/train.h"

namespace aft {

/// evaluate_checkpoint() for a model and data in memory; leaves the model in training mode if it was. Nothing if *stop
/// became true.
std::optional<Evaluation> evaluate(Model& model, const DataSet& data, Split split,
                                   const std::atomic<bool>* stop = nullptr);

/// The model of the recipe as it is before training: drawn from train.seed, then, if `with_init`, with the weights of
/// train.init.
ModelPtr make_model(const Recipe& recipe, bool with_init);

/// Sets LibTorch's threads; 0: as many as the process has CPUs.
void use_threads(int64_t threads);

}  // namespace aft

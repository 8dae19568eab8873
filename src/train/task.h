#pragma once

#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "data/data_set.h"
#include "models/model.h"
#include "train/batch.h"
#include "train/train.h"

namespace aft {

/// Sums over targets, of which metrics are made.
struct Score {
  double nats = 0;  // of the cross-entropy
  int64_t targets = 0;
  int64_t correct = 0;    // the target has the largest logit; counted for tasks that ask for it
  int64_t correct_5 = 0;  // one of the five largest

  Score& operator+=(const Score& other);
};

struct MetricKind {
  const char* name;  // in metrics.jsonl
  double (*of)(const Score& score);
  bool lower_is_better;
};

/// What a model reads and what it should say.
struct Sample {
  torch::Tensor input;    // Model::forward()'s
  torch::Tensor targets;  // int64, of the shape of the logits without their last dimension
  Mixed mixed;            // of classes in training, where images are mixed
};

/// What is learned: names its data, its input and targets, and its metrics. All tasks are cross-entropy over logits, so
/// one trainer serves them.
struct Task {
  const char* name;
  const char* unit;                 // of "tokens" in metrics.jsonl
  bool counts_correct;              // whether Score has `correct` and `correct_5`
  std::vector<MetricKind> metrics;  // the first chooses the best model
  /// The data of a recipe or an evaluation. Throws aft::Error if they are missing, broken or not the model's.
  std::unique_ptr<DataSet> (*load)(const DataConfig& data, const ModelConfig& model);
  Sample (*sample)(const ModelConfig& model, const Batch& batch);
  /// What one training example counts as in "tokens".
  int64_t (*tokens)(const ModelConfig& model);
};

/// The task of a model. Throws aft::Error for an unknown one.
const Task& task_of(const ModelConfig& model);

/// Name and value of every metric of the task.
MetricValues metrics_of(const Task& task, const Score& score);

/// Whether `value` of the task's first metric is better than `than`.
bool is_better(const Task& task, double value, double than);

}  // namespace aft

#pragma once

#include <torch/types.h>

#include <filesystem>
#include <optional>
#include <string>

#include "models/model.h"
#include "train/optimizer.h"
#include "train/task.h"

namespace aft {

/// What a run needs to go on, beside weights and moments.
struct RunState {
  int64_t step = 0;
  int64_t position = 0;        // examples visited, over all epochs
  bool evaluated = true;       // false: stopped before the validation that was due at this step
  double seconds = 0;          // of training so far
  Score logged;                // of the steps since the last train line
  std::optional<double> best;  // the task's first metric of the best model
  uint64_t data_checksum = 0;  // of the training split
  uint64_t valid_checksum = 0;
  uint64_t test_checksum = 0;
};

/// One file holds everything that must agree: weights, moments, average, generator and state. Written whole or not at
/// all.
void save_checkpoint(const std::filesystem::path& path, const ModelConfig& config, const std::string& recipe_toml,
                     const RunState& state, const Optimizer& optimizer, const torch::Generator& generator);

/// Recipe and state alone. Throws aft::Error for a file that is no checkpoint, or one of an earlier version: its run
/// cannot be resumed.
struct CheckpointHeader {
  std::string recipe_toml;
  RunState state;
};
CheckpointHeader read_checkpoint_header(const std::filesystem::path& path);

/// Restores weights, moments and the average if it is kept, on whatever device they are, and the generator if there is
/// one; the model must be the one of the checkpoint's recipe, and the generator of the same kind of device.
void restore_checkpoint(const std::filesystem::path& path, Optimizer& optimizer, torch::Generator* generator);

}  // namespace aft

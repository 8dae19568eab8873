#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "aft/config/model_config.h"
#include "data/data.h"

// The trainer: recipes, runs, evaluation and curves. No torch header is needed to use it.

namespace aft {

/// How a model is trained. Sizes are examples: windows of text, or images.
struct TrainConfig {
  std::string init;                    // run folder or model file whose weights the run begins with; empty: random ones
  std::vector<std::string> init_skip;  // patterns of tensors that stay as they are initialised, such as "head.*"
  int64_t steps = 1000;
  int64_t batch = 8;       // examples in one forward and backward
  int64_t accumulate = 1;  // forwards and backwards in one step
  int64_t chunk = 0;       // > 0: truncated backpropagation, sequences walked in chunks that hand on their state
  double lr = 3e-3;        // highest learning rate
  std::string schedule = "cosine";  // after the warm-up: cosine, inverse_sqrt (lr sqrt(warmup / step)), constant
  int64_t warmup = 50;              // steps of linear rise
  double min_lr_ratio = 0.1;        // cosine ends at, inverse_sqrt never falls below, lr times this
  double weight_decay = 0.1;        // on linear weights only
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double clip = 1.0;           // largest norm of the whole gradient; 0: no clipping
  double label_smoothing = 0;  // of the training loss where classes are learned: its share goes to all alike; [0, 1)
  double ema = 0;  // > 0: validated and saved are averages of the weights, Optimizer::average(), which decay so; < 1
  int64_t seed = 1;
  int64_t eval_every = 0;          // steps between validations; 0: at the end only
  int64_t checkpoint_every = 100;  // 0: at the end only
  int64_t log_every = 10;
  int64_t loaders = 1;            // threads that read the next batches while a step runs; 0: the step's own
  int64_t threads = 0;            // 0: as many as the process has CPUs
  std::string device = "cpu";     // cpu, cuda (the first), cuda:1, ...; never chosen for the user
  std::string precision = "f32";  // f32, or bf16: forward and backward in bf16 where autocast takes that for safe
};

struct RunConfig {
  std::string folder;  // default: runs/<name of the recipe file>
};

/// A whole run; together with its data it decides every bit of the result on one machine and number of threads.
struct Recipe {
  ModelConfig model;
  DataConfig data;
  TrainConfig train;
  RunConfig run;
};

/// The section [data] of a run's recipe, whatever version of aft wrote the rest.
DataConfig load_data_config(const std::filesystem::path& recipe);

/// Reads TOML and applies `overrides` ("train.lr=1e-3", typed as in TOML; a bare word will do for text). Unknown keys,
/// wrong types and anything validate() refuses throw aft::Error; an unknown key proposes the nearest known one. Another
/// mixer.name among the overrides begins with its own options: those of the recipe's mixer that it lacks are dropped.
Recipe load_recipe(const std::filesystem::path& path, const std::vector<std::string>& overrides = {});
Recipe parse_recipe(const std::string& toml, const std::string& source, const std::vector<std::string>& overrides = {});

/// Every key with its value: loading it gives the same recipe.
std::string to_toml(const Recipe& recipe);

/// The recipe with its paths made absolute, so that it means the same in every directory.
Recipe with_absolute_paths(Recipe recipe);

/// Cross-checks the values; `data` is only checked if `with_data`. Nothing is read. Throws aft::Error naming the key.
void validate(const Recipe& recipe, bool with_data);

/// Bytes that a run needs at its peak: parameters with gradient, two moments and average exactly, activations roughly.
struct MemoryEstimate {
  int64_t parameters = 0;  // numbers, not bytes
  int64_t state_bytes = 0;
  int64_t activation_bytes = 0;
};
MemoryEstimate estimate_memory(const Recipe& recipe);

/// Learning rate of step 1, 2, ... steps.
double learning_rate(const TrainConfig& config, int64_t step);

/// Names and values, as "bits_per_byte": the first is the one that chooses the best model.
using MetricValues = std::vector<std::pair<std::string, double>>;

/// One line of metrics.jsonl.
struct Metric {
  int64_t step = 0;
  std::string split;             // train, valid, test
  double loss = 0;               // cross-entropy in nats a target; train: what is minimised, of mixed images and with
                                 // smoothed labels too, mean over the steps since the last train line
  MetricValues values;           // of the task
  int64_t tokens = 0;            // trained on so far: bytes, values of images; images, where they are classified
  double tokens_per_second = 0;  // of training, or of the evaluation that gave this line
  double lr = 0;
  double seconds = 0;  // since training began, counted over all resumed parts
};

/// Hears what happens in a run; called from the thread that runs it.
class TrainObserver {
 public:
  virtual ~TrainObserver() = default;
  virtual void step(const Metric& /*latest*/, int64_t /*steps*/) {}
  virtual void metric(const Metric& /*line*/, int64_t /*steps*/) {}
  virtual void note(const std::string& /*text*/) {}
};

struct TrainOptions {
  bool resume = false;                // go on from the checkpoint in the run folder, or begin if nothing is trained yet
  bool force = false;                 // replace an existing run
  std::filesystem::path recipe_file;  // where the recipe was read, if from a file: no run replaces it by another text
  int64_t until = 0;                  // > 0: stop after this step, with a checkpoint, as if interrupted
  std::filesystem::path profile;      // where to write a trace of five steps after the first ten; empty: none
  const std::atomic<bool>* stop = nullptr;  // set from outside: stop after the current step, with a checkpoint
};

struct TrainOutcome {
  bool finished = false;  // false: stopped early, with a checkpoint
  int64_t step = 0;
  MetricValues best_valid;              // the first metric of the best model; empty: nothing was validated
  MetricValues test;                    // all metrics; empty: nothing was tested
  std::optional<int64_t> device_bytes;  // on a GPU: most bytes of tensors at one time
};

/// One run. The constructor checks recipe, device, folder, data and checkpoint and throws aft::Error for bad input;
/// run() throws when the run itself fails (a full disk, a loss that is not finite) and leaves the last good checkpoint.
///
/// The folder holds recipe.toml, metrics.jsonl, checkpoint.safetensors (weights, moments, average, generator, position:
/// one file, so it is always consistent), model.safetensors (the best by validation, else the last) and loss.png.
class Trainer {
 public:
  Trainer(Recipe recipe, TrainOptions options);
  ~Trainer();
  TrainOutcome run(TrainObserver& observer);

 private:
  struct Run;
  std::unique_ptr<Run> run_;
};

struct Evaluation {
  double loss = 0;      // cross-entropy in nats a target
  MetricValues values;  // of the task
  std::string unit;     // of what was predicted: bytes, values, images
  int64_t bytes = 0;    // of all examples
  int64_t predicted = 0;
  double seconds = 0;
  std::vector<std::string> skipped;  // images in whose place others were taken, and what is wrong with each
};

struct EvaluateOptions {
  std::string split = "valid";  // train, valid, test
  std::string data;             // a file or folder instead of the run's own data; a text is evaluated whole
  std::string format;           // of images in `data`: cifar10, idx, folder; empty: as the run has it
  int64_t size = 0;             // of a classifier: pixels on a side; 0: those it was trained on
  std::string device = "cpu";   // as train.device
  int64_t threads = 0;          // as train.threads
};

/// `checkpoint`: a run folder or a model file, evaluated in f32. A text is cut into disjoint windows of `context`
/// bytes (the last may be shorter), the state starts afresh in each, and every byte after the first of a window is
/// predicted once. Of images every value, or the class, is predicted; they are taken as they are. Throws aft::Error
/// where there is nothing to predict.
Evaluation evaluate_checkpoint(const std::filesystem::path& checkpoint, const EvaluateOptions& options);

/// Writes the model as it is before training.
void write_untrained_model(const Recipe& recipe, const std::filesystem::path& path);

/// Draws the training and validation curves of one or several runs by gnuplot. x: "step", "seconds" or "tokens".
/// Throws aft::Error if a run has no metrics, gnuplot is missing or fails.
void plot_runs(const std::vector<std::filesystem::path>& folders, const std::filesystem::path& png,
               const std::string& x = "step");

}  // namespace aft

#include <ATen/Context.h>

#include <chrono>
#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "aft/error.h"
#include "aft/runtime/model_file.h"
#include "figures/gnuplot.h"
#include "io/write_file.h"
#include "models/model.h"
#include "train/checkpoint.h"
#include "train/device.h"
#include "train/device_name.h"
#include "train/evaluate.h"
#include "train/loader.h"
#include "train/metrics.h"
#include "train/optimizer.h"
#include "train/plain_errors.h"
#include "train/profile.h"
#include "train/run_folder.h"
#include "train/task.h"
#include "train/training_step.h"

namespace aft {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kMostUnread = 1000;  // steps whose losses lie on the device

// Memory and caches are as they stay after the first of these; the others are what is profiled.
constexpr int64_t kStepsBeforeProfile = 10;
constexpr int64_t kStepsInProfile = 5;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

}  // namespace

struct Trainer::Run {
  Run(Recipe recipe_, TrainOptions options_);
  TrainOutcome run(TrainObserver& observer);

 private:
  void check_resume();
  void check_init() const;
  TrainOutcome train(TrainObserver& observer);
  void begin(TrainObserver& observer);
  void train_one_step(TrainObserver& observer);
  void read_steps(TrainObserver& observer);
  [[noreturn]] void fail(int64_t step, const NotFinite& what) const;
  [[noreturn]] void stop_at_data(const Error& problem, TrainObserver& observer);
  void note_skipped(TrainObserver& observer);
  bool validate_model(TrainObserver& observer);  // false: stopped before it was done
  void save(TrainObserver& observer);
  void finish(TrainObserver& observer, TrainOutcome& outcome);

  [[nodiscard]] bool stop_wanted() const {
    return (options.stop && *options.stop) || (options.until > 0 && state.step >= options.until);
  }
  [[nodiscard]] bool due(int64_t every) const {
    return state.step == recipe.train.steps || (every > 0 && state.step % every == 0);
  }
  [[nodiscard]] double seconds() const { return seconds_before + seconds_since(began); }
  [[nodiscard]] int64_t tokens_at(int64_t position) const { return position * task.tokens(recipe.model); }
  [[nodiscard]] bool validates() const { return data->size(Split::kValid) > 0; }
  [[nodiscard]] std::string last_checkpoint() const;
  [[nodiscard]] std::string out_of_memory() const;
  [[nodiscard]] double rate() const { return static_cast<double>(logged_tokens) / std::max(1e-9, logged_seconds()); }
  /// Of training steps since the last train line.
  [[nodiscard]] double logged_seconds() const { return logged_before + (step_began ? seconds_since(*step_began) : 0); }
  void add_metric(const char* split, double loss, MetricValues values, double rate, TrainObserver& observer);
  void add_metric(const char* split, const Evaluation& result, TrainObserver& observer);
  void require_finite_weights() const;

  Recipe recipe;
  TrainOptions options;
  const Task& task;
  RunFolder folder;
  std::unique_ptr<DataSet> data;
  c10::Device device;
  std::unique_ptr<Loader> loader;
  RunState state;
  bool resuming = false;
  bool moved = false;       // the run to resume was on another kind of device
  int64_t saved_step = -1;  // of the checkpoint on disk

  ModelPtr model;
  ModelPtr measured;  // what is validated and saved: `model`, or one of its averages
  std::unique_ptr<Optimizer> optimizer;
  torch::Generator generator;  // LibTorch's own of the device: dropout draws from it
  std::unique_ptr<MetricsFile> metrics;
  Clock::time_point began;
  double seconds_before = 0;
  double logged_before = 0;  // seconds of whole training steps since the last train line
  std::optional<Clock::time_point> step_began;
  int64_t logged_tokens = 0;  // of training steps since the last train line

  /// A step that was computed and whose loss the host has not read: reading waits for the device.
  struct Unread {
    int64_t step;
    int64_t position;
    torch::Tensor generator;  // its state before the step
    int64_t targets;
    torch::Tensor result;  // f64 [4]: loss, correct, correct among five, norm of the gradient
  };
  std::vector<Unread> unread;
  size_t noted = 0;  // of the data's skipped()
};

Trainer::Run::Run(Recipe recipe_, TrainOptions options_)
    : recipe((validate(recipe_, true), std::move(recipe_))),
      options(std::move(options_)),
      task(task_of(recipe.model)),
      folder(recipe.run.folder),
      data((folder.check(options.resume, options.force), task.load(recipe.data, recipe.model))),
      device(find_device("train.device", recipe.train.device)) {
  if (const auto names = data->class_names();
      recipe.model.class_names.empty() && std::ssize(names) == recipe.model.classes) {
    recipe.model.class_names.assign(names.begin(), names.end());
    validate(recipe, true);  // folders may have any bytes as names
  }
  if (options.resume && options.force) throw Error("--resume and --force: expected one of them, got both");
  state.data_checksum = data->checksum(Split::kTrain);
  state.valid_checksum = data->checksum(Split::kValid);
  state.test_checksum = data->checksum(Split::kTest);
  std::error_code error;
  resuming = options.resume && std::filesystem::exists(folder.checkpoint(), error);
  if (resuming) {
    check_resume();
  } else {
    folder.require_not(options.recipe_file, to_toml(with_absolute_paths(recipe)));
    if (!recipe.train.init.empty()) check_init();
  }
}

/// Everything the run needs to go on, its best model beside the checkpoint included.
void Trainer::Run::check_resume() {
  const auto header = read_checkpoint_header(folder.checkpoint());
  const Recipe before = parse_recipe(header.recipe_toml, folder.checkpoint().string());
  check_same_run(before, recipe);
  moved = cuda_index("train.device", before.train.device).has_value() == device.is_cpu();
  const std::tuple<const char*, uint64_t, uint64_t> splits[] = {
      {"training", header.state.data_checksum, state.data_checksum},
      {"validation", header.state.valid_checksum, state.valid_checksum},
      {"test", header.state.test_checksum, state.test_checksum}};
  for (const auto& [name, saved, now] : splits) {
    if (saved == now) continue;
    throw Error(std::string("data: the ") + name + " data are not those of the run to resume; give the same data");
  }
  if (header.state.step > recipe.train.steps) {
    throw Error("train.steps: expected at least " + std::to_string(header.state.step) +
                ", the step of the run to resume, got " + std::to_string(recipe.train.steps));
  }
  state = header.state;
  if (!state.best) return;
  try {
    runtime::ModelFile(folder.model()).check_fits(recipe.model);
  } catch (const Error& problem) {
    throw Error(std::string("run.folder: the best model of the run to resume cannot be used: ") + problem.what() +
                "; put it back, or begin anew with --force");
  }
}

void Trainer::Run::check_init() const {
  try {
    runtime::ModelFile(recipe.train.init).check_fits(recipe.model, recipe.train.init_skip);
  } catch (const Error& problem) {
    throw Error(std::string("train.init: ") + problem.what() +
                "; train.init_skip leaves tensors named there as they are initialised");
  }
}

void Trainer::Run::begin(TrainObserver& observer) {
  folder.open();
  if (resuming && read_checkpoint_header(folder.checkpoint()).state.step != state.step) {
    throw Error("run.folder: another process has gone on with the run in " + folder.path().string() + "; start again");
  }
  use_threads(recipe.train.threads);
  model = make_model(recipe, !resuming);  // before anything is removed: train.init may be the very run to be replaced
  model->module().to(device);
  loader =
      std::make_unique<Loader>(*data, EpochOrder(data->size(Split::kTrain), static_cast<uint64_t>(recipe.train.seed)),
                               recipe.train.batch, device, recipe.train.loaders);
  const bool averages = recipe.train.ema > 0;
  optimizer = std::make_unique<Optimizer>(model, averages);
  measured = averages ? make_model(recipe.model) : model;
  measured->module().to(device);
  if (averages) optimizer->show_average(*measured);
  if (options.force) folder.clear();
  const std::string toml = to_toml(with_absolute_paths(recipe));
  write_file_atomically(folder.recipe(), toml.data(), toml.size());
  metrics = std::make_unique<MetricsFile>(folder.metrics(), state.step);

  generator = at::globalContext().defaultGenerator(device);
  // A generator of another kind cannot go on: dropout draws anew then, and not what it drew at the beginning.
  generator.set_current_seed(static_cast<uint64_t>(recipe.train.seed) + static_cast<uint64_t>(moved ? state.step : 0));
  if (resuming) {
    restore_checkpoint(folder.checkpoint(), *optimizer, moved ? nullptr : &generator);
    saved_step = state.step;
    // Without validation the model is the checkpoint's, also if the run was killed between the two.
    if (!validates()) save_model(*measured, folder.model());
    observer.note("resumed at step " + std::to_string(state.step));
    if (moved && recipe.model.dropout > 0) {
      observer.note("the run was on another kind of device before: dropout draws other numbers from here on");
    }
  } else if (options.resume) {
    observer.note("no checkpoint in " + folder.path().string() + " yet: beginning at step 0");
  }
  if (!resuming && !recipe.train.init.empty()) observer.note("beginning with the weights of " + recipe.train.init);
  model->module().train();
  seconds_before = state.seconds;
  began = Clock::now();
}

TrainOutcome Trainer::Run::run(TrainObserver& observer) {
  return with_plain_errors([&] { return train(observer); }, [&] { return out_of_memory(); });
}

TrainOutcome Trainer::Run::train(TrainObserver& observer) {
  begin(observer);
  TrainOutcome outcome;
  bool stopped = !state.evaluated && !validate_model(observer);
  const int64_t profile_from = options.profile.empty() ? -1 : state.step + kStepsBeforeProfile;
  bool profiling = false;
  const auto end_profile = [&] {
    if (std::exchange(profiling, false)) {
      read_steps(observer);  // waits for the device
      write_profile(options.profile);
    }
  };
  while (!stopped && state.step < recipe.train.steps && !stop_wanted()) {
    if (state.step == profile_from) {
      begin_profile(device);
      profiling = true;
    }
    train_one_step(observer);
    if (state.step == profile_from + kStepsInProfile) end_profile();
    if (validates() && due(recipe.train.eval_every)) stopped = !validate_model(observer);
    if (!stopped && due(recipe.train.checkpoint_every)) save(observer);
  }
  end_profile();
  outcome.finished = !stopped && state.step == recipe.train.steps;
  if (saved_step != state.step || stopped) save(observer);
  outcome.step = state.step;
  if (outcome.finished) finish(observer, outcome);
  if (state.best) outcome.best_valid = {{task.metrics.front().name, *state.best}};
  outcome.device_bytes = peak_bytes(device);
  return outcome;
}

void Trainer::Run::train_one_step(TrainObserver& observer) {
  step_began = Clock::now();
  const int64_t step = state.step + 1;
  // What the CPU computed is there. A GPU goes on while the host prepares the next steps, until someone wants to know.
  const Look look = device.is_cpu() ? Look::kAtOnce : Look::kLater;
  const auto drawn = generator.get_state();
  StepResult result;
  try {
    result = compute_gradient(*model, *optimizer, *loader, recipe, state.position, look);
  } catch (const NotFinite& what) {
    fail(step, what);
  } catch (const Error& problem) {
    generator.set_state(drawn);  // the parts of the step before the one that cannot be read may have drawn
    stop_at_data(problem, observer);
  }
  if (look == Look::kAtOnce) {
    optimizer->update(recipe.train, step, result.gradient_norm.item<double>());
  } else {
    optimizer->update_unread(recipe.train, step, result.loss, result.gradient_norm);
  }
  unread.push_back(
      {step, state.position, drawn, result.targets,
       torch::stack({result.loss, result.correct, result.correct_5, result.gradient_norm.to(torch::kFloat64)})});
  state.step = step;
  state.position += recipe.train.batch * recipe.train.accumulate;
  logged_tokens += tokens_at(recipe.train.batch * recipe.train.accumulate);
  const bool log = due(recipe.train.log_every);
  if (look == Look::kAtOnce || log || unread.size() >= kMostUnread || due(recipe.train.eval_every) ||
      due(recipe.train.checkpoint_every)) {
    read_steps(observer);
  }
  if (log) {
    const Score& score = state.logged;
    add_metric("train", score.nats / static_cast<double>(score.targets), metrics_of(task, score), rate(), observer);
    note_skipped(observer);
    state.logged = {};
    logged_before = 0;
    logged_tokens = 0;
  } else {
    logged_before = logged_seconds();
  }
  step_began.reset();
}

void Trainer::Run::read_steps(TrainObserver& observer) {
  if (unread.empty()) return;
  std::vector<torch::Tensor> results;
  for (const Unread& one : unread) results.push_back(one.result);
  const auto values = torch::stack(results).cpu();  // [steps, 4]
  const auto* value = values.const_data_ptr<double>();
  for (const Unread& one : unread) {
    const double loss = *value++;
    Score score = {loss * static_cast<double>(one.targets), one.targets, static_cast<int64_t>(*value++), 0};
    score.correct_5 = static_cast<int64_t>(*value++);
    const double norm = *value++;
    if (!std::isfinite(loss) || !std::isfinite(norm)) {
      // Nothing was updated since: computed once more, the step goes wrong in the same place.
      generator.set_state(one.generator);
      try {
        compute_gradient(*model, *optimizer, *loader, recipe, one.position, Look::kAtOnce);
      } catch (const NotFinite& what) {
        fail(one.step, what);
      }
      fail(one.step, {"the loss or the gradient is not finite"});
    }
    state.logged += score;
    const int64_t tokens_then = tokens_at(one.position + recipe.train.batch * recipe.train.accumulate);
    observer.step({one.step, "train", loss, metrics_of(task, score), tokens_then, rate(),
                   learning_rate(recipe.train, one.step), seconds()},
                  recipe.train.steps);
  }
  unread.clear();
}

void Trainer::Run::fail(int64_t step, const NotFinite& what) const {
  throw Error("train: step " + std::to_string(step) + ": " + what.where + "; " + last_checkpoint() +
              "; a lower train.lr, a longer train.warmup or a smaller train.clip may help");
}

/// Data that can no longer be read end the run where it stands: once they are put right it goes on from there.
void Trainer::Run::stop_at_data(const Error& problem, TrainObserver& observer) {
  std::string text = problem.what();
  try {
    if (saved_step != state.step) save(observer);
  } catch (const Error& failed) {
    text.append("; and no checkpoint can be written: ").append(failed.what());
  }
  throw Error("train: step " + std::to_string(state.step + 1) + ": " + text + "; " + last_checkpoint());
}

void Trainer::Run::note_skipped(TrainObserver& observer) {
  const std::vector<std::string> skipped = data->skipped();
  for (; noted < skipped.size(); ++noted) {
    observer.note("skipped image " + std::to_string(noted + 1) + ": " + skipped[noted]);
  }
}

bool Trainer::Run::validate_model(TrainObserver& observer) {
  state.evaluated = false;
  if (saved_step < 0) save(observer);  // a trained model never stands without a checkpoint to go on from
  std::optional<Evaluation> result;
  try {
    result = evaluate(*measured, *data, Split::kValid, options.stop);
  } catch (const Error& problem) {
    stop_at_data(problem, observer);
  }
  note_skipped(observer);
  if (!result) return false;
  state.evaluated = true;
  if (!std::isfinite(result->loss)) {
    require_finite_weights();
    throw Error("train: step " + std::to_string(state.step) + ": the validation loss is not finite; " +
                last_checkpoint());
  }
  add_metric("valid", *result, observer);
  const double value = result->values.front().second;
  if (!state.best || is_better(task, value, *state.best)) {
    // The model first: a run killed in between finds a best model that is newer than it knows, never one too old.
    require_finite_weights();
    save_model(*measured, folder.model());
    state.best = value;
  }
  return true;
}

void Trainer::Run::save(TrainObserver& observer) {
  read_steps(observer);
  require_finite_weights();
  state.seconds = seconds();
  const std::string toml = to_toml(with_absolute_paths(recipe));
  save_checkpoint(folder.checkpoint(), recipe.model, toml, state, *optimizer, generator);
  saved_step = state.step;
  if (!validates()) save_model(*measured, folder.model());
}

void Trainer::Run::finish(TrainObserver& observer, TrainOutcome& outcome) {
  if (data->size(Split::kTest) > 0) {
    const ModelPtr best = load_model(folder.model());
    best->module().to(device);
    const auto result = evaluate(*best, *data, Split::kTest, options.stop);
    if (!result) {
      outcome.finished = false;
      return;
    }
    note_skipped(observer);
    outcome.test = result->values;
    add_metric("test", *result, observer);
  }
  if (!gnuplot_exists()) {
    observer.note("gnuplot is not installed: no loss.png");
    return;
  }
  try {
    plot_runs({folder.path()}, folder.plot());
  } catch (const Error& error) {
    observer.note(error.what());  // the run itself is whole
  }
}

void Trainer::Run::add_metric(const char* split, double loss, MetricValues values, double rate,
                              TrainObserver& observer) {
  const Metric metric{state.step,
                      split,
                      loss,
                      std::move(values),
                      tokens_at(state.position),
                      rate,
                      learning_rate(recipe.train, state.step),
                      seconds()};
  metrics->append(metric);
  observer.metric(metric, recipe.train.steps);
}

void Trainer::Run::add_metric(const char* split, const Evaluation& result, TrainObserver& observer) {
  add_metric(split, result.loss, result.values, static_cast<double>(result.predicted) / std::max(1e-9, result.seconds),
             observer);
}

std::string Trainer::Run::out_of_memory() const {
  return "train: step " + std::to_string(state.step + 1) + ": out of memory on " + device.str() + "; " +
         last_checkpoint() +
         "; a lower train.batch (with a higher train.accumulate), train.chunk, model.context, model.layers or "
         "model.channels takes less" +
         (recipe.train.precision == "f32" ? ", and so does train.precision = \"bf16\"" : "");
}

std::string Trainer::Run::last_checkpoint() const {
  return saved_step < 0
             ? "there is no checkpoint yet"
             : "the last good checkpoint is step " + std::to_string(saved_step) + " in " + folder.checkpoint().string();
}

void Trainer::Run::require_finite_weights() const {
  for (const torch::Tensor& flat : {optimizer->weight(), optimizer->average()}) {
    const auto name = flat.defined() ? first_non_finite(*optimizer, flat) : std::nullopt;
    if (!name) continue;
    throw Error("train: step " + std::to_string(state.step) + ": the weights are not finite, first in " + *name + "; " +
                last_checkpoint() + "; a lower train.lr may help");
  }
}

Trainer::Trainer(Recipe recipe, TrainOptions options) : run_(std::make_unique<Run>(std::move(recipe), options)) {}
Trainer::~Trainer() = default;
TrainOutcome Trainer::run(TrainObserver& observer) { return run_->run(observer); }

}  // namespace aft

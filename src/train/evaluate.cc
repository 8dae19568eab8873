#include "train/evaluate.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <utility>
#include <vector>

#include "aft/error.h"
#include "aft/runtime/evaluate.h"
#include "config/architecture.h"
#include "data/text.h"
#include "runtime/allowed_cpus.h"
#include "train/device.h"
#include "train/plain_errors.h"
#include "train/task.h"
#include "train/training_step.h"

namespace aft {
namespace {

/// Positions of one forward: bounds the memory for any context. A GPU needs more of them to have enough to do.
int64_t positions_of(c10::Device device) { return device.is_cpu() ? 4096 : 32768; }

/// Sums over the targets of a batch, f64 [3] on the device: -ln p, and those that are correct and among the five best.
torch::Tensor score_of(Model& model, const Task& task, const Sample& sample) {
  const auto sums = [&](const torch::Tensor& logits, const torch::Tensor& targets) {
    const auto flat = logits.reshape({targets.numel(), logits.size(-1)});
    const auto wanted = targets.reshape(-1);
    // Summed in f64: there are many.
    const auto nats = at::cross_entropy_loss(flat, wanted, {}, at::Reduction::None).to(torch::kFloat64).sum();
    if (!task.counts_correct) return torch::stack({nats, torch::zeros_like(nats), torch::zeros_like(nats)});
    return torch::stack({nats, count_correct(flat, wanted, 1), count_correct(flat, wanted, 5)});
  };
  const int64_t most = positions_of(sample.input.device());
  const int64_t length = sample.targets.dim() > 1 ? sample.targets.size(1) : 1;
  if (length <= most) return sums(model.forward(sample.input), sample.targets);
  torch::Tensor sum;
  auto state = model.initial_state(sample.input.size(0));
  for (int64_t begin = 0; begin < length; begin += most) {
    torch::Tensor logits;
    const int64_t size = std::min(most, length - begin);
    std::tie(logits, state) = model.forward_with_state(sample.input.narrow(1, begin, size), state);
    const auto part = sums(logits, sample.targets.narrow(1, begin, size));
    sum = sum.defined() ? sum + part : part;
  }
  return sum;
}

/// The examples from `begin` on that have one length, at most `most`, as they are.
std::vector<Visit> alike(const DataSet& data, Split split, int64_t begin, int64_t most) {
  const int64_t end = std::min(data.size(split), begin + most);
  std::vector<Visit> visits;
  for (int64_t next = begin; next < end && data.bytes(split, next) == data.bytes(split, begin); ++next) {
    visits.push_back({next, std::nullopt});
  }
  return visits;
}

Split split_named(const std::string& name) {
  for (const Split split : {Split::kTrain, Split::kValid, Split::kTest}) {
    if (name == name_of(split)) return split;
  }
  throw Error("--split: expected train, valid or test, got " + name);
}

/// The data that the options name, and which of it to take.
std::pair<std::unique_ptr<DataSet>, Split> data_of(const std::filesystem::path& checkpoint, const ModelConfig& model,
                                                   const EvaluateOptions& options) {
  std::error_code error;
  const std::filesystem::path recipe = checkpoint / "recipe.toml";
  const bool has_recipe = std::filesystem::exists(recipe, error);
  if (!options.data.empty() && model.model == "byte_lm") {
    DataSplits whole;
    whole.valid = Bytes::load(options.data);
    runtime::require_predicted_bytes(whole.valid.size(), model.context);
    return {std::make_unique<TextData>(std::move(whole), model.context), Split::kValid};
  }
  if (options.data.empty() && !has_recipe) {
    throw Error("--data: expected a file or folder, as " + checkpoint.string() + " is not a run folder");
  }
  DataConfig config = has_recipe ? load_data_config(recipe) : DataConfig();
  if (!options.data.empty()) config.path = options.data;
  if (!options.format.empty()) config.format = options.format;
  if (model.model != "byte_lm" && config.format == "bytes") {
    throw Error("--format: expected cifar10, idx or folder, the form of the images in --data");
  }
  const Split split = split_named(options.split);
  auto data = task_of(model).load(config, model);
  if (data->size(split) == 0) {
    throw Error("--split " + options.split + ": the data of " + checkpoint.string() +
                " have none; give another split, or --data");
  }
  return {std::move(data), split};
}

}  // namespace

std::optional<Evaluation> evaluate(Model& model, const DataSet& data, Split split, const std::atomic<bool>* stop) {
  const Task& task = task_of(model.config);
  const torch::NoGradGuard no_grad;
  const bool was_training = model.module().is_training();
  model.module().eval();
  const auto began = std::chrono::steady_clock::now();
  const c10::Device device = model.module().parameters().front().device();
  const int64_t batch = std::max<int64_t>(1, positions_of(device) / positions(model.config));
  auto sum = torch::zeros({3}, torch::TensorOptions(torch::kFloat64).device(device));
  Evaluation result;
  Score score;
  for (int64_t begin = 0; begin < data.size(split);) {
    if (stop && *stop) {
      model.module().train(was_training);
      return std::nullopt;
    }
    const std::vector<Visit> visits = alike(data, split, begin, batch);
    const auto count = static_cast<int64_t>(visits.size());
    const Sample sample = task.sample(model.config, read_batch(data, split, visits, !device.is_cpu()).to(device));
    if (sample.targets.numel() > 0) sum += score_of(model, task, sample);
    score.targets += sample.targets.numel();
    result.bytes += count * data.bytes(split, begin);
    begin += count;
  }
  model.module().train(was_training);
  if (score.targets == 0)
    throw Error("data: expected something to predict, got " + std::to_string(result.bytes) + " bytes");
  const auto sums = sum.cpu();
  score.nats = sums[0].item<double>();
  score.correct = static_cast<int64_t>(sums[1].item<double>());
  score.correct_5 = static_cast<int64_t>(sums[2].item<double>());
  result.loss = score.nats / static_cast<double>(score.targets);
  result.values = metrics_of(task, score);
  result.unit = task.unit;
  result.predicted = score.targets;
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return result;
}

void use_threads(int64_t threads) { at::set_num_threads(static_cast<int>(threads > 0 ? threads : allowed_cpus())); }

Evaluation evaluate_checkpoint(const std::filesystem::path& checkpoint, const EvaluateOptions& options) {
  const c10::Device device = find_device("--device", options.device);
  use_threads(options.threads);
  return with_plain_errors(
      [&] {
        const ModelPtr model = load_model(checkpoint, options.size);
        const auto [data, split] = data_of(checkpoint, model->config, options);
        model->module().to(device);
        Evaluation result = *evaluate(*model, *data, split);
        result.skipped = data->skipped();
        return result;
      },
      [&] {
        return "eval: out of memory on " + device.str() + (device.is_cpu() ? "" : "; --device cpu may have more");
      });
}

ModelPtr make_model(const Recipe& recipe, bool with_init) {
  ModelPtr model = make_model(recipe.model);
  model->initialise(static_cast<uint64_t>(recipe.train.seed));
  if (with_init && !recipe.train.init.empty()) load_weights(*model, recipe.train.init, recipe.train.init_skip);
  return model;
}

void write_untrained_model(const Recipe& recipe, const std::filesystem::path& path) {
  with_plain_errors([&] { save_model(*make_model(recipe, true), path); },
                    [] { return "init: out of memory; a smaller model takes less: model.layers, model.channels"; });
}

}  // namespace aft

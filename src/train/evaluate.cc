#include "train/evaluate.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <numbers>

#include "aft/runtime/evaluate.h"
#include "runtime/allowed_cpus.h"
#include "train/device.h"
#include "train/plain_errors.h"

namespace aft {
namespace {

/// Positions of one forward: bounds the memory for any context. A GPU needs more of them to have enough to do.
int64_t positions_of(c10::Device device) { return device.is_cpu() ? 4096 : 32768; }

/// Sum of -ln p over the bytes after the first of the `count` windows of `length` bytes that `text` holds: an f64
/// scalar on the device.
torch::Tensor negative_log_likelihood(ByteLM& model, std::vector<uint8_t> text, int64_t count, int64_t length,
                                      c10::Device device) {
  const auto windows = torch::from_blob(text.data(), {count, length}, torch::kUInt8).to(device).to(torch::kInt64);
  const auto loss = [&](const torch::Tensor& logits, int64_t begin) {
    const auto targets = windows.narrow(1, begin + 1, logits.size(1)).reshape(-1);
    const auto flat = logits.reshape({targets.size(0), logits.size(2)});
    // Summed in f64: a text has many bytes.
    return at::cross_entropy_loss(flat, targets, {}, at::Reduction::None).to(torch::kFloat64).sum();
  };
  const int64_t positions = positions_of(device);
  if (length - 1 <= positions) return loss(model->forward(windows.narrow(1, 0, length - 1)), 0);
  auto sum = torch::zeros({}, torch::TensorOptions(torch::kFloat64).device(device));
  auto state = model->initial_state(count);
  for (int64_t begin = 0; begin < length - 1; begin += positions) {
    torch::Tensor logits;
    const int64_t size = std::min(positions, length - 1 - begin);
    std::tie(logits, state) = model->forward_with_state(windows.narrow(1, begin, size), state);
    sum += loss(logits, begin);
  }
  return sum;
}

}  // namespace

std::optional<Evaluation> evaluate(ByteLM& model, const Bytes& text, const std::atomic<bool>* stop) {
  const int64_t bytes = text.size();
  const int64_t context = model->config.context;
  Evaluation result;
  result.bytes = bytes;
  result.predicted = runtime::require_predicted_bytes(bytes, context);
  const torch::NoGradGuard no_grad;
  const bool was_training = model->is_training();
  model->eval();
  const auto began = std::chrono::steady_clock::now();
  const c10::Device device = model->parameters().front().device();
  const int64_t batch = std::max<int64_t>(1, positions_of(device) / context);
  auto sum = torch::zeros({}, torch::TensorOptions(torch::kFloat64).device(device));
  for (int64_t begin = 0; begin < bytes;) {
    if (stop && *stop) {
      model->train(was_training);
      return std::nullopt;
    }
    const int64_t whole = std::min(batch, (bytes - begin) / context);
    const int64_t count = std::max<int64_t>(1, whole);
    const int64_t length = whole > 0 ? context : bytes - begin;
    if (length > 1) sum += negative_log_likelihood(model, text.read(begin, count * length), count, length, device);
    begin += count * length;
  }
  model->train(was_training);
  result.bits_per_byte = sum.item<double>() / std::numbers::ln2 / static_cast<double>(result.predicted);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return result;
}

void use_threads(int64_t threads) { at::set_num_threads(static_cast<int>(threads > 0 ? threads : allowed_cpus())); }

Evaluation evaluate_checkpoint(const std::filesystem::path& checkpoint, const Bytes& text,
                               const EvaluateOptions& options) {
  const c10::Device device = find_device("--device", options.device);
  use_threads(options.threads);
  return with_plain_errors(
      [&] {
        ByteLM model = load_model(checkpoint);
        model->to(device);
        return *evaluate(model, text);
      },
      [&] {
        return "eval: out of memory on " + device.str() + (device.is_cpu() ? "" : "; --device cpu may have more");
      });
}

ByteLM make_model(const Recipe& recipe, bool with_init) {
  ByteLM model(recipe.model);
  model->initialise(static_cast<uint64_t>(recipe.train.seed));
  if (with_init && !recipe.train.init.empty()) {
    load_weights(model, recipe.train.init, recipe.train.init_skip);
  }
  return model;
}

void write_untrained_model(const Recipe& recipe, const std::filesystem::path& path) {
  with_plain_errors([&] { save_model(make_model(recipe, true), path); },
                    [] { return "init: out of memory; a smaller model takes less: model.layers, model.channels"; });
}

}  // namespace aft

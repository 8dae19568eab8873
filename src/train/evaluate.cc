#include "train/evaluate.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <numbers>
#include <thread>

#include "aft/error.h"

namespace aft {
namespace {

constexpr int64_t kPositions = 4096;  // positions of one forward: bounds the memory for any context

/// Sum of -ln p over the bytes after the first of `count` windows of `length` bytes that follow each other in `text`.
double negative_log_likelihood(ByteLM& model, const uint8_t* text, int64_t count, int64_t length) {
  const auto windows = torch::from_blob(const_cast<uint8_t*>(text), {count, length}, torch::kUInt8).to(torch::kInt64);
  const auto loss = [&](const torch::Tensor& logits, int64_t begin) {
    const auto targets = windows.narrow(1, begin + 1, logits.size(1)).reshape(-1);
    const auto flat = logits.reshape({targets.size(0), logits.size(2)});
    // Summed in f64: a text has many bytes.
    return at::cross_entropy_loss(flat, targets, {}, at::Reduction::None).to(torch::kFloat64).sum().item<double>();
  };
  if (length - 1 <= kPositions) return loss(model->forward(windows.narrow(1, 0, length - 1)), 0);
  double sum = 0;
  auto state = model->initial_state(count);
  for (int64_t begin = 0; begin < length - 1; begin += kPositions) {
    torch::Tensor logits;
    const int64_t size = std::min(kPositions, length - 1 - begin);
    std::tie(logits, state) = model->forward_with_state(windows.narrow(1, begin, size), state);
    sum += loss(logits, begin);
  }
  return sum;
}

}  // namespace

std::optional<Evaluation> evaluate(ByteLM& model, std::span<const uint8_t> text, const std::atomic<bool>* stop) {
  const torch::NoGradGuard no_grad;
  const bool was_training = model->is_training();
  model->eval();
  const auto began = std::chrono::steady_clock::now();
  const auto bytes = static_cast<int64_t>(text.size());
  const int64_t context = model->config.context;
  const int64_t batch = std::max<int64_t>(1, kPositions / context);
  double sum = 0;
  Evaluation result;
  result.bytes = bytes;
  for (int64_t begin = 0; begin < bytes;) {
    if (stop && *stop) {
      model->train(was_training);
      return std::nullopt;
    }
    const int64_t whole = std::min(batch, (bytes - begin) / context);
    const int64_t count = std::max<int64_t>(1, whole);
    const int64_t length = whole > 0 ? context : bytes - begin;
    if (length > 1) sum += negative_log_likelihood(model, text.data() + begin, count, length);
    result.predicted += count * (length - 1);
    begin += count * length;
  }
  model->train(was_training);
  if (result.predicted > 0) result.bits_per_byte = sum / std::numbers::ln2 / static_cast<double>(result.predicted);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  return result;
}

void use_threads(int64_t threads) {
  at::set_num_threads(threads > 0 ? static_cast<int>(threads)
                                  : static_cast<int>(std::max(1U, std::thread::hardware_concurrency())));
}

std::filesystem::path find_model_file(const std::filesystem::path& checkpoint) {
  std::error_code error;
  if (!std::filesystem::is_directory(checkpoint, error)) return checkpoint;
  for (const char* name : {"model.safetensors", "checkpoint.safetensors"}) {
    if (std::filesystem::exists(checkpoint / name, error)) return checkpoint / name;
  }
  throw Error(checkpoint.string() + ": holds no model.safetensors; give a run folder or a model file");
}

Evaluation evaluate_checkpoint(const std::filesystem::path& checkpoint, std::span<const uint8_t> text,
                               int64_t threads) {
  use_threads(threads);
  ByteLM model = load_model(find_model_file(checkpoint));
  return *evaluate(model, text);
}

void write_untrained_model(const Recipe& recipe, const std::filesystem::path& path) {
  ByteLM model(recipe.model);
  model->initialise(static_cast<uint64_t>(recipe.train.seed));
  save_model(model, path);
}

}  // namespace aft

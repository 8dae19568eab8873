#include "aft/runtime/session.h"

#include <algorithm>
#include <string>

#include "aft/error.h"
#include "config/architecture.h"
#include "runtime/linear.h"
#include "runtime/mixer/mixer.h"
#include "runtime/weights.h"

namespace aft::runtime {

struct Session::Parts {
  static constexpr int64_t kPass = 512;  // tokens of one pass: enough for the matrix products, small enough for a cache

  Parts(const Model& model, std::shared_ptr<ThreadPool> threads, int64_t texts)
      : weights(model.weights()), pool(std::move(threads)), batch(texts) {
    if (batch < 1) throw Error("batch: expected at least 1 text, got " + std::to_string(batch));
    for (const Block& block : weights->blocks) mixers.push_back(make_mixer(*weights, block, batch));
    logits.resize(static_cast<size_t>(batch * weights->config.vocabulary));
  }

  /// Positions of each text that one pass takes.
  [[nodiscard]] int64_t pass_time() const { return std::max<int64_t>(1, kPass / batch); }

  /// One position at a time, as texts are written: what is written then depends on no other text of the batch.
  static Rows rows_of(int64_t count) { return count == 1 ? Rows::kOneByOne : Rows::kAsIsFastest; }

  int64_t check(int64_t count) const {
    if (count == 0 || count % batch != 0) {
      throw Error("tokens: expected a positive multiple of the batch of " + std::to_string(batch) + ", got " +
                  std::to_string(count));
    }
    const int64_t time = count / batch;
    const int64_t context = positions(weights->config);
    if (time > context - position) {
      throw Error("tokens: position " + std::to_string(position) + " and " + std::to_string(time) +
                  " more pass the end of the model's context of " + std::to_string(context) +
                  "; reset the session and read again what should be remembered");
    }
    return time;
  }

  /// Makes room for `rows` positions in the buffers of a pass.
  void reserve(int64_t rows) {
    const ModelConfig& c = weights->config;
    const auto grow = [&](std::vector<float>& buffer, int64_t width) {
      if (buffer.size() < static_cast<size_t>(rows * width)) buffer.resize(static_cast<size_t>(rows * width));
    };
    grow(x, c.channels);
    grow(normal, c.channels);
    grow(mixed, c.channels);
    grow(qkv, qkv_channels(c));
    grow(hidden, c.mlp_channels);
  }

  /// Positions [begin, begin + count) of tokens [B, time] through all blocks: leaves x [B, count, d].
  template <typename Token>
  void run_blocks(std::span<const Token> tokens, int64_t time, int64_t begin, int64_t count) {
    const int64_t d = weights->config.channels;
    const int64_t rows = batch * count;
    const Rows how = rows_of(count);
    reserve(rows);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t t = row % count;
      const float* token = weights->token + tokens[static_cast<size_t>((row / count) * time + begin + t)] * d;
      const float* place = weights->position + (position + t) * d;
      for (int64_t c = 0; c < d; ++c) x[static_cast<size_t>(row * d + c)] = token[c] + place[c];
    }
    for (size_t i = 0; i < mixers.size(); ++i) {
      const Block& block = weights->blocks[i];
      apply(block.mixer_norm, x.data(), rows, d, normal.data(), *pool);
      apply(block.qkv, normal.data(), rows, how, After::kNothing, qkv.data(), *pool);
      mixers[i]->forward(qkv.data(), count, mixed.data(), *pool);
      apply(block.output, mixed.data(), rows, how, After::kAddToOld, x.data(), *pool);
      apply(block.mlp_norm, x.data(), rows, d, normal.data(), *pool);
      apply(block.up, normal.data(), rows, how, After::kGelu, hidden.data(), *pool);
      apply(block.down, hidden.data(), rows, how, After::kAddToOld, x.data(), *pool);
    }
    position += count;
  }

  /// Logits of the last of `count` positions that x holds: [B, vocabulary].
  void last_logits(int64_t count) {
    const int64_t d = weights->config.channels;
    for (int64_t b = 0; b < batch && count > 1; ++b) {
      std::copy_n(x.begin() + ((b + 1) * count - 1) * d, d, x.begin() + b * d);
    }
    apply(weights->norm, x.data(), batch, d, normal.data(), *pool);
    apply(weights->head, normal.data(), batch, rows_of(count), After::kNothing, logits.data(), *pool);
  }

  std::shared_ptr<const Weights> weights;
  std::shared_ptr<ThreadPool> pool;
  int64_t batch;
  int64_t position = 0;
  std::vector<std::unique_ptr<Mixer>> mixers;
  std::vector<float> x;       // [rows, d], the residual stream
  std::vector<float> normal;  // [rows, d]
  std::vector<float> qkv;     // [rows, qkv channels]
  std::vector<float> mixed;   // [rows, d]
  std::vector<float> hidden;  // [rows, mlp_channels]
  std::vector<float> logits;  // [B, vocabulary]
};

Session::Session(const Model& model, std::shared_ptr<ThreadPool> pool, int64_t batch)
    : parts_(std::make_unique<Parts>(model, std::move(pool), batch)) {}
Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

template <typename Token>
std::span<const float> Session::read(std::span<const Token> tokens) {
  Parts& p = *parts_;
  const int64_t time = p.check(static_cast<int64_t>(tokens.size()));
  int64_t count = 0;
  for (int64_t begin = 0; begin < time; begin += count) {
    count = std::min(p.pass_time(), time - begin);
    p.run_blocks(tokens, time, begin, count);
  }
  p.last_logits(count);
  return p.logits;
}

std::span<const float> Session::prefill(std::span<const uint8_t> tokens) { return read(tokens); }

std::span<const float> Session::start() {
  const ModelConfig& config = parts_->weights->config;
  if (token_rows(config) == config.vocabulary || parts_->position != 0) {
    throw Error("start: expected position 0 of a model with a start token (pixel_lm), got position " +
                std::to_string(parts_->position) + " of a " + config.model);
  }
  const std::vector<int32_t> tokens(static_cast<size_t>(parts_->batch), static_cast<int32_t>(config.vocabulary));
  return read<int32_t>(tokens);
}

std::span<const float> Session::step(std::span<const uint8_t> tokens) {
  if (static_cast<int64_t>(tokens.size()) != parts_->batch) {
    throw Error("tokens: expected one for each of " + std::to_string(parts_->batch) + " texts, got " +
                std::to_string(tokens.size()));
  }
  return prefill(tokens);
}

void Session::prefill_all(std::span<const uint8_t> tokens, std::span<float> logits) {
  Parts& p = *parts_;
  const int64_t time = p.check(static_cast<int64_t>(tokens.size()));
  const int64_t d = p.weights->config.channels;
  const int64_t vocabulary = p.weights->config.vocabulary;
  if (static_cast<int64_t>(logits.size()) != p.batch * time * vocabulary) {
    throw Error("logits: expected room for " + std::to_string(p.batch * time * vocabulary) + ", got " +
                std::to_string(logits.size()));
  }
  int64_t count = 0;
  for (int64_t begin = 0; begin < time; begin += count) {
    count = std::min(p.pass_time(), time - begin);
    p.run_blocks(tokens, time, begin, count);
    apply(p.weights->norm, p.x.data(), p.batch * count, d, p.normal.data(), *p.pool);
    for (int64_t b = 0; b < p.batch; ++b) {
      apply(p.weights->head, p.normal.data() + b * count * d, count, Rows::kAsIsFastest, After::kNothing,
            logits.data() + (b * time + begin) * vocabulary, *p.pool);
    }
  }
}

void Session::reset() {
  parts_->position = 0;
  for (const auto& mixer : parts_->mixers) mixer->reset();
}

int64_t Session::position() const { return parts_->position; }
int64_t Session::context() const { return positions(parts_->weights->config); }
int64_t Session::batch() const { return parts_->batch; }

int64_t Session::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& mixer : parts_->mixers) bytes += mixer->state_bytes();
  return bytes;
}

}  // namespace aft::runtime

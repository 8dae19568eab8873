#include "aft/runtime/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "aft/error.h"
#include "aft/runtime/session.h"

namespace aft::runtime {
namespace {

constexpr int64_t kRows = 512;  // windows are read side by side up to this many positions

/// -log2 of the probability that the softmax of `logits` gives to `byte`.
double bits(const float* logits, int64_t count, uint8_t byte) {
  const float max = *std::max_element(logits, logits + count);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(static_cast<double>(logits[i] - max));
  return (std::log(sum) - static_cast<double>(logits[byte] - max)) / std::log(2.0);
}

/// Total bits of the bytes after the first of session.batch() windows of `length` bytes that follow each other.
double window_bits(Session& session, const uint8_t* text, int64_t length, int64_t vocabulary, ThreadPool& pool) {
  constexpr int64_t kPiece = 512;  // positions read at once: bounds the logits, for any context
  const int64_t batch = session.batch();
  double total = 0;
  std::vector<uint8_t> tokens;
  std::vector<float> logits;
  std::vector<double> costs;
  session.reset();
  for (int64_t begin = 0; begin < length - 1; begin += kPiece) {
    const int64_t time = std::min(kPiece, length - 1 - begin);
    tokens.clear();
    for (int64_t b = 0; b < batch; ++b) {
      const uint8_t* row = text + b * length + begin;
      tokens.insert(tokens.end(), row, row + time);
    }
    logits.resize(static_cast<size_t>(batch * time * vocabulary));
    costs.resize(static_cast<size_t>(batch * time));
    session.prefill_all(tokens, logits);
    pool.run(batch * time, [&](int64_t i) {
      const uint8_t next = text[(i / time) * length + begin + i % time + 1];
      costs[static_cast<size_t>(i)] = bits(&logits[static_cast<size_t>(i * vocabulary)], vocabulary, next);
    });
    total += std::accumulate(costs.begin(), costs.end(), 0.0);
  }
  return total;
}

}  // namespace

int64_t predicted_bytes(int64_t bytes, int64_t context) {
  return bytes / context * (context - 1) + std::max<int64_t>(0, bytes % context - 1);
}

int64_t require_predicted_bytes(int64_t bytes, int64_t context) {
  const int64_t predicted = predicted_bytes(bytes, context);
  if (predicted > 0) return predicted;
  throw Error("text: expected at least 2 bytes in a window, so that one is predicted; got " + std::to_string(bytes) +
              " bytes and a context of " + std::to_string(context));
}

Evaluation evaluate(const Model& model, std::span<const uint8_t> text, const std::shared_ptr<ThreadPool>& pool,
                    const std::function<void(int64_t)>& progress) {
  model.require("byte_lm", "eval");
  const int64_t context = positions(model.config());
  const int64_t vocabulary = model.config().vocabulary;
  Evaluation result;
  result.bytes = static_cast<int64_t>(text.size());
  const int64_t windows = result.bytes / context;
  const int64_t rest = result.bytes % context;
  result.predicted = require_predicted_bytes(result.bytes, context);
  double total = 0;
  int64_t done = 0;
  const auto read = [&](Session& session, int64_t length) {
    total += window_bits(session, text.data() + done, length, vocabulary, *pool);
    done += session.batch() * length;
    if (progress) progress(done);
  };
  const int64_t batch = std::clamp<int64_t>(kRows / context, 1, std::max<int64_t>(1, windows));
  if (windows >= batch) {
    Session session(model, pool, batch);
    for (int64_t i = 0; i < windows / batch; ++i) read(session, context);
  }
  Session session(model, pool);
  for (int64_t i = 0; i < windows % batch; ++i) read(session, context);
  if (rest > 0) read(session, rest);
  result.bits_per_byte = total / static_cast<double>(result.predicted);
  return result;
}

}  // namespace aft::runtime

#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "aft/runtime/model.h"
#include "aft/runtime/thread_pool.h"

namespace aft::runtime {

/// A model reading `batch` texts side by side, from position 0. Its memory does not grow with the position for the AFT
/// mixers; for attention it is the cache of keys and values. Sessions may share a pool, but not run at the same time on
/// it. Logits stay valid until the next call. Past the model's context every call throws aft::Error and changes
/// nothing.
class Session {
 public:
  Session(const Model& model, std::shared_ptr<ThreadPool> pool, int64_t batch = 1);
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  /// Reads tokens [B, T], T >= 1, in passes of a few hundred. Returns the logits after the last: [B, vocabulary].
  std::span<const float> prefill(std::span<const uint8_t> tokens);

  /// Reads the start token, for models that have one (pixel_lm): what stands before the first value. At position 0.
  /// Returns the logits of the first value: [B, vocabulary].
  std::span<const float> start();

  /// Reads one token a text: [B]. Returns the logits after it: [B, vocabulary]. A text that is read from its beginning
  /// by steps alone, after start() where there is one, has the same bits in any batch and with any number of threads.
  std::span<const float> step(std::span<const uint8_t> tokens);

  /// prefill() that writes the logits after every token: [B, T, vocabulary].
  void prefill_all(std::span<const uint8_t> tokens, std::span<float> logits);

  /// Back to position 0.
  void reset();

  [[nodiscard]] int64_t position() const;
  [[nodiscard]] int64_t context() const;
  [[nodiscard]] int64_t batch() const;
  /// Bytes that the layers remember at this position.
  [[nodiscard]] int64_t state_bytes() const;

 private:
  struct Parts;
  template <typename Token>
  std::span<const float> read(std::span<const Token> tokens);

  std::unique_ptr<Parts> parts_;
};

/// One text of any length. When the context is full, the session starts anew by reading the last half of the context
/// again and goes on, so that the cost of a token stays constant on average. The windows depend on the position alone:
/// feeding in any pieces gives the same windows.
class RollingSession {
 public:
  RollingSession(const Model& model, std::shared_ptr<ThreadPool> pool);

  /// Reads bytes, at least one; returns the logits after the last: [vocabulary].
  std::span<const float> feed(std::span<const uint8_t> bytes);

  /// How many of the first bytes of a text of `length` are forgotten once it is read, so that feeding it without them
  /// leads to the same. A text can be read with bounded memory by dropping them now and then.
  static int64_t surplus(int64_t length, int64_t context);

  /// Bytes fed in all.
  [[nodiscard]] int64_t length() const { return start_ + session_.position(); }

 private:
  Session session_;
  std::vector<uint8_t> window_;  // what the session has read
  int64_t start_ = 0;            // bytes before the window
};

}  // namespace aft::runtime

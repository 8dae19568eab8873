#include <algorithm>

#include "aft/error.h"
#include "aft/runtime/session.h"

namespace aft::runtime {

RollingSession::RollingSession(const Model& model, std::shared_ptr<ThreadPool> pool)
    : session_(model, std::move(pool)) {}

std::span<const float> RollingSession::feed(std::span<const uint8_t> bytes) {
  if (bytes.empty()) throw Error("bytes: expected at least one to read, got none");
  const int64_t context = session_.context();
  window_.insert(window_.end(), bytes.begin(), bytes.end());
  const auto held = static_cast<int64_t>(window_.size());
  if (held <= context) return session_.prefill(bytes);

  // A full window drops all but its last half, as often as the bytes overflow it; only the last window is read.
  const int64_t stride = context - context / 2;
  const int64_t dropped = (held - context + stride - 1) / stride * stride;
  window_.erase(window_.begin(), window_.begin() + dropped);
  start_ += dropped;
  session_.reset();
  return session_.prefill(window_);
}

}  // namespace aft::runtime

#include "aft/error.h"
#include "aft/runtime/session.h"

namespace aft::runtime {

RollingSession::RollingSession(const Model& model, std::shared_ptr<ThreadPool> pool)
    : session_(model, std::move(pool)) {}

int64_t RollingSession::surplus(int64_t length, int64_t context) {
  // A full window drops all but its last half, as often as the bytes overflow it.
  if (length <= context) return 0;
  const int64_t stride = context - context / 2;
  return (length - context + stride - 1) / stride * stride;
}

std::span<const float> RollingSession::feed(std::span<const uint8_t> bytes) {
  if (bytes.empty()) throw Error("bytes: expected at least one to read, got none");
  window_.insert(window_.end(), bytes.begin(), bytes.end());
  const int64_t dropped = surplus(static_cast<int64_t>(window_.size()), session_.context());
  if (dropped == 0) return session_.prefill(bytes);

  window_.erase(window_.begin(), window_.begin() + dropped);  // only the last window is read
  start_ += dropped;
  session_.reset();
  return session_.prefill(window_);
}

}  // namespace aft::runtime

#include "ops/common/scratch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace aft::ops {
namespace {

std::atomic<bool> poison{false};

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};
struct Buffer {
  std::unique_ptr<std::byte, Free> data;
  size_t bytes = 0;
};
thread_local Buffer buffer;

}  // namespace

Scratch::Scratch(size_t bytes) {
  if (bytes > buffer.bytes) {
    constexpr size_t kPage = 4096;
    const size_t rounded = (bytes + bytes / 4 + kPage - 1) / kPage * kPage;
    buffer.data.reset();
    buffer.bytes = 0;
    buffer.data.reset(static_cast<std::byte*>(std::aligned_alloc(64, rounded)));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.bytes = rounded;
  }
  if (poison.load(std::memory_order_relaxed)) std::memset(buffer.data.get(), 0xFF, buffer.bytes);  // 0xFFFF... is NaN
  next_ = buffer.data.get();
}

void scratch_set_poison(bool enabled) { poison = enabled; }

}  // namespace aft::ops

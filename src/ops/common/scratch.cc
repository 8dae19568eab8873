#include "ops/common/scratch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

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
thread_local Buffer workspace;  // empty while a Workspace lives

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;

// At least `bytes`, in whole pages of the given size.
Buffer allocate(size_t bytes, size_t page) {
  Buffer result;
  const size_t rounded = (bytes + page - 1) / page * page;
  result.data.reset(static_cast<std::byte*>(std::aligned_alloc(page, rounded)));
  if (result.data == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (page == kHugePage) madvise(result.data.get(), rounded, MADV_HUGEPAGE);
#endif
  result.bytes = rounded;
  return result;
}

void poison_if_asked(std::byte* data, size_t bytes) {
  if (bytes > 0 && poison.load(std::memory_order_relaxed)) std::memset(data, 0xFF, bytes);  // 0xFFFF... is NaN
}

}  // namespace

Scratch::Scratch(size_t bytes) {
  if (bytes > buffer.bytes) {
    buffer = {};
    buffer = allocate(bytes + bytes / 4, kPage);
  }
  poison_if_asked(buffer.data.get(), buffer.bytes);
  next_ = buffer.data.get();
}

Workspace::Workspace(size_t bytes) {
  Buffer mine = std::exchange(workspace, {});
  if (bytes > mine.bytes) {
    mine = {};
    // In huge pages, where the system has them: with small ones half the time of reading rows far apart goes into
    // finding their pages. What one thread takes for itself fits the caches, and threads are many.
    mine = allocate(bytes, bytes >= kHugePage / 8 ? kHugePage : kPage);
  }
  poison_if_asked(mine.data.get(), mine.bytes);
  bytes_ = mine.bytes;
  data_ = next_ = mine.data.release();
}

Workspace::~Workspace() {
  constexpr size_t kKept = size_t{64} << 20;
  Buffer mine;
  mine.data.reset(data_);
  mine.bytes = bytes_;
  if (bytes_ <= kKept && bytes_ > workspace.bytes) workspace = std::move(mine);
}

void scratch_set_poison(bool enabled) { poison = enabled; }

}  // namespace aft::ops

#include "ops/common/scratch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace aft::ops {
namespace {

std::atomic<bool> poison{false};

constexpr size_t kPage = 4096;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kSmallestBlock = size_t{64} << 10;
constexpr size_t kKept = size_t{64} << 20;  // of a thread, from call to call

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};
struct Block {
  std::unique_ptr<std::byte, Free> data;
  size_t bytes = 0;
};

Block allocate(size_t bytes) {
  // In huge pages, where the system has them: with small ones half the time of reading rows far apart goes into finding
  // their pages. What one task takes for itself fits the caches, and threads are many.
  const size_t page = bytes >= kHugePage ? kHugePage : kPage;
  Block block;
  block.bytes = (bytes + page - 1) / page * page;
  block.data.reset(static_cast<std::byte*>(std::aligned_alloc(page, block.bytes)));
  if (block.data == nullptr) throw std::bad_alloc();
#ifdef __linux__
  if (page == kHugePage) madvise(block.data.get(), block.bytes, MADV_HUGEPAGE);
#endif
  return block;
}

// A call that needs more than there is adds blocks; the next one gets it in one piece.
struct Stack {
  std::vector<Block> blocks;
  size_t block = 0, used = 0;  // the top: all blocks before this one are full
  size_t next_bytes = 0;       // of the first block, once there is none
  int64_t depth = 0;

  std::byte* take(size_t bytes) {
    // 64 bytes more: what follows a row of a power of two must not fall into the same sets of a cache.
    bytes = (bytes + 63) / 64 * 64 + 64;
    while (block < blocks.size() && blocks[block].bytes - used < bytes) {
      ++block;
      used = 0;
    }
    if (block == blocks.size()) blocks.push_back(allocate(std::max({bytes, next_bytes, kSmallestBlock})));
    std::byte* const p = blocks[block].data.get() + used;
    used += bytes;
    return p;
  }

  void end() {
    size_t total = 0;
    for (const Block& b : blocks) total += b.bytes;
    if (blocks.size() <= 1 && total <= kKept) return;
    blocks.clear();
    next_bytes = total <= kKept ? total : 0;
  }
};

thread_local Stack stack;

}  // namespace

Scratch::Scratch() : block_(stack.block), used_(stack.used) { ++stack.depth; }

Scratch::~Scratch() {
  stack.block = block_;
  stack.used = used_;
  if (--stack.depth == 0) stack.end();
}

std::byte* Scratch::take_bytes(size_t bytes) {
  std::byte* const p = stack.take(bytes);
  if (bytes > 0 && poison.load(std::memory_order_relaxed)) std::memset(p, 0xFF, bytes);  // 0xFFFF... is NaN
  return p;
}

void scratch_set_poison(bool enabled) { poison = enabled; }

}  // namespace aft::ops

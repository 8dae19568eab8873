#include "ops/common/redo.h"

#include <atomic>

namespace aft::ops {
namespace {

std::atomic<bool> enabled{true};

void add(int64_t& to, int64_t count) { std::atomic_ref(to).fetch_add(count, std::memory_order_relaxed); }

}  // namespace

void count_redone(RedoCount* counters, int64_t redone, int64_t total) {
  if (counters == nullptr) return;
  add(counters->redone, redone);
  add(counters->total, total);
}

void set_redo(bool on) { enabled = on; }
bool redo_enabled() { return enabled.load(std::memory_order_relaxed); }

}  // namespace aft::ops

#include "ops/common/redo.h"

#include <array>
#include <atomic>

namespace aft::ops {
namespace {

struct Counter {
  std::atomic<int64_t> redone{0}, total{0};

  RedoCount count() const { return {redone.load(), total.load()}; }
};

std::array<Counter, 3> counters;
std::atomic<bool> enabled{true};

Counter& counter_of(RedoFamily family) { return counters[static_cast<size_t>(family)]; }

}  // namespace

void count_redone(RedoFamily family, int64_t redone, int64_t total) {
  Counter& counter = counter_of(family);
  counter.redone.fetch_add(redone, std::memory_order_relaxed);
  counter.total.fetch_add(total, std::memory_order_relaxed);
}

RedoCount window_redo_count() { return counter_of(RedoFamily::kWindow).count(); }
RedoCount grid_redo_count() { return counter_of(RedoFamily::kGrid).count(); }
RedoCount full_redo_count() { return counter_of(RedoFamily::kFull).count(); }

RedoCount redo_count() {
  RedoCount sum;
  for (const Counter& counter : counters) {
    const RedoCount one = counter.count();
    sum.redone += one.redone;
    sum.total += one.total;
  }
  return sum;
}

void set_redo(bool on) { enabled = on; }
bool redo_enabled() { return enabled.load(std::memory_order_relaxed); }

}  // namespace aft::ops

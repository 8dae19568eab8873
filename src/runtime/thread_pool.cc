#include "aft/runtime/thread_pool.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "aft/error.h"

namespace aft::runtime {
namespace {

constexpr int64_t kMostThreads = 1024;
constexpr int kSpins = 4000;  // pauses, about 0.1 ms: longer than any gap inside a token

thread_local bool inside_region = false;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Waits while `value` is `old`: spins first, then sleeps. Returns the new value.
uint32_t wait_while(const std::atomic<uint32_t>& value, uint32_t old, int spins) {
  for (int i = 0; i < spins; ++i) {
    const uint32_t now = value.load(std::memory_order_acquire);
    if (now != old) return now;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
  return value.load(std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int64_t threads) {
  const auto machine = static_cast<int64_t>(std::max(1U, std::thread::hardware_concurrency()));
  if (threads == 0) threads = machine;
  if (threads < 1 || threads > kMostThreads) {
    throw Error("threads: expected a number from 1 to " + std::to_string(kMostThreads) +
                ", or 0 for all of the machine's, got " + std::to_string(threads));
  }
  // Where threads share a core, spinning takes it from the one that has work.
  spins_ = threads <= machine ? kSpins : 0;
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int64_t i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
  } catch (const std::system_error& e) {
    stop_.store(true);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (std::thread& worker : workers_) worker.join();
    throw Error("threads: " + std::to_string(threads) + " cannot be started: " + e.what());
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, const std::function<void(int64_t)>& body) {
  if (workers_.empty() || count <= 1 || inside_region) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  body_ = &body;
  count_ = count;
  next_.store(0, std::memory_order_relaxed);
  pending_.store(static_cast<uint32_t>(workers_.size()), std::memory_order_relaxed);
  epoch_.fetch_add(1, std::memory_order_release);
  epoch_.notify_all();
  work();
  while (const uint32_t left = pending_.load(std::memory_order_acquire)) wait_while(pending_, left, spins_);
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

ops::ParallelFor ThreadPool::parallel() {
  return {threads(), [this](int64_t count, const std::function<void(int64_t)>& body) { run(count, body); }};
}

void ThreadPool::work() {
  inside_region = true;
  while (true) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= count_) break;
    try {
      (*body_)(i);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      next_.store(count_, std::memory_order_relaxed);
    }
  }
  inside_region = false;
}

void ThreadPool::serve() {
  uint32_t seen = 0;
  while (true) {
    wait_while(epoch_, seen, spins_);
    ++seen;  // every worker takes part in every region, so none is ever skipped
    if (stop_.load(std::memory_order_relaxed)) return;
    work();
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
  }
}

}  // namespace aft::runtime

#include "aft/runtime/thread_pool.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "aft/error.h"
#include "runtime/allowed_cpus.h"

namespace aft::runtime {
namespace {

using std::chrono::microseconds;

constexpr int64_t kMostThreads = 1024;
constexpr microseconds kSpin(150);             // longer than any gap inside a token
constexpr microseconds kLostCore(100);         // an interrupt takes less, the time slice of another thread more
constexpr microseconds kShortestAlone(1'000);  // doubled whenever the next try fares no better
constexpr microseconds kLongestAlone(200'000);

thread_local bool inside_region = false;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int64_t threads) {
  const int64_t cpus = allowed_cpus();
  if (threads == 0) threads = std::min(cpus, kMostThreads);
  if (threads < 1 || threads > kMostThreads) {
    throw Error("threads: expected a number from 1 to " + std::to_string(kMostThreads) +
                ", or 0 for as many as the process has CPUs, got " + std::to_string(threads));
  }
  // Where threads share a core, spinning takes it from the one that has work.
  if (threads <= cpus) spin_ = kSpin;
  workers_.reserve(static_cast<size_t>(threads - 1));
  try {
    for (int64_t i = 1; i < threads; ++i) workers_.emplace_back([this] { serve(); });
  } catch (const std::system_error& e) {
    stop();
    throw SystemError("threads: " + std::to_string(threads) + " cannot be started: " + e.what() +
                      "; ask for fewer (--threads 1)");
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_.store(true, std::memory_order_relaxed);
  begun_.fetch_add(1, std::memory_order_release);
  begun_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t count, const std::function<void(int64_t)>& body) {
  if (workers_.empty() || count <= 1 || inside_region) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const Clock::time_point start = Clock::now();
  if (alone(start)) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
  const uint32_t ended = ended_by_worker_.load(std::memory_order_relaxed);
  body_ = &body;
  count_ = count;
  unfinished_.store(count, std::memory_order_relaxed);
  unclaimed_.store(count, std::memory_order_release);
  begun_.fetch_add(1, std::memory_order_release);
  begun_.notify_all();
  if (!work()) {
    const Clock::time_point done = Clock::now();
    wait_while(ended_by_worker_, ended);
    // Whoever has the last index lost its core on the way, unless it just takes as long as all that we did.
    if (Clock::now() - done > done - start + kLostCore) crowded_.store(true, std::memory_order_relaxed);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

/// Whether the caller does the region that begins now without the workers.
bool ThreadPool::alone(Clock::time_point now) {
  if (alone_) {
    if (now < alone_until_) return true;
    alone_ = false;
    crowded_.store(false, std::memory_order_relaxed);  // a worker that still spun when we left it
    return false;
  }
  if (!crowded_.load(std::memory_order_relaxed)) return false;
  const bool soon = now - alone_until_ < 2 * alone_for_;
  alone_for_ = soon ? std::min<Clock::duration>(2 * alone_for_, kLongestAlone) : kShortestAlone;
  alone_until_ = now + alone_for_;
  return alone_ = true;
}

ops::ParallelFor ThreadPool::parallel() {
  return {threads(), [this](int64_t count, const std::function<void(int64_t)>& body) { run(count, body); }};
}

/// Does indices of the region until none is left to take. Whether this thread was the one that finished the last.
bool ThreadPool::work() {
  inside_region = true;
  int64_t done = 0;
  int64_t left = unclaimed_.load(std::memory_order_acquire);
  while (left > 0) {
    if (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acquire)) continue;
    try {
      (*body_)(count_ - left);
    } catch (...) {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
      done += unclaimed_.exchange(0, std::memory_order_relaxed);
    }
    ++done;
    left = unclaimed_.load(std::memory_order_acquire);
  }
  inside_region = false;
  return done > 0 && unfinished_.fetch_sub(done, std::memory_order_acq_rel) == done;
}

void ThreadPool::serve() {
  uint32_t seen = 0;
  while (true) {
    wait_while(begun_, seen);
    seen = begun_.load(std::memory_order_acquire);
    if (stop_.load(std::memory_order_relaxed)) return;
    if (work()) {
      ended_by_worker_.fetch_add(1, std::memory_order_release);
      ended_by_worker_.notify_one();
    }
  }
}

/// Spins for a while, then sleeps. A jump of the clock shows that another thread had our core: then it sleeps at once.
void ThreadPool::wait_while(const std::atomic<uint32_t>& value, uint32_t old) {
  if (spin_ > Clock::duration()) {
    Clock::time_point last = Clock::now();
    const Clock::time_point end = last + spin_;
    while (value.load(std::memory_order_acquire) == old && last < end) {
      pause();
      const Clock::time_point now = Clock::now();
      if (now - last > kLostCore) {
        crowded_.store(true, std::memory_order_relaxed);
        break;
      }
      last = now;
    }
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace aft::runtime

#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "aft/ops/parallel.h"

namespace aft::runtime {

/// A fixed set of threads for many small regions: decoding one token takes about five a layer, some of a few
/// microseconds. So a waiting thread spins for a short while before it sleeps. The caller's thread is one of them, and
/// needs none of the others: a region ends when its last index is done, whoever was there to do it. Where other
/// processes want the same cores (a spinning thread lost its core, an index took far longer than the caller's own) the
/// caller goes on alone for a while, as with one thread, and then tries again.
class ThreadPool {
 public:
  /// `threads` >= 1 in all; 0: as many as the process has CPUs (src/runtime/allowed_cpus.h). More than 1024 throws
  /// aft::Error.
  explicit ThreadPool(int64_t threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int64_t threads() const { return static_cast<int64_t>(workers_.size()) + 1; }

  /// Calls body(i) once for every i in [0, count), each on some thread, and returns when all are done. The first
  /// exception of a body is thrown here once the others have ended; what had not begun by then is left out. A call from
  /// inside a body runs on that thread alone. One caller at a time.
  void run(int64_t count, const std::function<void(int64_t)>& body);

  /// The pool as operators take it; valid as long as the pool.
  [[nodiscard]] ops::ParallelFor parallel();

 private:
  using Clock = std::chrono::steady_clock;

  bool alone(Clock::time_point now);
  bool work();
  void serve();
  void wait_while(const std::atomic<uint32_t>& value, uint32_t old);
  void stop();

  std::vector<std::thread> workers_;
  Clock::duration spin_ = {};

  // Of the caller alone.
  bool alone_ = false;
  Clock::time_point alone_until_;
  Clock::duration alone_for_ = {};

  // The region. The caller fills it in, `unclaimed_` last; a thread takes an index by lowering that. A thread that has
  // taken one keeps the region from ending, and one that comes late finds nothing to take.
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  std::atomic<bool> stop_ = false;
  std::atomic<bool> crowded_ = false;                      // a thread has seen that the cores are wanted by others
  alignas(64) std::atomic<int64_t> unclaimed_ = 0;         // indices that no thread has taken
  alignas(64) std::atomic<int64_t> unfinished_ = 0;        // indices that are not done
  alignas(64) std::atomic<uint32_t> begun_ = 0;            // regions: what workers wait for
  alignas(64) std::atomic<uint32_t> ended_by_worker_ = 0;  // regions: what the caller waits for
};

}  // namespace aft::runtime

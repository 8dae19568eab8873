#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "aft/ops/parallel.h"

namespace aft::runtime {

/// A fixed set of threads for many small regions: decoding one token takes about five a layer, tens of microseconds
/// each. So the threads spin for a short while between regions before they sleep. The caller's thread is one of them.
class ThreadPool {
 public:
  /// `threads` >= 1 in all; 0: as many as the machine runs at once. More than 1024 throws aft::Error.
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
  void work();
  void serve();

  std::vector<std::thread> workers_;
  int spins_ = 0;

  // One region at a time: the caller fills these in and raises the epoch; each worker lowers `pending_` when it has
  // found nothing more to do.
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t count_ = 0;
  std::exception_ptr error_;
  std::mutex error_mutex_;
  std::atomic<bool> stop_ = false;
  alignas(64) std::atomic<int64_t> next_ = 0;
  alignas(64) std::atomic<uint32_t> epoch_ = 0;
  alignas(64) std::atomic<uint32_t> pending_ = 0;
};

}  // namespace aft::runtime

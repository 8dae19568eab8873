#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "aft/ops/parallel.h"

namespace aft::ops::test {

/// A ParallelFor on plain threads, started anew for every run. Thread i takes every n-th index; with an odd number of
/// threads backwards, since no result may depend on the order.
class Threads {
 public:
  explicit Threads(int64_t threads) : threads_(threads) {}

  ParallelFor parallel_for() {
    ParallelFor parallel;
    parallel.threads = threads_;
    parallel.run = [this](int64_t count, const std::function<void(int64_t)>& body) { run(count, body); };
    return parallel;
  }

  /// Most threads that worked in one run.
  int64_t most_at_once() const { return most_at_once_; }

 private:
  void run(int64_t count, const std::function<void(int64_t)>& body) {
    const int64_t n = std::min(threads_, count);
    std::mutex mutex;
    std::set<std::thread::id> ids;
    std::vector<std::thread> workers;
    for (int64_t i = 0; i < n; ++i) {
      workers.emplace_back([&, i] {
        for (int64_t index = i; index < count; index += n) body(threads_ % 2 == 1 ? count - 1 - index : index);
        const std::lock_guard lock(mutex);
        ids.insert(std::this_thread::get_id());
      });
    }
    for (std::thread& worker : workers) worker.join();
    most_at_once_ = std::max<int64_t>(most_at_once_, ids.size());
  }

  int64_t threads_;
  int64_t most_at_once_ = 0;
};

}  // namespace aft::ops::test

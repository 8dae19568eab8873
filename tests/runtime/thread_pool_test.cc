#include "aft/runtime/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <stdexcept>

#include "aft/error.h"

namespace aft::runtime {
namespace {

TEST(ThreadPool, EveryIndexOnceForAnyCountAndThreads) {
  for (const int64_t threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t count : {0, 1, 2, 3, 7, 8, 1000}) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(count));
      pool.run(count, [&](int64_t i) { ++calls[static_cast<size_t>(i)]; });
      for (const auto& number : calls) EXPECT_EQ(number, 1);
    }
  }
}

TEST(ThreadPool, ManySmallRegionsFollowEachOther) {
  ThreadPool pool(3);
  int64_t sum = 0;
  for (int64_t round = 0; round < 20'000; ++round) {
    std::atomic<int64_t> part = 0;
    pool.run(4, [&](int64_t i) { part += i + round; });
    sum += part;
  }
  EXPECT_EQ(sum, 20'000 * 6 + 4 * (20'000LL * 19'999 / 2));
}

TEST(ThreadPool, SleepingThreadsWakeUp) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));  // far longer than they spin
    std::atomic<int> calls = 0;
    pool.run(10, [&](int64_t) { ++calls; });
    EXPECT_EQ(calls, 10);
  }
}

TEST(ThreadPool, SeveralThreadsTakePart) {
  ThreadPool pool(3);
  std::mutex mutex;
  std::set<std::thread::id> seen;
  std::atomic<int> arrived = 0;
  // Each body waits for the other two: one thread alone could not finish.
  pool.run(3, [&](int64_t) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();
    const std::lock_guard lock(mutex);
    seen.insert(std::this_thread::get_id());
  });
  EXPECT_EQ(seen.size(), 3U);
}

TEST(ThreadPool, NestedRegionsRunOnTheSameThread) {
  ThreadPool pool(3);
  std::atomic<int> calls = 0;
  pool.run(5, [&](int64_t) {
    const auto outer = std::this_thread::get_id();
    pool.run(4, [&](int64_t) {
      EXPECT_EQ(std::this_thread::get_id(), outer);
      ++calls;
    });
  });
  EXPECT_EQ(calls, 20);
}

TEST(ThreadPool, AnExceptionReachesTheCallerAndThePoolGoesOn) {
  for (const int64_t threads : {1, 3}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 100; ++round) {
      EXPECT_THROW(pool.run(50,
                            [&](int64_t i) {
                              if (i % 7 == 3) throw std::runtime_error("no");
                            }),
                   std::runtime_error);
      std::atomic<int> calls = 0;
      pool.run(50, [&](int64_t) { ++calls; });
      EXPECT_EQ(calls, 50);
    }
  }
}

TEST(ThreadPool, NumberOfThreadsIsChecked) {
  EXPECT_THROW(ThreadPool(-1), Error);
  EXPECT_THROW(ThreadPool(1025), Error);
  EXPECT_GE(ThreadPool(0).threads(), 1);
}

TEST(ThreadPool, ServesOperators) {
  ThreadPool pool(2);
  const ops::ParallelFor parallel = pool.parallel();
  EXPECT_EQ(parallel.threads, 2);
  std::atomic<int64_t> sum = 0;
  parallel.run(10, [&](int64_t i) { sum += i; });
  EXPECT_EQ(sum, 45);
}

}  // namespace
}  // namespace aft::runtime

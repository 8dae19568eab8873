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
  using Clock = std::chrono::steady_clock;
  ThreadPool pool(3);
  std::mutex mutex;
  std::set<std::thread::id> seen;
  // Each body gives the others time to come. On a busy machine they need not: the caller may do without them.
  const auto give_up = Clock::now() + std::chrono::seconds(60);
  while (seen.size() < 3 && Clock::now() < give_up) {
    std::atomic<int> arrived = 0;
    pool.run(3, [&](int64_t) {
      ++arrived;
      const auto leave = Clock::now() + std::chrono::milliseconds(20);
      while (arrived < 3 && Clock::now() < leave) std::this_thread::yield();
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
    });
  }
  EXPECT_EQ(seen.size(), 3U);
}

// A region ends when its indices are done: not when every thread has come by. Here one thread is kept away.
TEST(ThreadPool, AThreadThatDoesNotComeIsNotWaitedFor) {
  ThreadPool pool(2);
  std::atomic<bool> held = false;
  std::atomic<bool> release = false;
  int rounds = 0, by_caller = 0;
  const auto caller = std::this_thread::get_id();
  pool.run(200, [&](int64_t) {
    if (std::this_thread::get_id() == caller) {
      const auto leave = std::chrono::steady_clock::now() + std::chrono::milliseconds(20);
      while (!held && std::chrono::steady_clock::now() < leave) std::this_thread::yield();
      ++by_caller;
      if (held) ++rounds;
      // At its last index at the latest, should the other thread have come too late for a hundred rounds.
      if (rounds == 100 || by_caller == 199) release = true;
    } else if (!held.exchange(true)) {
      while (!release) std::this_thread::yield();
    }
  });
  // The caller did a hundred indices while the other thread stood still, or that had not come in two seconds.
  EXPECT_TRUE(rounds >= 100 || by_caller - rounds >= 100) << rounds << " of " << by_caller;
}

TEST(ThreadPool, MoreThreadsThanCpusAndManyPoolsAtOnce) {
  std::vector<std::thread> users;
  std::atomic<int64_t> sum = 0;
  for (int user = 0; user < 6; ++user) {
    users.emplace_back([&] {
      ThreadPool pool(3);
      for (int round = 0; round < 2000; ++round) pool.run(5, [&](int64_t i) { sum += i; });
    });
  }
  for (std::thread& user : users) user.join();
  EXPECT_EQ(sum, 6 * 2000 * 10);
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

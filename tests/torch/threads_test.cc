// The operators run on LibTorch's threads: as many as it was told, not one for want of OpenMP or of the same runtime.

#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <thread>

#include "../../src/torch/device.h"
#include "aft/torch.h"

namespace {

TEST(Threads, AsManyRunAsLibTorchWasTold) {
  const int before = torch::get_num_threads();
  for (const int threads : {1, 2, 3}) {
    torch::set_num_threads(threads);
    const aft::ops::ParallelFor parallel = aft::dispatch::cpu_device().parallel;
    EXPECT_EQ(parallel.threads, threads);
    std::mutex mutex;
    std::set<std::thread::id> ids;
    std::multiset<int64_t> indices;
    parallel.run(12, [&](int64_t i) {
      const std::lock_guard lock(mutex);
      ids.insert(std::this_thread::get_id());
      indices.insert(i);
    });
    EXPECT_EQ(ids.size(), static_cast<size_t>(threads));
    EXPECT_EQ(indices.size(), 12U);
    EXPECT_EQ(std::set<int64_t>(indices.begin(), indices.end()).size(), 12U);
  }
  torch::set_num_threads(before);
}

}  // namespace

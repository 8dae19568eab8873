#include "runtime/allowed_cpus.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <thread>

#include "../io/temporary_folder.h"
#include "aft/runtime/thread_pool.h"

namespace aft {
namespace {

/// A root with files of proc and sys.
class Root {
 public:
  void file(const std::string& name, const std::string& text) {
    std::filesystem::create_directories((folder_ / name).parent_path());
    test::write_all(folder_ / name, text);
  }
  [[nodiscard]] int64_t quota() const { return cpu_quota(folder_.path()); }

 private:
  test::TemporaryFolder folder_;
};

TEST(CpuQuota, Version2TakesTheLeastOnTheWayUp) {
  Root root;
  EXPECT_GT(root.quota(), 100'000);
  root.file("proc/self/cgroup", "0::/a/b\n");
  EXPECT_GT(root.quota(), 100'000);
  root.file("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  EXPECT_GT(root.quota(), 100'000);
  root.file("sys/fs/cgroup/a/cpu.max", "300000 100000\n");
  EXPECT_EQ(root.quota(), 3);
  root.file("sys/fs/cgroup/a/b/cpu.max", "190000 100000\n");
  EXPECT_EQ(root.quota(), 1);
  root.file("sys/fs/cgroup/a/b/cpu.max", "20000 100000\n");
  EXPECT_EQ(root.quota(), 1);
}

TEST(CpuQuota, Version1) {
  Root root;
  root.file("proc/self/cgroup", "5:memory:/docker/x\n4:cpu,cpuacct:/docker/x\n1:cpuset:/\n");
  root.file("sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us", "-1\n");
  root.file("sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_period_us", "100000\n");
  EXPECT_GT(root.quota(), 100'000);
  root.file("sys/fs/cgroup/cpu,cpuacct/docker/x/cpu.cfs_quota_us", "250000\n");
  EXPECT_EQ(root.quota(), 2);
}

TEST(CpuQuota, InsideAContainerTheGroupIsTheRootThatIsMounted) {
  Root root;
  root.file("proc/self/cgroup", "4:cpu,cpuacct:/docker/x\n");
  root.file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n");
  root.file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(root.quota(), 4);
}

TEST(AllowedCpus, FollowTheAffinityMask) {
  const int64_t before = allowed_cpus();
  EXPECT_GE(before, 1);
  // In a thread of its own, as the mask goes with the thread.
  std::thread([] {
    cpu_set_t set;
    ASSERT_EQ(sched_getaffinity(0, sizeof set, &set), 0);
    int first = 0;
    while (!CPU_ISSET(first, &set)) ++first;
    CPU_ZERO(&set);
    CPU_SET(first, &set);
    ASSERT_EQ(sched_setaffinity(0, sizeof set, &set), 0);
    EXPECT_EQ(allowed_cpus(), 1);
    EXPECT_EQ(runtime::ThreadPool(0).threads(), 1);
  }).join();
  EXPECT_EQ(allowed_cpus(), before);
}

}  // namespace
}  // namespace aft

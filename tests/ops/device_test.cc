// The device, last argument of every pass: redo counters that are handed in, a CUDA device that this build lacks, and
// memory that the host cannot reach.

#include "aft/ops/device.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <thread>

#include "aft/error.h"
#include "aft/ops/local_bias.h"
#include "tests/ops/judge.h"
#include "tests/ops/memory.h"
#include "tests/ops/threads.h"
#ifdef AFT_CUDA
#include "ops/common/cuda/failure.h"
#endif

namespace aft::ops::test {
namespace {

// That failures are counted is for the hard numbers.
TEST(Counters, EveryPassAddsItsPairs) {
  constexpr int64_t kPairs = 2 * 30 * 9;
  Case window{.batch = 2, .time = 30, .channels = 9, .seed = 1}, grid = window, full = window, simple = window;
  set_window(window, 4);
  set_grid(grid, 5, 6, 3);
  full.op = Operator::kFull;
  RedoCount count;
  int64_t total = 0;
  const auto expect_more = [&](const Case& c, int64_t pairs) {
    Threads threads(2);
    run(make_inputs<float>(c), {.parallel = threads.parallel_for(), .redone = &count});
    EXPECT_EQ(count.total, total += pairs) << describe(c);
  };
  expect_more(window, 2 * kPairs);  // forward and backward
  expect_more(grid, 2 * kPairs);
  expect_more(full, kPairs);  // which counts its forward
  expect_more(simple, 0);     // which needs no redo
  run(make_inputs<float>(window));
  EXPECT_EQ(count.total, total) << "a call that was not handed the counters";
  EXPECT_EQ(count.redone, 0);
}

TEST(Counters, AreSharedByConcurrentCalls) {
  Case c{.input = "apart_1e4", .batch = 2, .time = 40, .channels = 9, .seed = 5};
  set_window(c, 100);
  const Inputs<float> in = make_inputs<float>(c);
  RedoCount one, all;
  run(in, {.redone = &one});
  EXPECT_GT(one.redone, 0);
  constexpr int64_t kThreads = 4, kRuns = 25;
  std::vector<std::thread> callers;
  for (int64_t i = 0; i < kThreads; ++i) {
    callers.emplace_back([&] {
      for (int64_t n = 0; n < kRuns; ++n) run(in, {.redone = &all});
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(all.redone, kThreads * kRuns * one.redone);
  EXPECT_EQ(all.total, kThreads * kRuns * one.total);
}

// Memory that kernels of the host can use, but that is not the host's copy: that holds something else meanwhile.
class OtherMemory : public DeviceMemory {
 public:
  void* allocate(size_t bytes) override { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
  void release(void* device) override { std::free(device); }
  void copy_in(void* device, const void* host, size_t bytes) override {
    std::memcpy(device, host, bytes);
    std::memset(const_cast<void*>(host), 0xFF, bytes);  // NaN in every type
  }
  void copy_out(void* host, const void* device, size_t bytes) override { std::memcpy(host, device, bytes); }
};

template <class Type>
class Device : public ::testing::Test {};
TYPED_TEST_SUITE(Device, Everything, OnName);

// A backend with memory of its own is handed all that a call reads and writes through that memory.
TYPED_TEST(Device, MemoryOfItsOwnMakesNoDifference) {
  using E = typename TypeParam::E;
  OtherMemory memory;
  const Backend host = {.name = "host"}, other = {.name = "other", .memory = &memory};
  for (const Case& c : cases(TypeParam::kFamily)) {
    if (c.time > 70 && !c.packed()) continue;
    const Inputs<E> in = make_inputs<E>(c);
    expect_same_bits(run(in, {.backend = &host}), run(in, {.backend = &other}), describe(c));
    if (in.has_final && !c.masked && !c.packed()) {
      expect_same_bits(run_steps(in, {.backend = &host}), run_steps(in, {.backend = &other}), describe(c));
    }
  }
}

#ifndef AFT_CUDA
template <typename E>
void expect_no_cuda() {
  const auto expect_throw = [](const char* name, const auto& call) {
    try {
      call();
      ADD_FAILURE() << name << " did not throw";
    } catch (const Error& e) {
      const std::string message = e.what();
      EXPECT_EQ(message.rfind(name, 0), 0u) << message;
      EXPECT_NE(message.find("built without CUDA"), std::string::npos) << message;
      EXPECT_NE(message.find("build with -DAFT_CUDA=ON"), std::string::npos) << message;
    }
  };
  const Cuda cuda;
  expect_throw("window_forward", [&] { window_forward(WindowForward<E>(), cuda); });
  expect_throw("window_backward", [&] { window_backward(WindowBackward<E>(), cuda); });
  expect_throw("window_step", [&] { window_step(WindowStep<E>(), cuda); });
  expect_throw("window_workspace", [&] { window_workspace<E>({}, Pass::kForward); });
  expect_throw("full_forward", [&] { full_forward(FullForward<E>(), cuda); });
  expect_throw("full_backward", [&] { full_backward(FullBackward<E>(), cuda); });
  expect_throw("full_step", [&] { full_step(FullStep<E>(), cuda); });
  expect_throw("full_workspace", [&] { full_workspace<E>({}, Pass::kForward); });
  expect_throw("grid_forward", [&] { grid_forward(GridForward<E>(), cuda); });
  expect_throw("grid_backward", [&] { grid_backward(GridBackward<E>(), cuda); });
  expect_throw("grid_workspace", [&] { grid_workspace<E>({}, Pass::kForward); });
  if constexpr (!kIs16Bit<E>) {
    expect_throw("window_state_init", [&] { window_state_init(WindowShape(), State<E>(), cuda); });
    expect_throw("local_bias_forward", [&] { local_bias_forward(LocalBiasForward<E>(), cuda); });
    expect_throw("local_bias_backward", [&] { local_bias_backward(LocalBiasBackward<E>(), cuda); });
  }
}

TEST(WithoutCuda, EveryCallSaysSo) {
  EXPECT_EQ(cuda_architectures(), "");
  EXPECT_TRUE(cuda_devices().empty());
  expect_no_cuda<float>();
  expect_no_cuda<double>();
  expect_no_cuda<BFloat16>();
  expect_no_cuda<Float16>();
}
#else
TEST(WithCuda, AGpuThatWasNotCompiledForIsNamed) {
  EXPECT_NE(cuda_architectures(), "");
  EXPECT_EQ(cuda::not_compiled_for("NVIDIA T4 (75)", 75),
            "expected a GPU that the CUDA kernels are compiled for (" + cuda_architectures() +
                "), got NVIDIA T4 (75); build with -DAFT_CUDA_ARCHITECTURES=75, or move the tensors to the CPU");
  try {
    cuda::fail(cudaErrorMemoryAllocation, "window_forward");
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "window_forward: CUDA says out of memory");
  }
}
#endif

// Read once a process: each value in one of its own.
TEST(CheckValues, IsWhatTheEnvironmentSays) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  const auto expect = [](const char* value, int asked) {
    value == nullptr ? unsetenv("AFT_CHECK_VALUES") : setenv("AFT_CHECK_VALUES", value, 1);
    EXPECT_EXIT(std::_Exit(Cuda().check_values ? 1 : 0), ::testing::ExitedWithCode(asked), "") << value;
  };
  expect(nullptr, 0);
  expect("", 0);
  expect("0", 0);
  expect("1", 1);
  unsetenv("AFT_CHECK_VALUES");
}

}  // namespace
}  // namespace aft::ops::test

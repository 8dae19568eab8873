// A LibTorch other than the one of the build is refused by the first operator, whichever it is.

#include <gtest/gtest.h>
#include <torch/version.h>

#include <string>

#include "../../src/torch/version_check.h"
#include "aft/torch.h"

namespace {

constexpr uint64_t version(uint64_t major, uint64_t minor, uint64_t patch) {
  return major << 56 | minor << 48 | patch << 40;
}

class Version : public testing::Test {
 protected:
  void TearDown() override { aft::dispatch::set_loaded_torch_version_for_test(0); }

  static std::string message(const std::function<void()>& call) {
    try {
      call();
    } catch (const aft::Error& error) {
      return error.what();
    }
    return "nothing thrown";
  }
};

TEST_F(Version, AnotherLibTorchIsRefusedByEveryOperator) {
  const torch::Tensor x = torch::rand({1, 2, 3});
  const torch::Tensor bias = torch::zeros({2, 2});
  aft::State state = aft::initial_state(1, 3, 3, 0);
  const std::string want = std::string("built for LibTorch ") + TORCH_VERSION + " but LibTorch 2.7.1 is loaded";
  const std::vector<std::function<void()>> calls = {
      [&] { aft::simple(x, x, x); },
      [&] { aft::simple(x, x, x.detach().requires_grad_()); },
      [&] { aft::local(x, x, x, bias); },
      [&] { aft::local_bias(x, x, 1); },
      [&] { aft::initial_state(1, 3, 3, 0); },
      [&] { aft::simple(x, x, x, state); },
      [&] { aft::simple(x.to(torch::kMeta), x.to(torch::kMeta), x.to(torch::kMeta)); },
  };
  for (const auto& call : calls) {
    aft::dispatch::set_loaded_torch_version_for_test(version(2, 7, 1));
    EXPECT_NE(message(call).find(want), std::string::npos) << message(call);
    EXPECT_NE(message(call).find(want), std::string::npos) << "the second call must throw too";
  }
}

TEST_F(Version, APatchReleaseIsAnotherVersion) {
  aft::dispatch::set_loaded_torch_version_for_test(
      version(TORCH_VERSION_MAJOR, TORCH_VERSION_MINOR, TORCH_VERSION_PATCH + 1));
  EXPECT_THROW(aft::dispatch::check_torch_version(), aft::Error);
}

TEST_F(Version, TheLoadedLibTorchIsTheOneOfTheBuild) {
  aft::dispatch::set_loaded_torch_version_for_test(0);
  EXPECT_NO_THROW(aft::dispatch::check_torch_version());
  const torch::Tensor x = torch::rand({1, 2, 3});
  EXPECT_NO_THROW(aft::simple(x, x, x));
}

}  // namespace

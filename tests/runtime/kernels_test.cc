#include "runtime/kernels.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "hwy/targets.h"

namespace aft::runtime::kernels {
namespace {

/// Runs `body` once on every SIMD target that this machine has and the kernels are built for.
template <typename Body>
void on_every_target(const Body& body) {
  int64_t left = hwy::SupportedTargets();
  std::string last;
  int ran = 0;
  while (left != 0) {
    hwy::SetSupportedTargetsForTest(left);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(target_name());
    if (target_name() != last) {
      body();
      ++ran;
    }
    last = target_name();
    left &= left - 1;  // the lowest bit is the best target
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  EXPECT_GE(ran, 1);
}

std::vector<float> random_values(int64_t count, uint64_t seed, float scale = 1.0F) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(normal(generator) * scale);
  return values;
}

constexpr float kGuard = 12345.0F;
constexpr int64_t kSizes[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 257};

TEST(Kernels, Matvec) {
  on_every_target([] {
    for (const int64_t columns : kSizes) {
      for (const int64_t rows : {1, 2, 5}) {
        const int64_t stride = columns + 3;
        const std::vector<float> w = random_values(rows * stride, 1);
        const std::vector<float> x = random_values(columns, 2);
        const std::vector<float> bias = random_values(rows, 3);
        std::vector<float> y(static_cast<size_t>(rows) + 1, kGuard);
        for (const bool with_bias : {false, true}) {
          const std::vector<float> old = random_values(rows, 4);
          std::copy(old.begin(), old.end(), y.begin());  // with the bias it is added to, without it replaced
          matvec(w.data(), rows, columns, stride, x.data(), with_bias ? bias.data() : nullptr, with_bias, y.data());
          for (int64_t r = 0; r < rows; ++r) {
            double sum = with_bias ? bias[static_cast<size_t>(r)] + old[static_cast<size_t>(r)] : 0.0F;
            double size =
                with_bias ? std::abs(bias[static_cast<size_t>(r)]) + std::abs(old[static_cast<size_t>(r)]) : 0.0F;
            for (int64_t c = 0; c < columns; ++c) {
              const double term = static_cast<double>(w[static_cast<size_t>(r * stride + c)]) *
                                  static_cast<double>(x[static_cast<size_t>(c)]);
              sum += term;
              size += std::abs(term);
            }
            EXPECT_NEAR(y[static_cast<size_t>(r)], sum, 1e-6 * size) << rows << " x " << columns;
          }
          EXPECT_EQ(y.back(), kGuard);
        }
      }
    }
  });
}

TEST(Kernels, LayerNorm) {
  on_every_target([] {
    for (const int64_t n : kSizes) {
      const std::vector<float> x = random_values(n, 1, 3.0F);
      const std::vector<float> weight = random_values(n, 2);
      const std::vector<float> bias = random_values(n, 3);
      std::vector<float> y(static_cast<size_t>(n) + 1, kGuard);
      const float eps = n % 2 == 0 ? 1e-5F : 0.25F;
      layer_norm(x.data(), weight.data(), bias.data(), eps, n, y.data());
      double mean = 0;
      for (const float value : x) mean += value / static_cast<double>(n);
      double variance = 0;
      for (const float value : x) variance += (value - mean) * (value - mean) / static_cast<double>(n);
      for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_NEAR(y[i], (x[i] - mean) / std::sqrt(variance + eps) * weight[i] + bias[i], 1e-5) << n;
      }
      EXPECT_EQ(y.back(), kGuard);
    }
  });
}

// A large common part must not drown the variance.
TEST(Kernels, LayerNormOfValuesFarFromZero) {
  on_every_target([] {
    const std::vector<float> x = {1000.0F, 1001.0F, 1002.0F, 1003.0F};
    const std::vector<float> one(4, 1.0F);
    const std::vector<float> zero(4, 0.0F);
    std::vector<float> y(4);
    layer_norm(x.data(), one.data(), zero.data(), 1e-5F, 4, y.data());
    EXPECT_NEAR(y[0], -1.5 / std::sqrt(1.25 + 1e-5), 1e-5);
    EXPECT_NEAR(y[2], 0.5 / std::sqrt(1.25 + 1e-5), 1e-5);
  });
}

TEST(Kernels, GeluIsTheExactForm) {
  on_every_target([] {
    std::vector<float> x;
    for (int i = -120'000; i <= 120'000; ++i) x.push_back(static_cast<float>(i) * 1e-4F);
    for (const float extreme : {-1e4F, -50.0F, -1e-30F, 0.0F, 1e-30F, 50.0F, 1e4F, 1e30F}) x.push_back(extreme);
    std::vector<float> y = x;
    gelu(nullptr, static_cast<int64_t>(y.size()), y.data());
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double right = 0.5 * x[i] * std::erfc(-static_cast<double>(x[i]) / std::sqrt(2.0));
      worst = std::max(worst, std::abs(y[i] - right) / std::max(1.0, std::abs(static_cast<double>(x[i]))));
    }
    EXPECT_LT(worst, 2e-7);
  });
}

TEST(Kernels, GeluAddsTheBiasAndKeepsToItsRow) {
  on_every_target([] {
    for (const int64_t n : kSizes) {
      const std::vector<float> x = random_values(n, 1);
      const std::vector<float> bias = random_values(n, 2);
      std::vector<float> y = x;
      y.push_back(kGuard);
      gelu(bias.data(), n, y.data());
      for (size_t i = 0; i < x.size(); ++i) {
        const double z = static_cast<double>(x[i] + bias[i]);
        EXPECT_NEAR(y[i], 0.5 * z * std::erfc(-z / std::sqrt(2.0)), 1e-6);
      }
      EXPECT_EQ(y.back(), kGuard);
    }
  });
}

TEST(Kernels, GeluOfNotANumberShows) {
  on_every_target([] {
    float x = std::numeric_limits<float>::quiet_NaN();
    gelu(nullptr, 1, &x);
    EXPECT_TRUE(std::isnan(x));
  });
}

TEST(Kernels, Add) {
  on_every_target([] {
    for (const int64_t n : kSizes) {
      const std::vector<float> x = random_values(n, 1);
      const std::vector<float> bias = random_values(n, 2);
      std::vector<float> y = x;
      y.push_back(kGuard);
      add(bias.data(), n, y.data());
      for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], x[i] + bias[i]);
      EXPECT_EQ(y.back(), kGuard);
    }
  });
}

TEST(Kernels, Softmax) {
  on_every_target([] {
    for (const int64_t n : kSizes) {
      for (const float size : {1.0F, 100.0F, 1e4F}) {
        const std::vector<float> x = random_values(n, 1, size);
        std::vector<float> y = x;
        y.push_back(kGuard);
        softmax(0.25F, n, y.data());
        double max = x[0];
        for (const float value : x) max = std::max(max, static_cast<double>(value));
        double sum = 0;
        for (const float value : x) sum += std::exp(0.25 * (value - max));
        for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], std::exp(0.25 * (x[i] - max)) / sum, 1e-5);
        EXPECT_EQ(y.back(), kGuard);
      }
    }
  });
}

TEST(Kernels, WeightedSum) {
  on_every_target([] {
    for (const int64_t columns : kSizes) {
      for (const int64_t rows : {0, 1, 2, 5}) {
        const int64_t stride = columns + 2;
        const std::vector<float> values = random_values(rows * stride, 1);
        const std::vector<float> weights = random_values(rows, 2);
        std::vector<float> y(static_cast<size_t>(columns) + 1, kGuard);
        weighted_sum(values.data(), rows, columns, stride, weights.data(), y.data());
        for (int64_t c = 0; c < columns; ++c) {
          double sum = 0;
          for (int64_t r = 0; r < rows; ++r) {
            sum += static_cast<double>(weights[static_cast<size_t>(r)]) * values[static_cast<size_t>(r * stride + c)];
          }
          EXPECT_NEAR(y[static_cast<size_t>(c)], sum, 1e-5);
        }
        EXPECT_EQ(y.back(), kGuard);
      }
    }
  });
}

TEST(Kernels, StreamSumReadsEveryElement) {
  on_every_target([] {
    for (const int64_t n : kSizes) {
      const std::vector<float> ones(static_cast<size_t>(n), 1.0F);
      EXPECT_EQ(stream_sum(ones.data(), n), static_cast<float>(n));
    }
  });
}

}  // namespace
}  // namespace aft::runtime::kernels

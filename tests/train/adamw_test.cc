#include "train/adamw.h"

#include <gtest/gtest.h>

#include <cmath>

namespace aft {
namespace {

TEST(AdamW, TwoStepsByHand) {
  // w0 = 1, g = (0.5, -0.25), lr 0.1, betas (0.9, 0.5), eps 0, decay 0.2.
  // Step 1: m = 0.05, v = 0.125; corrected 0.5 and 0.25; w = 1 (1 - 0.02) - 0.1 * 0.5 / 0.5 = 0.88.
  // Step 2: m = 0.045 - 0.025 = 0.02, v = 0.0625 + 0.03125 = 0.09375; corrected 0.02 / 0.19 and 0.125;
  //         w = 0.88 * 0.98 - 0.1 * (0.02 / 0.19) / sqrt(0.125).
  AdamWStep step{1, 0.1, 0.9, 0.5, 0, 0.2, 1};
  double g = 0.5;
  double w = 1;
  double m = 0;
  double v = 0;
  adamw_update(step, 1, &g, &w, &m, &v);
  EXPECT_NEAR(w, 0.88, 1e-14);
  step.step = 2;
  g = -0.25;
  adamw_update(step, 1, &g, &w, &m, &v);
  EXPECT_NEAR(m, 0.02, 1e-15);
  EXPECT_NEAR(v, 0.09375, 1e-15);
  EXPECT_NEAR(w, 0.8624 - 0.1 * (0.02 / 0.19) / std::sqrt(0.125), 1e-14);
}

TEST(AdamW, ScaleIsThatOfTheGradientAndZeroStaysZero) {
  AdamWStep step{1, 0.1, 0.9, 0.99, 1e-8, 0, 0.25};
  float g[2] = {4, 0};
  float w[2] = {1, 0};
  float m[2] = {0, 0};
  float v[2] = {0, 0};
  adamw_update(step, 2, g, w, m, v);
  EXPECT_FLOAT_EQ(m[0], 0.1F);   // 0.1 * (4 * 0.25)
  EXPECT_FLOAT_EQ(v[0], 0.01F);  // 0.01 * 1
  EXPECT_EQ(w[1], 0.0F);
}

}  // namespace
}  // namespace aft

#include "train/metrics.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "../data/scratch.h"

namespace aft {
namespace {

Metric metric(int64_t step, const char* split) { return {step, split, 2.5, step * 100, 1234.5, 1e-3, 0.25}; }

TEST(Metrics, LinesHoldTheAgreedKeys) {
  const auto json = nlohmann::json::parse(to_json_line(metric(3, "train")));
  EXPECT_EQ(json.at("step"), 3);
  EXPECT_EQ(json.at("split"), "train");
  EXPECT_EQ(json.at("bits_per_byte"), 2.5);
  EXPECT_EQ(json.at("tokens"), 300);
  EXPECT_EQ(json.at("tokens_per_second"), 1234.5);
  EXPECT_EQ(json.at("lr"), 1e-3);
  EXPECT_EQ(json.at("seconds"), 0.25);
}

TEST(Metrics, ResumingDropsWhatFollowsTheCheckpointAndHalfLines) {
  const Scratch scratch;
  const auto file = scratch.path() / "metrics.jsonl";
  {
    MetricsFile metrics(file, 0);
    for (int64_t step = 1; step <= 5; ++step) metrics.append(metric(step, "train"));
    metrics.append(metric(3, "test"));
  }
  std::ofstream(file, std::ios::app) << R"({"step": 6, "spl)";
  {
    MetricsFile metrics(file, 3);
    metrics.append(metric(4, "valid"));
  }
  const auto lines = read_metrics(file);
  ASSERT_EQ(lines.size(), 4U);
  EXPECT_EQ(lines[2].step, 3);
  EXPECT_EQ(lines[2].split, "train");
  EXPECT_EQ(lines[3].split, "valid");
  EXPECT_TRUE(read_metrics(scratch.path() / "none").empty());
  MetricsFile afresh(file, 0);
  EXPECT_TRUE(read_metrics(file).empty());
}

}  // namespace
}  // namespace aft

#include "train/metrics.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "../data/scratch.h"
#include "train/json_value.h"

namespace aft {
namespace {

Metric metric(int64_t step, const char* split) {
  return {step, split, 1.75, {{"bits_per_byte", 2.5}}, step * 100, 1234.5, 1e-3, 0.25};
}

TEST(Metrics, LinesHoldTheAgreedKeys) {
  const auto json = nlohmann::json::parse(to_json_line(metric(3, "train")));
  EXPECT_EQ(json.at("step"), 3);
  EXPECT_EQ(json.at("split"), "train");
  EXPECT_EQ(json.at("loss"), 1.75);
  EXPECT_EQ(json.at("bits_per_byte"), 2.5);
  EXPECT_EQ(json.at("tokens"), 300);
  EXPECT_EQ(json.at("tokens_per_second"), 1234.5);
  EXPECT_EQ(json.at("lr"), 1e-3);
  EXPECT_EQ(json.at("seconds"), 0.25);
}

// What a task names, in its order, whatever its names are; runs of earlier versions have no loss.
TEST(Metrics, ReadsTheValuesOfAnyTask) {
  const auto line = metric_from_json(
      R"({"step": 3, "split": "valid", "loss": 2, "top_5": 0.75, "top_1": 0.5, "tokens": 1, "tokens_per_second": 2,)"
      R"( "lr": 1e-3, "seconds": 1, "note": "text is no metric"})");
  ASSERT_TRUE(line);
  EXPECT_EQ(line->loss, 2);
  EXPECT_EQ(line->values, (MetricValues{{"top_5", 0.75}, {"top_1", 0.5}}));
  const auto old = metric_from_json(
      R"({"step": 3, "split": "valid", "bits_per_byte": 2.5, "tokens": 1, "tokens_per_second": 2, "lr": 1, "seconds": 1})");
  ASSERT_TRUE(old);
  EXPECT_EQ(old->values, (MetricValues{{"bits_per_byte", 2.5}}));
}

// Found by fuzzing: names with escapes, or that stand as a text before, in an order of their own.
TEST(Metrics, ValuesKeepTheirOrderWhateverTheirNames) {
  Metric metric = {1, "b", 0, {}, 0, 0, 0, 0};
  for (const char* name : {"tr\\4", "b", "\"q\"", "\xc2\xa7", "z", "a", "", "\n"}) metric.values.emplace_back(name, 1);
  for (int i = 30; i > 0; --i) metric.values.emplace_back(std::string("\\").append(std::to_string(i)), i);
  const auto again = metric_from_json(to_json_line(metric));
  ASSERT_TRUE(again);
  EXPECT_EQ(again->values, metric.values);
}

// A number that does not fit is no number: casting it is undefined.
TEST(Metrics, ValuesOfAnotherTypeOrOutOfRangeAreNoMetric) {
  const auto line = [](const std::string& step, const std::string& bits) {
    return R"({"step": )" + step + R"(, "split": "train", "loss": )" + bits +
           R"(, "tokens": 1, "tokens_per_second": 2, "lr": 1e-3, "seconds": 1})";
  };
  ASSERT_TRUE(metric_from_json(line("9223372036854775807", "2")));
  EXPECT_EQ(metric_from_json(line("9223372036854775807", "2"))->step, INT64_MAX);
  for (const char* step : {"9223372036854775808", "18446744073709551615", "99999999999999999999", "1e300", "-1", "2.5",
                           "true", "null", "\"3\"", "[3]", "{}"}) {
    EXPECT_FALSE(metric_from_json(line(step, "2"))) << step;
  }
  for (const char* bits : {"1e400", "true", "null", "\"2\"", "[2]", "\xff"}) {
    EXPECT_FALSE(metric_from_json(line("1", bits))) << bits;
  }
  EXPECT_FALSE(metric_from_json(std::string("[") + line("1", "2") + "]"));
  EXPECT_FALSE(metric_from_json(std::string(100'000, '[')));
  EXPECT_FALSE(metric_from_json(line(std::string(100'000, '[') + std::string(100'000, ']'), "2")));
}

TEST(ReadValue, SaysWhatItExpected) {
  const auto error_of = [](const std::string& value, auto out) -> std::string {
    try {
      read_value(nlohmann::json::parse(std::string("{\"key\": ") + value + "}"), "key", out);
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(error_of("1e300", int64_t{}), "key: expected a whole number that fits 64 bits, got 1e+300");
  EXPECT_EQ(error_of("9223372036854775808", uint64_t{}), "no error");
  EXPECT_EQ(error_of("-1", uint64_t{}), "key: expected a whole number that fits 64 bits, got -1");
  EXPECT_EQ(error_of("1", bool{}), "key: expected true or false, got 1");
  EXPECT_EQ(error_of("true", double{}), "key: expected a number, got boolean");
  EXPECT_EQ(error_of("[]", std::string{}), "key: expected text, got array");
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

#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "train/train.h"

namespace aft {

std::string to_json_line(const Metric& metric);
/// Nothing for a line that is not a whole metric, such as the last one of a run that was killed.
std::optional<Metric> metric_from_json(const std::string& line);

std::vector<Metric> read_metrics(const std::filesystem::path& file);

/// Appends lines, each in one write.
class MetricsFile {
 public:
  /// Keeps the lines up to `step` (0: starts afresh) and drops those of the test split, which follow the last step.
  MetricsFile(const std::filesystem::path& file, int64_t step);
  ~MetricsFile();
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;

  /// Throws aft::Error if the line cannot be written whole.
  void append(const Metric& metric);

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace aft

#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "aft/error.h"
#include "io/write_file.h"
#include "train/json_value.h"

namespace aft {

std::string to_json_line(const Metric& metric) {
  const nlohmann::ordered_json line = {{"step", metric.step},
                                       {"split", metric.split},
                                       {"bits_per_byte", metric.bits_per_byte},
                                       {"tokens", metric.tokens},
                                       {"tokens_per_second", metric.tokens_per_second},
                                       {"lr", metric.lr},
                                       {"seconds", metric.seconds}};
  return line.dump() + "\n";
}

std::optional<Metric> metric_from_json(const std::string& line) {
  try {
    const auto json = nlohmann::json::parse(line);
    Metric metric;
    read_value(json, "step", metric.step);
    read_value(json, "split", metric.split);
    read_value(json, "bits_per_byte", metric.bits_per_byte);
    read_value(json, "tokens", metric.tokens);
    read_value(json, "tokens_per_second", metric.tokens_per_second);
    read_value(json, "lr", metric.lr);
    read_value(json, "seconds", metric.seconds);
    return metric;
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

std::vector<Metric> read_metrics(const std::filesystem::path& file) {
  std::vector<Metric> metrics;
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    if (auto metric = metric_from_json(line)) metrics.push_back(std::move(*metric));
  }
  return metrics;
}

MetricsFile::MetricsFile(const std::filesystem::path& file, int64_t step) : path_(file) {
  std::string kept;
  if (step > 0) {
    for (const Metric& metric : read_metrics(file)) {
      if (metric.step <= step && metric.split != "test") kept += to_json_line(metric);
    }
  }
  write_file_atomically(file, kept.data(), kept.size());
  fd_ = open(file.c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
  if (fd_ < 0) throw Error(file.string() + ": cannot be opened for writing: " + std::strerror(errno));
}

MetricsFile::~MetricsFile() {
  if (fd_ >= 0) close(fd_);
}

void MetricsFile::append(const Metric& metric) {
  const std::string line = to_json_line(metric);
  const ssize_t written = write(fd_, line.data(), line.size());
  if (written != static_cast<ssize_t>(line.size())) {
    throw Error(path_.string() + ": cannot be written: " + (written < 0 ? std::strerror(errno) : "no space left"));
  }
}

}  // namespace aft

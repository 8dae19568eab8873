#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "aft/error.h"
#include "io/write_file.h"
#include "train/json_value.h"

namespace aft {

namespace {

/// The keys that stand in every line, around those of the task: writing and reading walk this list.
template <typename Line, typename Visit>
void visit_line(Line& metric, Visit&& visit) {
  visit("step", metric.step);
  visit("split", metric.split);
  visit("tokens", metric.tokens);
  visit("tokens_per_second", metric.tokens_per_second);
  visit("lr", metric.lr);
  visit("seconds", metric.seconds);
}

}  // namespace

std::string to_json_line(const Metric& metric) {
  nlohmann::ordered_json line;
  visit_line(metric, [&](const std::string& key, const auto& value) {
    line[key] = value;
    if (key != "split") return;
    line["loss"] = metric.loss;
    for (const auto& [name, number] : metric.values) line[name] = number;
  });
  return line.dump() + "\n";
}

std::optional<Metric> metric_from_json(const std::string& line) {
  try {
    // In their order, which nlohmann::json forgets, and its ordered kind keeps by copying as deep as values nest.
    std::vector<std::string> keys;
    const auto json = nlohmann::json::parse(line, [&](int depth, auto event, const nlohmann::json& parsed) {
      if (depth == 1 && event == nlohmann::json::parse_event_t::key) keys.push_back(parsed.get<std::string>());
      return true;
    });
    Metric metric;
    std::set<std::string> known = {"loss"};
    visit_line(metric, [&](const char* key, auto& value) {
      read_value(json, key, value);
      known.insert(key);
    });
    // Runs of earlier versions have no loss.
    if (json.contains("loss")) read_value(json, "loss", metric.loss);
    for (const std::string& key : keys) {
      if (known.insert(key).second && json.at(key).is_number()) metric.values.emplace_back(key, json.at(key));
    }
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

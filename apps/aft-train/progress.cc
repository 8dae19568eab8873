#include "progress.h"

#include <algorithm>
#include <cstdio>

namespace aft {
namespace {

using app::clock_text;
using app::rate_text;

template <typename... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), pattern, values...);
  return text;
}

double first_of(const Metric& metric) { return metric.values.front().second; }

/// Of what metrics count as tokens.
const char* unit_of(const Metric& metric) {
  return metric.values.front().first.starts_with("bits_") ? "tokens" : "images";
}

}  // namespace

std::string in_words(std::string name) {
  if (name == "bits_per_byte") return "bits/byte";
  if (name == "bits_per_dimension") return "bits/dim";
  std::replace(name.begin(), name.end(), '_', '-');
  return name;
}

std::string values_text(const MetricValues& values) {
  std::string text;
  for (const auto& [name, value] : values) text += (text.empty() ? "" : "  ") + format("%.4f ", value) + in_words(name);
  return text;
}

Progress::Progress() : began_(std::chrono::steady_clock::now()) {}

double Progress::seconds_left(int64_t step, int64_t steps) const {
  if (first_step_ < 0 || step < first_step_) return 0;
  const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
  return spent / static_cast<double>(step - first_step_ + 1) * static_cast<double>(steps - step);
}

void Progress::step(const Metric& latest, int64_t steps) {
  if (first_step_ < 0) {
    first_step_ = latest.step;
    smooth_ = first_of(latest);
  }
  smooth_ += 0.05 * (first_of(latest) - smooth_);
  if (!bar_.is_due()) return;
  bar_.draw(static_cast<double>(latest.step) / static_cast<double>(steps),
            format("step %lld/%lld  %.3f %s  %s %s/s  ETA %s", static_cast<long long>(latest.step),
                   static_cast<long long>(steps), smooth_, in_words(latest.values.front().first).c_str(),
                   rate_text(latest.tokens_per_second).c_str(), unit_of(latest),
                   clock_text(seconds_left(latest.step, steps)).c_str()));
}

void Progress::metric(const Metric& line, int64_t steps) {
  // On a terminal the bar shows what a train line says.
  if (bar_.on_terminal() && line.split == "train") return;
  if (first_step_ < 0) first_step_ = line.step;
  bar_.print_line(format("step %lld/%lld  %s  %s  %s %s/s  lr %.2e  %s  ETA %s", static_cast<long long>(line.step),
                         static_cast<long long>(steps), line.split.c_str(), values_text(line.values).c_str(),
                         rate_text(line.tokens_per_second).c_str(), unit_of(line), line.lr,
                         clock_text(line.seconds).c_str(), clock_text(seconds_left(line.step, steps)).c_str()));
}

void Progress::note(const std::string& text) { bar_.print_line(text); }

}  // namespace aft

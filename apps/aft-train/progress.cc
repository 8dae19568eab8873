#include "progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace aft {
namespace {

constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr int kBarWidth = 24;

template <typename... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), pattern, values...);
  return text;
}

std::string rate_text(double rate) { return rate >= 1e4 ? format("%.1fk", rate / 1e3) : format("%.0f", rate); }

double first_of(const Metric& metric) { return metric.values.front().second; }

/// Of what metrics count as tokens.
const char* unit_of(const Metric& metric) {
  return metric.values.front().first.starts_with("bits_") ? "tokens" : "images";
}

size_t terminal_width() {
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

std::string clock_text(double seconds) {
  const auto total = static_cast<long long>(std::clamp(seconds, 0.0, 1e9));
  if (total >= 3600) return format("%lld:%02lld:%02lld", total / 3600, total / 60 % 60, total % 60);
  return format("%lld:%02lld", total / 60, total % 60);
}

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

Progress::Progress() : terminal_(isatty(STDERR_FILENO) != 0), began_(std::chrono::steady_clock::now()) {}

Progress::~Progress() { clear_bar(); }

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
  const auto now = std::chrono::steady_clock::now();
  if (!terminal_ || (bar_drawn_ && now - drawn_ < kRedraw)) return;
  drawn_ = now;
  draw_bar(latest, steps);
}

void Progress::metric(const Metric& line, int64_t steps) {
  // On a terminal the bar shows what a train line says.
  if (terminal_ && line.split == "train") return;
  if (first_step_ < 0) first_step_ = line.step;
  print_line(format("step %lld/%lld  %s  %s  %s %s/s  lr %.2e  %s  ETA %s", static_cast<long long>(line.step),
                    static_cast<long long>(steps), line.split.c_str(), values_text(line.values).c_str(),
                    rate_text(line.tokens_per_second).c_str(), unit_of(line), line.lr, clock_text(line.seconds).c_str(),
                    clock_text(seconds_left(line.step, steps)).c_str()));
}

void Progress::note(const std::string& text) { print_line(text); }

void Progress::print_line(const std::string& line) {
  clear_bar();
  std::fprintf(stderr, "%s\n", line.c_str());
  std::fflush(stderr);
}

void Progress::draw_bar(const Metric& latest, int64_t steps) {
  const double done = static_cast<double>(latest.step) / static_cast<double>(steps);
  const int filled = static_cast<int>(done * kBarWidth);
  std::string text = format("%3d%% [", static_cast<int>(done * 100));
  text += std::string(static_cast<size_t>(filled), '#') + std::string(static_cast<size_t>(kBarWidth - filled), '.');
  text += format("] step %lld/%lld  %.3f %s  %s %s/s  ETA %s", static_cast<long long>(latest.step),
                 static_cast<long long>(steps), smooth_, in_words(latest.values.front().first).c_str(),
                 rate_text(latest.tokens_per_second).c_str(), unit_of(latest),
                 clock_text(seconds_left(latest.step, steps)).c_str());
  text.resize(std::min(text.size(), terminal_width() - 1));
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
  bar_drawn_ = true;
}

void Progress::clear_bar() {
  if (!bar_drawn_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  bar_drawn_ = false;
}

}  // namespace aft

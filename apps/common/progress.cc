#include "common/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace aft::app {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kRedraw = std::chrono::milliseconds(100);
constexpr auto kBetweenLines = std::chrono::seconds(1);
constexpr int kBarWidth = 24;

template <typename... Values>
std::string format(const char* pattern, Values... values) {
  char text[256];
  std::snprintf(text, sizeof(text), pattern, values...);
  return text;
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

std::string rate_text(double rate) { return rate >= 1e4 ? format("%.1fk", rate / 1e3) : format("%.0f", rate); }

ProgressBar::ProgressBar() : terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressBar::~ProgressBar() { clear(); }

bool ProgressBar::is_due() const { return terminal_ && (!drawn_ || Clock::now() - drawn_at_ >= kRedraw); }

void ProgressBar::draw(double done, const std::string& text) {
  if (!terminal_) return;
  const int filled = static_cast<int>(done * kBarWidth);
  std::string line = format("%3d%% [", static_cast<int>(done * 100));
  line += std::string(static_cast<size_t>(filled), '#') + std::string(static_cast<size_t>(kBarWidth - filled), '.');
  line += "] " + text;
  line.resize(std::min(line.size(), terminal_width() - 1));
  std::fprintf(stderr, "\r\033[K%s", line.c_str());
  std::fflush(stderr);
  drawn_ = true;
  drawn_at_ = Clock::now();
}

void ProgressBar::print_line(const std::string& line) {
  clear();
  std::fprintf(stderr, "%s\n", line.c_str());
  std::fflush(stderr);
}

void ProgressBar::clear() {
  if (!drawn_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  drawn_ = false;
}

WorkProgress::WorkProgress(std::string unit, int64_t total)
    : unit_(std::move(unit)), total_(std::max<int64_t>(1, total)), began_(Clock::now()), line_at_(began_) {}

double WorkProgress::seconds() const { return std::chrono::duration<double>(Clock::now() - began_).count(); }

double WorkProgress::finish() {
  bar_.clear();
  return seconds();
}

void WorkProgress::done(int64_t units) {
  const double part = static_cast<double>(units) / static_cast<double>(total_);
  const auto tenths = static_cast<int64_t>(part * 10);
  const bool is_line =
      !bar_.on_terminal() && tenths > tenths_ && tenths < 10 && Clock::now() - line_at_ >= kBetweenLines;
  if (!is_line && !bar_.is_due()) return;
  const double spent = seconds();
  const double rate = static_cast<double>(units) / std::max(1e-9, spent);
  const double left = static_cast<double>(total_ - units) / std::max(1e-9, rate);
  const std::string text = format("%lld/%lld ", static_cast<long long>(units), static_cast<long long>(total_)) + unit_ +
                           "  " + rate_text(rate) + " " + unit_ + "/s  ETA " + clock_text(left);
  if (is_line) {
    tenths_ = tenths;
    line_at_ = Clock::now();
    bar_.print_line(text);
  } else {
    bar_.draw(part, text);
  }
}

}  // namespace aft::app

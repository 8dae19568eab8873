#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace aft::app {

/// One line at the bottom of a terminal that shows how far a work is. Where standard error is no terminal there is
/// none, and print_line() is what is seen.
class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar();  // leaves nothing of it behind
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  [[nodiscard]] bool on_terminal() const { return terminal_; }
  /// Whether draw() should be called now: not without a terminal, and at most ten times a second.
  [[nodiscard]] bool is_due() const;
  /// Draws it anew. `done` in [0, 1]; `text` stands beside it.
  void draw(double done, const std::string& text);
  /// A line of its own on standard error.
  void print_line(const std::string& line);
  void clear();

 private:
  bool terminal_;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point drawn_at_;
};

/// Shows a work of a known size: what is done, the rate, the time left. On a terminal by a bar, elsewhere by lines: one
/// after each tenth but the last, which the result follows, and not more than one a second.
class WorkProgress {
 public:
  /// `unit`: what is counted, in the plural.
  WorkProgress(std::string unit, int64_t total);

  /// So far, in all; never less than before.
  void done(int64_t units);
  /// Takes the bar away. Returns the seconds since this was made.
  double finish();

 private:
  [[nodiscard]] double seconds() const;

  std::string unit_;
  int64_t total_;
  int64_t tenths_ = 0;  // of which a line was written
  std::chrono::steady_clock::time_point began_;
  std::chrono::steady_clock::time_point line_at_;  // of the last one
  ProgressBar bar_;
};

/// 83 -> "1:23", 4000 -> "1:06:40".
std::string clock_text(double seconds);

/// 512 -> "512", 12345 -> "12.3k".
std::string rate_text(double rate);

}  // namespace aft::app

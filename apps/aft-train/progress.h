#pragma once

#include <chrono>
#include <string>

#include "common/progress.h"
#include "train/train.h"

namespace aft {

/// Shows a run on standard error: a bar on a terminal, plain lines otherwise.
class Progress : public TrainObserver {
 public:
  Progress();
  void step(const Metric& latest, int64_t steps) override;
  void metric(const Metric& line, int64_t steps) override;
  void note(const std::string& text) override;

 private:
  [[nodiscard]] double seconds_left(int64_t step, int64_t steps) const;

  app::ProgressBar bar_;
  std::chrono::steady_clock::time_point began_;
  int64_t first_step_ = -1;  // of this part of the run
  double smooth_ = 0;        // of the task's first metric: exponential mean, for the eye
};

/// "bits_per_byte" -> "bits/byte", "top_1" -> "top-1".
std::string in_words(std::string name);

/// "2.2738 bits/byte"
std::string values_text(const MetricValues& values);

}  // namespace aft

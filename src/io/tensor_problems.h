#pragma once

#include <cstdint>
#include <string>

namespace aft {

/// What is wrong with the tensors of a file, for one message: the first eight are named, the others counted, since a
/// foreign file may hold thousands.
class TensorProblems {
 public:
  void add(const std::string& problem) {
    if (++count_ <= kMostNamed) list_ += (list_.empty() ? "" : "; ") + problem;
  }
  [[nodiscard]] bool any() const { return count_ > 0; }
  [[nodiscard]] std::string list() const {
    return count_ > kMostNamed ? list_ + "; and " + std::to_string(count_ - kMostNamed) + " more" : list_;
  }

 private:
  static constexpr int64_t kMostNamed = 8;
  std::string list_;
  int64_t count_ = 0;
};

}  // namespace aft

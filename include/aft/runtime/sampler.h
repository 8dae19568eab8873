#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace aft::runtime {

struct SamplerOptions {
  float temperature = 1.0F;  // 0: always the most likely (the lowest byte among equals)
  int64_t top_k = 0;         // only the k most likely; 0: all
  float top_p = 1.0F;        // only the fewest most likely whose probabilities reach p
  uint64_t seed = 0;
};

/// Draws tokens from logits. The n-th draw depends on the seed, n and the logits alone, the same on every machine that
/// computes the same logits.
class Sampler {
 public:
  /// Throws aft::Error unless temperature >= 0 and finite, top_k >= 0, 0 < top_p <= 1.
  explicit Sampler(const SamplerOptions& options);

  /// `logits`: at least one and at most 256. Logits that are not finite throw aft::Error.
  uint8_t draw(std::span<const float> logits);

 private:
  SamplerOptions options_;
  uint64_t draws_ = 0;
  std::vector<int> order_;
  std::vector<double> weight_;
};

/// The n-th number of the stream `seed`, uniform in [0, 1): a hash of both, so that any of them is had directly.
double uniform(uint64_t seed, uint64_t n);

}  // namespace aft::runtime

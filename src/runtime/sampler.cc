#include "aft/runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "aft/error.h"

namespace aft::runtime {

double uniform(uint64_t seed, uint64_t n) {
  // The finaliser of SplitMix64 (Steele, Lea, Flood 2014), once over the seed and once over seed and counter.
  const auto mix = [](uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9U;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebU;
    return x ^ (x >> 31);
  };
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15U;
  const uint64_t bits = mix(mix(seed + kStep) + (n + 1) * kStep);
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

Sampler::Sampler(const SamplerOptions& options) : options_(options) {
  const auto fail = [](const std::string& name, const std::string& expected, const std::string& got) {
    throw Error(name + ": expected " + expected + ", got " + got);
  };
  if (!(options.temperature >= 0.0F) || !std::isfinite(options.temperature)) {
    fail("temperature", "a number >= 0", std::to_string(options.temperature));
  }
  if (options.top_k < 0) fail("top_k", "a number >= 0 (0: no limit)", std::to_string(options.top_k));
  if (!(options.top_p > 0.0F && options.top_p <= 1.0F)) {
    fail("top_p", "a number in (0, 1]", std::to_string(options.top_p));
  }
}

uint8_t Sampler::draw(std::span<const float> logits) {
  if (logits.empty() || logits.size() > 256) {
    throw Error("logits: expected 1 to 256, got " + std::to_string(logits.size()));
  }
  for (const float logit : logits) {
    if (!std::isfinite(logit)) throw Error("logits: expected finite numbers, got " + std::to_string(logit));
  }
  const uint64_t n = draws_++;
  const auto count = static_cast<int>(logits.size());
  const auto best = static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  if (options_.temperature == 0.0F) return static_cast<uint8_t>(best);

  order_.resize(logits.size());
  std::iota(order_.begin(), order_.end(), 0);
  std::stable_sort(order_.begin(), order_.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  int kept = options_.top_k == 0 ? count : static_cast<int>(std::min<int64_t>(options_.top_k, count));

  weight_.resize(logits.size());
  double total = 0;
  for (int i = 0; i < kept; ++i) {
    // In f64 before the division: a tiny temperature then gives -inf and weight 0, never NaN.
    const double above = static_cast<double>(logits[order_[i]]) - static_cast<double>(logits[best]);
    weight_[i] = std::exp(above / static_cast<double>(options_.temperature));
    total += weight_[i];
  }
  if (options_.top_p < 1.0F) {
    double sum = 0;
    int nucleus = 0;
    while (nucleus < kept && sum < static_cast<double>(options_.top_p) * total) sum += weight_[nucleus++];
    kept = nucleus;
    total = sum;
  }
  double left = uniform(options_.seed, n) * total;
  for (int i = 0; i < kept; ++i) {
    left -= weight_[i];
    if (left < 0) return static_cast<uint8_t>(order_[i]);
  }
  return static_cast<uint8_t>(best);  // rounding left a crumb
}

}  // namespace aft::runtime

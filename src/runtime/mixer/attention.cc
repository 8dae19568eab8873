// Multi-head causal softmax attention with a cache of keys and values: the baseline that AFT is measured against.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "runtime/kernels.h"
#include "runtime/matrix.h"
#include "runtime/mixer/mixer.h"

namespace aft::runtime {
namespace {

constexpr int64_t kQueries = 64;  // queries of one matrix product in prefill

class Attention final : public Mixer {
 public:
  Attention(const Weights& weights, int64_t batch)
      : batch_(batch),
        channels_(weights.config.channels),
        heads_(weights.config.mixer.heads),
        width_(channels_ / heads_),
        context_(positions(weights.config)),
        // Not cleared: pages are taken from the system only as the cache fills.
        keys_(new float[static_cast<size_t>(batch * context_ * channels_)]),
        values_(new float[static_cast<size_t>(batch * context_ * channels_)]) {}

  void forward(const float* qkv, int64_t time, float* y, ThreadPool& pool) override {
    const int64_t blocks = (time + kQueries - 1) / kQueries;
    const int64_t pairs = batch_ * heads_;
    prepare_products(pool.threads());
    pool.run(pairs, [&](int64_t pair) { append(qkv, time, pair); });
    pool.run(pairs * blocks, [&](int64_t i) {
      const int64_t begin = (i % blocks) * kQueries;
      mix(qkv, time, i / blocks, begin, std::min(kQueries, time - begin), y);
    });
    position_ += time;
  }

  void reset() override { position_ = 0; }

  [[nodiscard]] int64_t state_bytes() const override {
    return 2 * batch_ * position_ * channels_ * static_cast<int64_t>(sizeof(float));
  }

 private:
  /// Row (b, t) of the input, at the channels of a head; part 0, 1, 2: query, key, value. pair = b * heads + head.
  [[nodiscard]] const float* input(const float* qkv, int64_t time, int64_t pair, int64_t t, int64_t part) const {
    return qkv + ((pair / heads_) * time + t) * 3 * channels_ + part * channels_ + (pair % heads_) * width_;
  }

  void append(const float* qkv, int64_t time, int64_t pair) {
    for (int64_t t = 0; t < time; ++t) {
      const int64_t slot = (pair * context_ + position_ + t) * width_;
      std::memcpy(&keys_[slot], input(qkv, time, pair, t, 1), static_cast<size_t>(width_) * sizeof(float));
      std::memcpy(&values_[slot], input(qkv, time, pair, t, 2), static_cast<size_t>(width_) * sizeof(float));
    }
  }

  /// Queries [begin, begin + count) of the new positions, one head.
  void mix(const float* qkv, int64_t time, int64_t pair, int64_t begin, int64_t count, float* y) const {
    const float* keys = &keys_[pair * context_ * width_];
    const float* values = &values_[pair * context_ * width_];
    const float* query = input(qkv, time, pair, begin, 0);
    float* out = y + ((pair / heads_) * time + begin) * channels_ + (pair % heads_) * width_;
    const float scale = 1.0F / std::sqrt(static_cast<float>(width_));
    const int64_t sources = position_ + begin + count;  // what the last query sees
    static thread_local std::vector<float> scores;
    scores.resize(static_cast<size_t>(count * sources));
    if (count == 1) {
      kernels::matvec(keys, sources, width_, width_, query, nullptr, false, scores.data());
      kernels::softmax(scale, sources, scores.data());
      kernels::weighted_sum(values, sources, width_, width_, scores.data(), out);
      return;
    }
    multiply_transposed({query, 3 * channels_}, {keys, width_}, count, sources, width_, 0.0F, {scores.data(), sources});
    for (int64_t i = 0; i < count; ++i) {
      float* row = scores.data() + i * sources;
      const int64_t seen = sources - count + i + 1;
      kernels::softmax(scale, seen, row);
      std::fill(row + seen, row + sources, 0.0F);
    }
    multiply({scores.data(), sources}, {values, width_}, count, width_, sources, {out, channels_});
  }

  int64_t batch_;
  int64_t channels_;
  int64_t heads_;
  int64_t width_;
  int64_t context_;
  int64_t position_ = 0;
  std::unique_ptr<float[]> keys_;    // [B, heads, T, d / heads]
  std::unique_ptr<float[]> values_;  // [B, heads, T, d / heads]
};

}  // namespace

std::unique_ptr<Mixer> make_attention(const Weights& weights, const Block& /*block*/, int64_t batch) {
  return std::make_unique<Attention>(weights, batch);
}

}  // namespace aft::runtime

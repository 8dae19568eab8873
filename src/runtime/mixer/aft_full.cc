// AFT-full: the dense operator, its weights by factors, with the keys and values of every position so far.

#include <algorithm>
#include <memory>
#include <vector>

#include "aft/ops/full.h"
#include "runtime/mixer/mixer.h"

namespace aft::runtime {
namespace {

class AftFull final : public Mixer {
 public:
  AftFull(const Weights& weights, const Block& block, int64_t batch)
      : position_(static_cast<size_t>(batch)),
        sums_(static_cast<size_t>(3 * batch * weights.config.channels)),
        // Not cleared: pages are taken from the system only as the ring fills.
        ring_(new float[static_cast<size_t>(2 * batch * positions(weights.config) * weights.config.channels)]) {
    shape_.batch = batch;
    shape_.channels = weights.config.channels;
    shape_.key_channels = shape_.channels;
    shape_.capacity = positions(weights.config);
    shape_.gate = gate_of(weights.config);
    const int64_t d = shape_.channels;
    state_.position = position_.data();
    state_.max = sums_.data();
    state_.den = sums_.data() + batch * d;
    state_.num = sums_.data() + 2 * batch * d;
    state_.ring_key = ring_.get();
    state_.ring_value = ring_.get() + batch * shape_.capacity * d;
    weights_.u = block.u;
    weights_.v = block.v;
    weights_.width = weights.config.mixer.factor_channels;
    weights_.rows = weights_.columns = positions(weights.config);
  }

  void forward(const float* qkv, int64_t time, float* y, ThreadPool& pool) override {
    const int64_t d = shape_.channels;
    const int64_t query = shape_.gate == ops::Gate::kNone ? 0 : d;
    const int64_t width = query + 2 * d;
    const auto part = [&](int64_t offset) { return ops::Rows<const float>{qkv + offset, time * width, width}; };
    ops::FullInputs<float> in;
    in.shape = shape_;
    in.shape.targets = in.shape.sources = time;
    if (query > 0) in.q = part(0);
    in.k = part(query);
    in.v = part(query + d);
    in.weights = weights_;
    const ops::Rows<float> out = {y, time * d, d};
    const ops::Cpu cpu = {pool.parallel()};
    if (time == 1) {
      ops::full_step(ops::FullStep<float>{.in = in, .y = out, .state = state_}, cpu);
    } else {
      in.initial_state = state_;
      ops::full_forward(ops::FullForward<float>{.in = in, .y = out, .final_state = state_}, cpu);
    }
  }

  // What the ring holds beyond the position is never read.
  void reset() override { std::fill(position_.begin(), position_.end(), 0); }

  [[nodiscard]] int64_t state_bytes() const override {
    const auto held = 2 * position_[0] * shape_.batch * shape_.channels;
    return static_cast<int64_t>(position_.size() * sizeof(int64_t) + sums_.size() * sizeof(float)) +
           held * static_cast<int64_t>(sizeof(float));
  }

 private:
  ops::FullShape shape_;
  std::vector<int64_t> position_;
  std::vector<float> sums_;  // stay neutral: all sources lie in the ring
  std::unique_ptr<float[]> ring_;
  ops::State<float> state_;
  ops::PairWeights<const float> weights_;
};

}  // namespace

std::unique_ptr<Mixer> make_aft_full(const Weights& weights, const Block& block, int64_t batch) {
  return std::make_unique<AftFull>(weights, block, batch);
}

}  // namespace aft::runtime

// AFT-simple, AFT-local and AFT-conv 1-D: the windowed operator with its state.

#include <vector>

#include "aft/ops/window.h"
#include "config/architecture.h"
#include "runtime/mixer/mixer.h"

namespace aft::runtime {
namespace {

ops::WindowShape window_shape(const Weights& weights, int64_t batch) {
  ops::WindowShape shape;
  shape.batch = batch;
  shape.channels = weights.config.channels;
  shape.heads = weights.heads;
  shape.key_channels = key_channels(weights.config);
  shape.has_band = weights.has_band;
  shape.left = weights.left;
  shape.gate = gate_of(weights.config);
  return shape;
}

class Aft final : public Mixer {
 public:
  Aft(const Weights& weights, const Block& block, int64_t batch)
      : shape_(window_shape(weights, batch)),
        position_(static_cast<size_t>(batch)),
        sums_(static_cast<size_t>(batch * (2 * shape_.key_channels + shape_.channels))),
        ring_(static_cast<size_t>(batch * shape_.left * (shape_.key_channels + shape_.channels))) {
    const int64_t keys = shape_.key_channels;
    state_.position = position_.data();
    state_.max = sums_.data();
    state_.den = sums_.data() + batch * keys;
    state_.num = sums_.data() + 2 * batch * keys;
    state_.ring_key = ring_.data();
    state_.ring_value = ring_.data() + batch * shape_.left * keys;
    if (shape_.has_band) {
      const int64_t span = shape_.left + 1;
      const bool row_per_head = weights.config.mixer.name == "aft_conv1d";
      band_ = {block.band, row_per_head ? span : 0, row_per_head ? 0 : span, weights.band_rows};
    }
    Aft::reset();
  }

  void forward(const float* qkv, int64_t time, float* y, ThreadPool& pool) override {
    const int64_t d = shape_.channels;
    const int64_t keys = shape_.key_channels;
    const int64_t query = shape_.gate == ops::Gate::kNone ? 0 : d;
    const int64_t width = query + keys + d;
    const auto part = [&](int64_t offset) { return ops::Rows<const float>{qkv + offset, time * width, width}; };
    shape_.time = time;
    ops::WindowInputs<float> in;
    in.shape = shape_;
    if (query > 0) in.q = part(0);
    in.k = part(query);
    in.v = part(query + keys);
    in.band = band_;
    const ops::Rows<float> out = {y, time * d, d};
    const ops::Cpu cpu = {pool.parallel()};
    if (time == 1) {
      ops::window_step(ops::WindowStep<float>{.in = in, .y = out, .state = state_}, cpu);
    } else {
      in.initial_state = state_;
      ops::window_forward(ops::WindowForward<float>{.in = in, .y = out, .final_state = state_}, cpu);
    }
  }

  void reset() override { ops::window_state_init(shape_, state_); }

  [[nodiscard]] int64_t state_bytes() const override {
    return static_cast<int64_t>(position_.size() * sizeof(int64_t) + (sums_.size() + ring_.size()) * sizeof(float));
  }

 private:
  ops::WindowShape shape_;
  std::vector<int64_t> position_;
  std::vector<float> sums_;
  std::vector<float> ring_;
  ops::State<float> state_;
  ops::Band<const float> band_;
};

}  // namespace

std::unique_ptr<Mixer> make_aft(const Weights& weights, const Block& block, int64_t batch) {
  return std::make_unique<Aft>(weights, block, batch);
}

}  // namespace aft::runtime

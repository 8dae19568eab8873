#include "runtime/mixer/mixer.h"

namespace aft::runtime {
namespace {

struct Entry {
  const char* name;
  std::unique_ptr<Mixer> (*make)(const Weights& weights, const Block& block, int64_t batch);
};

// A new mixer is one line here.
constexpr Entry kMixers[] = {
    {"aft_simple", make_aft},    {"aft_local", make_aft},       {"aft_conv1d", make_aft},
    {"aft_full", make_aft_full}, {"attention", make_attention},
};

}  // namespace

ops::Gate gate_of(const ModelConfig& config) {
  const std::string& name = config.mixer.gate;
  return name == "none" ? ops::Gate::kNone : name == "relu" ? ops::Gate::kRelu : ops::Gate::kSigmoid;
}

void require_mixer(const ModelConfig& config, const std::string& where) { find_mixer(kMixers, config, where); }

std::unique_ptr<Mixer> make_mixer(const Weights& weights, const Block& block, int64_t batch) {
  return find_mixer(kMixers, weights.config, "mixer").make(weights, block, batch);
}

}  // namespace aft::runtime

#include "runtime/mixer/mixer.h"

#include "aft/error.h"

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

const Entry* find(const ModelConfig& config) {
  for (const Entry& entry : kMixers) {
    if (config.mixer.name == entry.name) return &entry;
  }
  return nullptr;
}

}  // namespace

void require_mixer(const ModelConfig& config, const std::string& where) {
  if (find(config) != nullptr) return;
  std::string known;
  for (const Entry& entry : kMixers) known += (known.empty() ? "" : ", ") + std::string(entry.name);
  throw Error(where + ": its mixer is " + config.mixer.name +
              ", which is for comparison and runs in aft-train alone; " + "aft runs " + known);
}

std::unique_ptr<Mixer> make_mixer(const Weights& weights, const Block& block, int64_t batch) {
  require_mixer(weights.config, "mixer");
  return find(weights.config)->make(weights, block, batch);
}

}  // namespace aft::runtime

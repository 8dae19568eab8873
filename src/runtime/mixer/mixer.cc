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
    {"aft_simple", make_aft},
    {"aft_local", make_aft},
    {"aft_conv1d", make_aft},
    {"aft_full", make_aft_full},
    {"attention", make_attention},
};

}  // namespace

std::unique_ptr<Mixer> make_mixer(const Weights& weights, const Block& block, int64_t batch) {
  for (const Entry& entry : kMixers) {
    if (weights.config.mixer == entry.name) return entry.make(weights, block, batch);
  }
  throw Error("mixer: expected one that this version of aft runs, got \"" + weights.config.mixer + '"');
}

}  // namespace aft::runtime

#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "aft/error.h"
#include "aft/ops/operands.h"
#include "aft/runtime/thread_pool.h"
#include "runtime/weights.h"

namespace aft::runtime {

/// What mixes positions in one layer: the part between the qkv projection and the output projection, with its memory of
/// the positions before. One object a layer and session. The session keeps to the context.
class Mixer {
 public:
  Mixer() = default;
  Mixer(const Mixer&) = delete;
  Mixer& operator=(const Mixer&) = delete;
  virtual ~Mixer() = default;

  /// The next `time` positions: qkv [B, time, qkv channels] (query, key, value) to y [B, time, d].
  virtual void forward(const float* qkv, int64_t time, float* y, ThreadPool& pool) = 0;
  /// Back to position 0.
  virtual void reset() = 0;
  /// Bytes remembered at this position.
  [[nodiscard]] virtual int64_t state_bytes() const = 0;
};

/// The gate of an AFT mixer.
ops::Gate gate_of(const ModelConfig& config);

/// The entry of the config's mixer in a table. Throws aft::Error, which begins with `where`, for a mixer that only the
/// trainer runs.
template <typename Entry, size_t kCount>
const Entry& find_mixer(const Entry (&table)[kCount], const ModelConfig& config, const std::string& where) {
  std::string known;
  for (const Entry& entry : table) {
    if (config.mixer.name == entry.name) return entry;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw Error(where + ": its mixer is " + config.mixer.name +
              ", which is for comparison and runs in aft-train alone; aft runs " + known);
}

/// Throws aft::Error, which begins with `where`, for a mixer that only the trainer runs.
void require_mixer(const ModelConfig& config, const std::string& where);

/// The mixer that the config names, for one block.
std::unique_ptr<Mixer> make_mixer(const Weights& weights, const Block& block, int64_t batch);

// The makers that make_mixer() knows.
std::unique_ptr<Mixer> make_aft(const Weights& weights, const Block& block, int64_t batch);
std::unique_ptr<Mixer> make_aft_full(const Weights& weights, const Block& block, int64_t batch);
std::unique_ptr<Mixer> make_attention(const Weights& weights, const Block& block, int64_t batch);

}  // namespace aft::runtime

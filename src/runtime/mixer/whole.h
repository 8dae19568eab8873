#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "aft/ops/operands.h"
#include "aft/runtime/model_file.h"
#include "aft/runtime/thread_pool.h"

namespace aft::runtime {

/// Is shown the weights [T] of one target and head, by several threads at once.
using SeeRow = std::function<void(int64_t head, int64_t target, std::span<const float> weights)>;

/// What mixes all positions of an image in one layer: the part between the qkv projection and the output projection. It
/// remembers nothing.
class WholeMixer {
 public:
  WholeMixer() = default;
  WholeMixer(const WholeMixer&) = delete;
  WholeMixer& operator=(const WholeMixer&) = delete;
  virtual ~WholeMixer() = default;

  /// qkv [T, qkv channels] (query, key, value) to y [T, d]. Attention shows `see`, where there is one, its weights.
  virtual void forward(const float* qkv, float* y, ThreadPool& pool, const SeeRow& see) const = 0;
};

/// Throws aft::Error, which begins with `where`, for a mixer that only the trainer runs.
void require_whole_mixer(const ModelConfig& config, const std::string& where);

/// The mixer at `name` ("blocks.0.mixer.") of the file, for a model of `config`, which fits it.
std::unique_ptr<WholeMixer> make_whole_mixer(const ModelConfig& config, const ModelFile& file, const std::string& name,
                                             ThreadPool& pool);

}  // namespace aft::runtime
